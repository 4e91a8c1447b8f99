"""Pruned networks on disk."""
