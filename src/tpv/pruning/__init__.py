"""Structured pruning: which width to give to every group of channels."""
