"""A pruning from start to end: candidates, steps, results."""
