"""How well a model does over a whole split: loss, accuracy, and whether its confidence can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.datasets.dataset import Split
from trainers.facts import Task
from trainers.objective import Objective

CALIBRATION_BINS = 15

_MAX_BATCH_SIZE = 4096
_BATCH_VALUES = 2**21
"""Input values of a batch: 682 images of CIFAR, for which the widest layer of wrn_28_10 takes 0.4 GiB."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """loss: mean of the f_i over the split.

    accuracy: share of examples classified right; None for a regression.
    calibration_error: see `calibration_error`; None for a regression.
    """

    loss: float
    accuracy: float | None
    calibration_error: float | None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    objective: Objective,
    *,
    prepare: Callable[[Tensor], Tensor] = lambda inputs: inputs,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Evaluation:
    """Evaluates in evaluation mode, in big batches; one read-back from the device, at the end.

    prepare: makes of a batch of the split's inputs, images of uint8 for instance, what the model takes.
    autocast: makes the context that the model runs in; losses are taken outside, in float32 or float64.
    memory_format: of the batches of images.

    The modes of the model's modules are put back afterwards, also where it raises. Numbers are as the model gives
    them: outputs that are not finite make a loss and a calibration error that are not. Raises ValueError for an empty
    split.
    """
    if len(split) == 0:
        raise ValueError("a split must hold at least one example to be evaluated, got none")
    totals = torch.zeros(2 + CALIBRATION_BINS, dtype=torch.float64, device=split.inputs.device)
    batch_size = min(_MAX_BATCH_SIZE, max(1, _BATCH_VALUES // split.inputs[0].numel()))
    with evaluation_mode(model):
        batches = (torch.split(part, batch_size) for part in (split.inputs, split.targets))
        for raw, targets in zip(*batches, strict=True):
            inputs = prepare(raw)
            if inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=memory_format)
            with autocast():
                outputs = model(inputs)
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            totals[0] += objective.per_example(model, outputs, targets).sum(dtype=torch.float64)
            if objective.task != "regression":
                confidence, is_right = predictions(objective.task, outputs, targets)
                totals[1] += is_right.sum()
                totals[2:] += calibration_gaps(confidence, is_right)
    loss, right, *gaps = (totals / len(split)).tolist()
    if objective.task == "regression":
        return Evaluation(loss, None, None)
    return Evaluation(loss, right, sum(abs(gap) for gap in gaps))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def predictions(task: Task, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors (b,): the probability given to the predicted class, in float64, and whether the class is right.

    Of a classification, outputs are (b, classes) logits and targets (b,) classes; of a binary task, outputs are (b, 1)
    logits z of the class 1, whose probability is σ(z) and which z = 0 predicts, and targets are (b,) in {−1, 1}.
    """
    if task == "binary":
        logits = outputs.squeeze(1).double()
        return torch.sigmoid(logits.abs()), (logits >= 0) == (targets > 0)
    confidence, predicted = outputs.double().softmax(1).max(1)
    return confidence, predicted == targets


def calibration_gaps(confidence: Tensor, is_right: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """(bins,): Σ over a bin's examples of (is_right − confidence), bin m holding confidences in ((m−1)/bins, m/bins].

    confidence: (b,), float64, in [0, 1]. The sums of several batches add up to those of all their examples, and
    Σ |gap| / n is the expected calibration error, Σ_m (|B_m|/n)·|accuracy(B_m) − confidence(B_m)|, of Guo et al. 2017
    (arXiv 1706.04599, eq. 3).
    """
    inner_edges = torch.arange(1, bins, dtype=confidence.dtype, device=confidence.device) / bins
    bin_of = torch.bucketize(confidence, inner_edges)
    membership = bin_of == torch.arange(bins, device=confidence.device)[:, None]
    gaps: Tensor = membership.to(confidence.dtype) @ (is_right.to(confidence.dtype) - confidence)
    return gaps
