"""Whether TPV on the training inputs is a good proxy for TPV on unseen inputs."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import nn

from tpv.common.errors import TPVError
from tpv.common.progress import Listener, Progress
from tpv.estimation.crossfit import CrossFit
from tpv.estimation.evaluate import AUTO, Evaluation
from tpv.estimation.fixed_point import fixed_point
from tpv.estimation.loop import as_seed
from tpv.estimators import Estimator
from tpv.model.batches import batches, count_examples
from tpv.model.checks import check_device, check_outputs
from tpv.model.layers import LayersSpec, groups
from tpv.model.linearization import Forward, Linearization
from tpv.model.outputs import OutputSpec
from tpv.perturbations import PerturbationSpec
from tpv.perturbations.bound import Bound, selected
from tpv.results import StabilityResult, TPVResult


def stability(
    model: nn.Module,
    train: object,
    test: object,
    perturbation: PerturbationSpec,
    *,
    estimator: Estimator = AUTO,
    output: OutputSpec | None = None,
    layers: LayersSpec = None,
    forward: Forward | None = None,
    generator: int = 0,
    progress: bool | Listener | Progress = False,
) -> StabilityResult:
    r"""Whether train TPV is a good proxy for test TPV: their ratio, in all and by layer.

    Both sides use the same estimator and the same draws of δ, so the error of the draws cancels in the ratio.
    For :class:`tpv.LabelNoise` and :class:`tpv.Retraining`, whose training inputs must be those of ``train``,
    train TPV in sample is not a good proxy for test TPV, and the ratio is cross-fitted: the noise on one half
    of the training inputs evaluated on the other half, against the noise on the same halves evaluated on the
    test inputs. All this shares one binding to the training inputs and one to each half, so that each kernel
    is computed and each network trained once.

    Args:
        train, test: data as in :func:`estimate`.
        model, perturbation, estimator, output, layers, forward, generator, progress: as in :func:`estimate`.

    Returns:
        Both results, TPV(train) / TPV(test) with its standard error (delta method), and the ratios by layer;
        for label noise the cross-fitted results too.

    Raises:
        TPVError: as :func:`estimate`.

    Cost: :func:`estimate` on both; for label noise about three times that, kernels included.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(8, 3).eval()
        >>> g = torch.Generator().manual_seed(0)
        >>> train, test = (torch.randn(n, 8, generator=g) for n in (400, 100))
        >>> result = tpv.stability(model, train, test, tpv.Isotropic(0.01))
        >>> abs(result.ratio - 1) < 4 * result.ratio_stderr
        True
    """
    if isinstance(generator, torch.Generator):
        raise TPVError(
            f"stability(generator={generator!r}): give an int seed, so that both sides share their draws."
        )
    generator = as_seed(generator)
    evaluation = Evaluation(estimator, layers, generator, progress)
    with fixed_point(model, perturbation, forward, output) as lin:
        groups(layers, selected(lin, perturbation.params))
        split = None
        if perturbation.training_data is not None:
            split = CrossFit.split(perturbation, train, generator, whole_batch=lin.custom_forward)
        bound = perturbation.bind(lin)
        evaluation = _with_common_estimator(evaluation, lin, bound, (train, test))
        parts, reporter = itertools.count(1), Progress.of(progress)

        def evaluate(stage: str, bound: Bound, data: object) -> TPVResult:
            with reporter.stage(stage, part=next(parts), parts=2 if split is None else 6) as inner:
                return dataclasses.replace(evaluation, progress=inner).tpv(lin, bound, data)

        both = evaluate("train", bound, train), evaluate("test", bound, test)
        if split is None:
            return StabilityResult(*both)
        return StabilityResult(*both, *split.results([h.bind(lin) for h in split.halves], test, evaluate))


def _with_common_estimator(
    evaluation: Evaluation, lin: Linearization, bound: Bound, sides: tuple[object, ...]
) -> Evaluation:
    """The estimator that suits the larger of several data sets, for all of them."""
    sizes = [count_examples(batches(data)) for data in sides]
    largest = None if None in sizes else max(n for n in sizes if n is not None)
    first = next(iter(batches(sides[0])), None)
    if first is None:
        raise TPVError("the training data is empty: it gave no batch.")
    check_device(lin.model, lin.used(first))
    outputs = check_outputs(lin, first)[0].numel()
    problem = evaluation.problem(lin, bound, outputs, largest)
    return dataclasses.replace(evaluation, estimator=evaluation.estimator.resolved(problem))
