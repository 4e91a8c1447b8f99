"""The user's model: batches, outputs, weights and Jacobian products."""
