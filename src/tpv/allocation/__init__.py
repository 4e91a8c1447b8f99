"""The exact allocator: the sizes of groups that do least damage within a budget of shared costs."""
