"""Whether TPV on the training inputs is a good proxy for TPV on unseen inputs."""

from __future__ import annotations

from typing import Any

from torch import nn

from tpv.common.errors import TPVError
from tpv.estimation.crossfit import cross_fit, is_cross_fitted
from tpv.estimation.estimate import estimate
from tpv.estimation.fixed_point import default_estimator, fixed_point
from tpv.estimation.loop import Progress
from tpv.estimators import Estimator
from tpv.model.batches import batches, count_examples, inputs
from tpv.model.checks import check_device, check_outputs
from tpv.model.layers import LayersSpec
from tpv.model.linearization import Forward
from tpv.model.outputs import OutputSpec
from tpv.perturbations import Perturbation
from tpv.results import StabilityResult, TPVResult


def stability(
    model: nn.Module,
    train: object,
    test: object,
    perturbation: Perturbation,
    *,
    estimator: Estimator | None = None,
    output: OutputSpec | None = None,
    layers: LayersSpec = None,
    forward: Forward | None = None,
    generator: int = 0,
    progress: Progress | None = None,
) -> StabilityResult:
    r"""Whether TPV on the training inputs tells TPV on unseen inputs: their ratio, in all and by layer.

    Both sides use the same estimator and the same draws of δ, so draws that they share cancel in the ratio.
    For
    :class:`tpv.LabelNoise` and :class:`tpv.Retraining`, whose data must be ``train``, the training inputs
    tell nothing in sample, and the ratio is cross-fitted: the noise of one half of them read on the other,
    against the noise of the same halves read on the test inputs.

    Args:
        train, test: data as in :func:`estimate`.
        model, perturbation, estimator, output, layers, forward, generator, progress: as in :func:`estimate`.

    Returns:
        Both results, TPV(train) / TPV(test) with its standard error (delta method), and the ratios by layer;
        for label noise the cross-fitted results too.

    Raises:
        TPVError: as :func:`estimate`.

    Cost: :func:`estimate` on both; for label noise about three times that.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(8, 3).eval()
        >>> g = torch.Generator().manual_seed(0)
        >>> train, test = (torch.randn(n, 8, generator=g) for n in (400, 100))
        >>> result = tpv.stability(model, train, test, tpv.Isotropic(0.01))
        >>> abs(result.ratio - 1) < 4 * result.ratio_stderr
        True
    """
    if not isinstance(generator, int):
        raise TPVError(
            f"stability(generator={generator!r}): give an int seed, so that both sides share their draws."
        )
    noise = perturbation if is_cross_fitted(perturbation, train) else None
    if estimator is None:
        estimator = _common_estimator(model, (train, test), perturbation, forward, output)
    settings: dict[str, Any] = {
        "estimator": estimator, "output": output, "layers": layers, "forward": forward, "generator": generator, "progress": progress
    }  # fmt: skip

    def read(data: object, law: Perturbation) -> TPVResult:
        return estimate(model, data, law, **settings)

    both = read(train, perturbation), read(test, perturbation)
    return StabilityResult(*both, *(cross_fit(noise, test, read, generator) if noise else ()))


def _common_estimator(
    model: nn.Module,
    sides: tuple[object, ...],
    perturbation: Perturbation,
    forward: Forward | None,
    output: OutputSpec | None,
) -> Estimator:
    """The default for the larger of several data sets."""
    with fixed_point(model, perturbation, forward, output) as lin:
        sizes = [count_examples(batches(data)) for data in sides]
        largest = None if None in sizes else max(n for n in sizes if n is not None)
        first = next(iter(batches(sides[0])), None)
        if first is None:
            raise TPVError("the training data is empty: it gave no batch.")
        check_device(model, first if forward else inputs(first))
        return default_estimator(lin, perturbation, largest, check_outputs(lin, first)[0].numel())
