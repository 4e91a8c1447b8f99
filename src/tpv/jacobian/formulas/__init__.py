"""One formula a layer type: per-example gradients from its input and its output gradient."""
