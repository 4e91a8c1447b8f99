"""Pruned networks on disk: weights in safetensors, and JSON that makes the architecture narrow again."""
