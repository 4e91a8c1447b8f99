"""The heart: one loop over the data, and the questions asked of it."""
