"""Per-example gradients by ``torch.func`` or one by one, where no layer formula applies."""
