"""Test Prediction Variance of a model under a perturbation."""

from __future__ import annotations

import time

from torch import nn

from tpv.common.errors import TPVError
from tpv.estimation.fixed_point import default_estimator, fixed_point
from tpv.estimation.loop import Progress, Seed, accumulate, as_generator
from tpv.estimators import Estimator
from tpv.estimators.base import EstimatorRun, Problem
from tpv.model.batches import batches, count_examples
from tpv.model.layers import LayersSpec, groups
from tpv.model.linearization import Forward
from tpv.model.outputs import OutputSpec
from tpv.model.regrouping import LargeBatches
from tpv.perturbations import Perturbation
from tpv.results import TPVResult
from tpv.training.label_noise import LabelNoise


def estimate(
    model: nn.Module,
    data: object,
    perturbation: Perturbation,
    *,
    estimator: Estimator | None = None,
    output: OutputSpec | None = None,
    layers: LayersSpec = None,
    forward: Forward | None = None,
    generator: Seed = 0,
    progress: Progress | None = None,
    chunk_size: int | None = None,
) -> TPVResult:
    r"""Test Prediction Variance of a trained model under a perturbation of its weights.

    .. math:: \mathrm{TPV} = E_x E_\delta \|f(w^*+\delta; x) - f(w^*; x)\|^2 \approx \mathrm{Tr}(H_\mathrm{eff} C)

    summed over outputs, averaged over examples, in squared units of the outputs. Padded positions of batches
    with an ``attention_mask`` (N, T) do not count in outputs (N, T, ...) that have an axis more. The model is
    left bit for bit as it was.

    Args:
        model: a trained ``nn.Module`` in evaluation mode; its trainable floating-point parameters are w*.
        data: a tensor of inputs, or any re-iterable of batches (a DataLoader): a tensor, a tuple whose first
            element is the input, or a mapping passed as keywords (labels are dropped).
        perturbation: the law of δ, such as :class:`tpv.Quantization` or :class:`tpv.SGDNoise`.
        estimator: by default :class:`tpv.Exact` for a fixed displacement, and for independent entries where
            examples × outputs ≤ 8192 (for :class:`tpv.LabelNoise` where its kernel takes less than 2 GiB);
            beyond, :class:`tpv.Hutchinson` (:class:`tpv.HutchPlusPlus`); :class:`tpv.MonteCarlo` for
            :class:`tpv.Retraining`; else
            :class:`tpv.LinearizedMonteCarlo`.
        output: what of the predictions counts: ``"logits"``, the outputs as they are (the default, but that
            of :class:`tpv.LabelNoise` is what its ``center`` says); ``"centered"``, minus their mean over the
            classes; ``"probabilities"``, their softmax; ``"kl"``, the divergence KL(p at w* ‖ p at w* + δ) in
            nats for each example, summed over its positions, to first order ½ Tr(E[Jᵀ F J] C) with the
            softmax Fisher matrix F = diag p − ppᵀ; or a function of what the model returns that gives a
            tensor (N, ...). Classes are on the last axis of (N, K) and (N, T, K), on axis 1 of (N, K, H, W).
        layers: how to group parameters: by default by module; a regular expression searched in their names,
            such as ``r"layer\.\d+"`` (its first group, or the whole match, is the layer); a mapping from
            layers to glob patterns; or a function from name to layer.
        forward: ``(model, batch) -> outputs`` for batches of another form; outputs are (N, ...).
        generator: a seed, or a CPU ``torch.Generator``; nothing else is random.
        progress: called with (examples done, examples in all or None) after each chunk.
        chunk_size: examples at a time; by default as many as fit in 256 MiB, or a quarter of the free GPU
            memory. Where memory runs out, it is halved and the work goes on, with a warning.

    Returns:
        The value, its standard errors and, where it is defined, the split by layer.

    Raises:
        TPVError: for input that cannot give a meaningful number; the message says what to do.

    Cost: as the estimator says.

    Source: D. Arpit, arXiv 2512.11089.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
        >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> result = tpv.estimate(model, x, tpv.Quantization(bits=4))
        >>> result.n_examples, list(result.layers), result.mc_stderr
        (100, ['0', '2'], 0.0)
    """
    started = time.perf_counter()
    with fixed_point(model, perturbation, forward, output) as lin:
        groups(layers, lin.weights.select(perturbation.params))
        if estimator is not None and not isinstance(estimator, Estimator):
            raise TPVError(
                "estimator must be a tpv.Estimator such as tpv.Exact() or tpv.Hutchinson(probes=4), got "
                f"{estimator!r}."
            )
        data = LargeBatches(data) if isinstance(perturbation, LabelNoise) else batches(data)
        examples = count_examples(data)

        def begin(outputs: int) -> EstimatorRun:
            chosen = (
                estimator
                if estimator is not None
                else default_estimator(lin, perturbation, examples, outputs)
            )
            return chosen.begin(Problem(lin, perturbation, as_generator(generator), outputs, layers))

        run = accumulate(lin, data, begin, chunk_size, progress)
    metadata = run.metadata(generator, started, perturbation=repr(perturbation))
    return TPVResult.from_moments(
        run.moments, run.procedure.no_layers, metadata, **run.procedure.extra_fields()
    )
