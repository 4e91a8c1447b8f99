"""Training a network again on noisy targets: the loop, its optimizers, and the store of finished runs."""

from tpv.retraining.progress import ProgressBar

__all__ = ["ProgressBar"]
