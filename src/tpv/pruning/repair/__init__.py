"""What is recomputed after channels are gone: statistics and least-squares weights."""
