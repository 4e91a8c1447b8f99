"""Test Prediction Variance of a model under a perturbation."""

from __future__ import annotations

from torch import nn

from tpv.common.progress import Listener, Progress
from tpv.estimation.evaluate import AUTO, Evaluation
from tpv.estimation.fixed_point import fixed_point
from tpv.estimation.loop import Seed
from tpv.estimators import Estimator
from tpv.model.layers import LayersSpec, groups
from tpv.model.linearization import Forward
from tpv.model.outputs import OutputSpec
from tpv.perturbations import PerturbationSpec
from tpv.perturbations.bound import selected
from tpv.results import TPVResult


def estimate(
    model: nn.Module,
    data: object,
    perturbation: PerturbationSpec,
    *,
    estimator: Estimator = AUTO,
    output: OutputSpec | None = None,
    layers: LayersSpec = None,
    forward: Forward | None = None,
    generator: Seed = 0,
    progress: bool | Listener | Progress = False,
    chunk_size: int | None = None,
    pointwise: bool = False,
) -> TPVResult:
    r"""Test Prediction Variance of a trained model under a perturbation of its weights.

    .. math:: \mathrm{TPV} = E_x E_\delta \|f(w^*+\delta; x) - f(w^*; x)\|^2
        \approx \mathrm{Tr}(H_\mathrm{eff} C)

    summed over outputs, averaged over examples, in squared units of the outputs. Padded positions of batches
    with an ``attention_mask`` (N, T) do not count in outputs (N, T, ...) that have an axis more. The model is
    left bit for bit as it was.

    Args:
        model: a trained ``nn.Module`` in evaluation mode; its trainable floating-point parameters are w*.
        data: a tensor of inputs, or any re-iterable of batches (a DataLoader): a tensor, a tuple whose first
            element is the input, or a mapping passed as keywords (labels are dropped).
        perturbation: the distribution of δ, such as :class:`tpv.Quantization` or :class:`tpv.SGDNoise`.
        estimator: how TPV is computed; :class:`tpv.Auto` chooses by the perturbation and the size of the
            data: :class:`tpv.Exact` where it is affordable.
        output: the output space: ``"logits"``, the outputs as they are (the default, but that
            of :class:`tpv.LabelNoise` is what its ``center`` says); ``"centered"``, minus their mean over the
            classes; ``"probabilities"``, their softmax; ``"kl"``, the divergence KL(p at w* ‖ p at w* + δ) in
            nats for each example, summed over its positions, to first order ½ Tr(E[Jᵀ F J] C) with the
            softmax Fisher matrix F = diag p − ppᵀ; or a function of what the model returns that gives a
            tensor (N, ...). Classes are on the last axis of (N, K) and (N, T, K), on axis 1 of (N, K, H, W).
        layers: how to group parameters: by default by module; a regular expression searched in their names,
            such as ``r"layer\.\d+"`` (its first group, or the whole match, is the layer); a mapping from
            layers to glob patterns; or a function from name to layer.
        forward: ``(model, batch) -> outputs`` for batches of another form; outputs are (N, ...).
        generator: a seed, or a CPU ``torch.Generator``; it is the only source of randomness.
        progress: True for a bar on standard error (``pip install 'tpv[cli]'``), where that is a terminal or a
            notebook and not a file or a pipe; or a function that gets every :class:`tpv.ProgressEvent`.
        chunk_size: examples at a time; by default as many as fit in 512 MiB, or a quarter of the free GPU
            memory. Where memory runs out, it is halved and the work goes on, with a warning.
        pointwise: whether the result has the value of every example too, as ``result.pointwise``.

    Returns:
        The value, its standard errors and, where it is defined, the split by layer.

    Raises:
        TPVError: for input that cannot give a meaningful number; the message says what to do.

    Cost: as the estimator says.

    Source: D. Arpit, arXiv 2512.11089.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> result = tpv.estimate(model, x, tpv.Quantization(bits=4))
        >>> result.n_examples, list(result.layers), result.mc_stderr
        (100, ['0', '2'], 0.0)
    """
    evaluation = Evaluation(estimator, layers, generator, progress, chunk_size, pointwise)
    with fixed_point(model, perturbation, forward, output) as lin:
        groups(layers, selected(lin, perturbation.params))
        return evaluation.tpv(lin, perturbation.bind(lin), data)
