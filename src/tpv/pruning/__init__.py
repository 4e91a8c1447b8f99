"""Which weights and channels to remove, by how much the predictions move without them."""
