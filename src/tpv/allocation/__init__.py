"""The exact allocator: the best sizes of parts under a budget, where damages depend on neighbours."""
