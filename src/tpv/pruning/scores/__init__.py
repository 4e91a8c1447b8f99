"""Scores of channels: criteria, their cotangents, and one backward pass for all of them."""
