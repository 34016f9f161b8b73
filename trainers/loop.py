"""The training loop: `for result in train(config): ...`. It knows no logger, no scheduler and no file."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from trainers import assembly
from trainers.assembly import DeviceUnavailableError
from trainers.augmentation import augment
from trainers.catalog import MODELS
from trainers.closed_form import ClosedFormSteps
from trainers.config import TrainConfig
from trainers.datasets import Split
from trainers.evaluation import evaluate
from trainers.landscape import landscape
from trainers.metrics import LANDSCAPE, SAMPLING
from trainers.not_finite import DivergedError, NotFiniteError
from trainers.sampling import MiniBatch, output_gradient_norms

__all__ = ["DeviceUnavailableError", "DivergedError", "EpochResult", "NotFiniteError", "Training", "train"]

_LEAST_LOSS_SCALE = 1.0
"""Below it what is not finite is no matter of float16's range any more, but of the run."""

_SMALL = 2**16
"""Numbers in inputs that the caches hold with what a model makes of them: 1,024 digits, or 83 images of CIFAR."""

_SAMPLING, _AUGMENTATION, _LAYERS, _LANDSCAPE = 1, 2, 3, 4  # the random streams of a run


class OtherRunError(ValueError):
    """A state that this run cannot go on from, since its own sampling or its kind of device is another."""


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What the epochs since the last result came to.

    epoch: the last of them, counted from 1. metrics: those of `trainers.metrics`, the test ones in the last epoch only.
    Means are over the steps of these epochs; those of grad_norm and perturbation_norm leave out steps that were skipped
    for their first gradient. largest_weight is over all of them; lr, rho and lambda are those of the last step.
    skipped_steps counts from the start of the run. suboptimality and bound are relative to the initial suboptimality.
    All are finite. train_loss and the two norms are missing where float16's loss scale was too large in every step.
    """

    epoch: int
    metrics: dict[str, float]
    is_last: bool


def train(config: TrainConfig, *, threads: int | None = None) -> Iterator[EpochResult]:
    """Trains from start to end, one result every `report_every_epochs`; see `Training` for errors and resuming."""
    training = Training(config, threads=threads)
    while training.epochs_done < config.epochs:
        yield training.next_result()


class Training:
    """One training run between two results.

    threads: CPU threads of torch, for the whole process; None leaves them as they are. On one machine's CPU and with
    the same number of threads, the same configuration gives the same numbers bit for bit, resumed or not.
    Raises DatasetUnavailableError, DeviceUnavailableError, and InvalidTrainConfigError where rho is too large for the
    theorems to have a learning rate, or the sampling would never draw some example.
    """

    def __init__(self, config: TrainConfig, *, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        device = assembly.device_of(config.device)
        self.config = config
        self.epochs_done = 0
        self._device = device
        self._problem = assembly.problem_of(config)
        self._dataset = assembly.dataset_of(config, self._problem).to(device)
        self._steps_per_epoch = math.ceil(len(self._dataset.train) / config.batch_size)
        self._sizes = assembly.step_sizes_of(config, self._problem, steps_per_epoch=self._steps_per_epoch)
        self._model = assembly.model_of(config, self._dataset, device)
        self._params = list(self._model.parameters())
        is_ours = MODELS[config.model].code is None  # what another's draws, nobody can tell
        self._has_random_layers = not is_ours or any(map(_is_random, self._model.modules()))
        self._forward: Callable[[Tensor], Tensor] = self._model
        if config.compile != "none":
            self._forward = torch.compile(self._model, mode=config.compile)
        self._autocast = assembly.autocast_of(config, device)
        self._memory_format = assembly.memory_format_of(config)
        self._scaler = assembly.scaler_of(config, device)
        self._optimizer = assembly.optimizer_of(config, self._model, self._sizes)
        self._closed_form = assembly.closed_form_of(config, self._problem, device)
        sampling = assembly.generator_of(config, _SAMPLING, device)
        self._sampler = assembly.sampler_of(config, self._dataset, self._scores, sampling)
        self._augmentation = assembly.generator_of(config, _AUGMENTATION, device)
        self._fill = None if config.augmentation == "none" else self._dataset.fill
        self._layers = assembly.generator_of(config, _LAYERS, device)
        self._initial_suboptimality = self._suboptimality() if self._problem is not None else 1.0
        self._bound = self._initial_suboptimality

    @property
    def device_name(self) -> str:
        """What it trains on: "cpu", or what CUDA calls the device."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type

    def next_result(self) -> EpochResult:
        """Trains up to the next epoch that is reported, evaluates, and counts.

        Raises DivergedError where a loss, or another metric of the training itself, is no longer finite, NotFiniteError
        where only what is measured beside it is, and RuntimeError after the last epoch.
        """
        config = self.config
        if self.epochs_done >= config.epochs:
            raise RuntimeError(f"all {config.epochs} epochs are done")
        every = config.report_every_epochs
        until = min(config.epochs, (self.epochs_done // every + 1) * every)
        with self._own_random_layers():
            metrics = self._train_epochs(until - self.epochs_done)
        self.epochs_done = until
        is_last = until == config.epochs
        if self._dataset.validation is not None:
            metrics |= self._evaluate("val", self._dataset.validation)
        if self._problem is not None:
            metrics["suboptimality"] = self._suboptimality() / self._initial_suboptimality
        if self._sizes.bounding is not None:
            metrics["bound"] = self._bound / self._initial_suboptimality
        if config.landscape == "every_epoch" or (config.landscape == "last" and is_last):
            metrics |= self._landscape()
        if is_last:
            metrics |= self._evaluate("test", self._dataset.test)
        for name, value in metrics.items():
            if not math.isfinite(value):
                is_beside = name in LANDSCAPE or name in SAMPLING
                raise (NotFiniteError if is_beside else DivergedError)(until, name, value)
        return EpochResult(until, metrics, is_last)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the next epoch depends on, fit for `trainers.checkpoint`."""
        return copy.deepcopy(
            {
                "epochs_done": self.epochs_done,
                "sampling": self.config.sampling,
                "device": self._device.type,
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "sampler": self._sampler.state_dict(),
                "augmentation": self._augmentation.get_state(),
                "layers": self._layers.get_state(),
                "scaler": self._scaler.state_dict() if self._scaler else {},
                "bound": self._bound,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of a run with the same dataset, model, optimizer and sampling, on such a device.

        The settings stay those of this run's configuration, so that a run can go on from another one's state.
        Raises OtherRunError for the state of another sampling, or of another kind of device, whose generators draw
        other numbers; nothing has changed then.
        """
        sampling = state.get("sampling", self.config.sampling)  # earlier versions did not say
        if sampling != self.config.sampling:
            raise OtherRunError(f"the state is of {sampling!r} sampling, this run's is {self.config.sampling!r}")
        device = state.get("device", self._device.type)  # neither
        if device != self._device.type:
            raise OtherRunError(f"the state is of a run on {device!r}, and this one is on {self._device.type!r}")
        state = copy.deepcopy(state)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
        limits = (self._optimizer.max_perturbation, self._optimizer.clip_norm)
        self._sampler.load_state_dict(state["sampler"])
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)
        self._optimizer.max_perturbation, self._optimizer.clip_norm = limits
        self._augmentation.set_state(state["augmentation"].cpu())
        self._layers.set_state(state["layers"].cpu())
        if self._scaler and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._bound = state["bound"]
        self.epochs_done = state["epochs_done"]

    def _train_epochs(self, epochs: int) -> dict[str, float]:
        """Trains for so many epochs, reading back from the device once an epoch and never once a step.

        The means leave out the steps whose first gradient is not finite; they are not numbers where all are left out,
        and are not there at all where a loss scale was too large in each of few steps, and is lower now.
        """
        totals = torch.zeros(5, dtype=torch.float64, device=self._device)
        sampled: list[dict[str, float]] = []
        started = time.perf_counter()
        for _ in range(epochs):
            first_step = self._optimizer.t
            totals += self._closed_form_epoch(self._closed_form) if self._closed_form else self._epoch()
            self._bound = self._sizes.bound_after(self._bound, range(first_step, self._optimizer.t))
            sampled.append(self._sampler.diagnostics())
        per_example, per_step = totals[0] / totals[3], totals[1:3] / totals[4]
        train_loss, grad_norm, perturbation_norm = torch.cat((per_example.view(1), per_step)).tolist()
        duration_s = time.perf_counter() - started
        means = {"train_loss": train_loss, "grad_norm": grad_norm, "perturbation_norm": perturbation_norm}
        if self._scaler is not None and math.isnan(grad_norm) and self._scaler.get_scale() >= _LEAST_LOSS_SCALE:
            means = {}
        last = self._sizes.at(self._optimizer.t - 1)
        return {
            **means,
            "skipped_steps": float(self._optimizer.skipped_steps),
            "lr": last.lr,
            "rho": last.rho,
            "lambda": last.lam,
            "samples_per_s": epochs * len(self._dataset.train) / duration_s,
            **{name: sum(one[name] for one in sampled) / epochs for name in sampled[0]},
            "largest_weight": max(one["largest_weight"] for one in sampled),
        }

    def _epoch(self) -> Tensor:
        """Trains for one epoch; (5,): the sums over its steps of loss, norms, examples and steps, see `StepSums`."""
        totals = torch.zeros(5, dtype=torch.float64, device=self._device)
        one = torch.ones((), dtype=torch.float64, device=self._device)
        for batch in self._sampler.batches():
            lr = self._sizes.learning_rate(self._optimizer.t)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            loss = self._step(batch)
            examples, norm = len(batch.indices), self._optimizer.last_grad_norm
            of_step = (loss * examples, norm, self._optimizer.last_perturbation_norm, one * examples, one)
            totals += torch.where(torch.isfinite(norm), torch.stack(of_step), 0.0)
        return totals

    def _closed_form_epoch(self, steps: ClosedFormSteps) -> Tensor:
        """`_epoch` without model and optimizer, whose weights and step count go on from where this ends."""
        batches, first_step = list(self._sampler.batches()), self._optimizer.t
        (weight,) = self._params
        sums, losses = steps.run(weight.detach().view(-1), batches, lambda step: self._sizes.at(first_step + step))
        for batch, of_batch in zip(batches, losses, strict=True):
            self._sampler.observe(batch, of_batch)
        self._optimizer.count_steps(len(batches), skipped=sums.skipped)
        for group in self._optimizer.param_groups:
            group["lr"] = self._sizes.learning_rate(self._optimizer.t - 1)
        means = (sums.loss, sums.grad_norm, sums.perturbation_norm, sums.examples, sums.steps)
        return torch.tensor(means, dtype=torch.float64)

    def _step(self, batch: MiniBatch) -> Tensor:
        """One step of Unified SAM; (), the mean loss at the weights.

        Both passes see the same inputs and weights, and layers such as dropout draw the same in both, so that they are
        of one and the same function.
        """
        inputs, targets = self._inputs(batch.indices), self._dataset.train.targets.index_select(0, batch.indices)
        size = self.config.micro_batch_size
        losses: list[Tensor] = []
        if isinstance(size, str):
            closure = self._closure(inputs, targets, batch.weights, losses)
            loss = self._optimizer.step(closure, model=self._model, scaler=self._scaler)
            first_losses = losses[0]
        else:
            parts = list(zip(*(torch.split(part, size) for part in (inputs, targets, batch.weights)), strict=True))
            closures = [self._closure(*part, losses) for part in parts]
            shares = [len(part[1]) / len(targets) for part in parts]
            loss = self._optimizer.step_micro_batches(closures, shares, model=self._model, scaler=self._scaler)
            first_losses = torch.cat(losses[:: len(losses) // len(parts)])
        self._sampler.observe(batch, first_losses)
        return loss.detach()

    def _closure(self, *batch: Any) -> Callable[[], Tensor]:
        """What the optimizer calls twice: `_pass` on this batch, with the same draws of the layers both times."""
        once = partial(self._pass, *batch)
        if not self._has_random_layers:
            return once
        states: list[Tensor] = []

        def again() -> Tensor:
            if states:
                self._set_random_state(states[0])
            else:
                states.append(self._random_state())
            return once()

        return again

    def _pass(self, inputs: Tensor, targets: Tensor, weights: Tensor, losses: list[Tensor]) -> Tensor:
        """The backward pass of the mean weighted loss, which it returns; adds the examples' own losses to `losses`."""
        with self._autocast():
            outputs = self._forward(inputs)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        objective = self._dataset.objective
        per_example = objective.losses(outputs, targets)
        losses.append(per_example.detach())
        loss = (weights * objective.regularised(self._params, per_example)).mean()
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        return loss

    def _inputs(self, indices: Tensor) -> Tensor:
        """(b, …): these training examples, augmented and prepared for the model."""
        inputs = self._dataset.train.inputs.index_select(0, indices)  # ten times faster than inputs[indices]
        if self._fill is not None:
            inputs = augment(inputs, self.config.augmentation, self._augmentation, fill=self._fill)
        return self._prepare(inputs)

    def _prepare(self, inputs: Tensor) -> Tensor:
        inputs = self._dataset.prepare(inputs)
        return inputs.contiguous(memory_format=self._memory_format) if inputs.dim() == 4 else inputs

    @torch.no_grad()
    def _scores(self, indices: Tensor) -> Tensor:
        """(m,): gradient-norm scores of these training examples, in evaluation mode so that no running statistic moves.

        Small ones all at once; others in pieces of the batch size, which caches hold better and a compiled model knows
        already. Each piece is scored before the next forward call, which may overwrite its outputs where the model runs
        as a CUDA graph.
        """
        numbers = len(indices) * self._dataset.train.inputs.shape[1:].numel()
        is_small = numbers <= _SMALL and self._forward is self._model
        self._model.eval()
        scores = []
        for piece in torch.split(indices, len(indices) if is_small else self.config.batch_size):
            inputs = self._prepare(self._dataset.train.inputs.index_select(0, piece))
            with self._autocast():
                outputs = self._forward(inputs)
            targets = self._dataset.train.targets.index_select(0, piece)
            scores.append(output_gradient_norms(self._dataset.objective.task, outputs, targets))
        self._model.train()
        return torch.cat(scores)

    def _evaluate(self, prefix: str, split: Split) -> dict[str, float]:
        evaluation = evaluate(
            self._model,
            split,
            self._dataset.objective,
            prepare=self._dataset.prepare,
            autocast=self._autocast,
            memory_format=self._memory_format,
        )
        metrics = {f"{prefix}_loss": evaluation.loss}
        if evaluation.accuracy is not None and evaluation.calibration_error is not None:
            metrics[f"{prefix}_accuracy"] = evaluation.accuracy
            metrics[f"{prefix}_calibration_error"] = evaluation.calibration_error
        return metrics

    def _landscape(self) -> dict[str, float]:
        """Measured in full precision, on the first training examples, without augmentation."""
        split, examples = self._dataset.train, self.config.landscape_examples
        return landscape(
            self._model,
            self._dataset.objective,
            self._prepare(split.inputs[:examples]),
            split.targets[:examples],
            rho=self.config.landscape_rho,
            generator=assembly.generator_of(self.config, _LANDSCAPE, self._device),
        )

    def _suboptimality(self) -> float:
        """f(x) − f* of the synthetic problem."""
        assert self._problem is not None  # noqa: S101 (narrows the type for mypy)
        (weight,) = self._model.parameters()
        return float(self._problem.suboptimality(weight.detach().flatten().cpu()))

    @contextmanager
    def _own_random_layers(self) -> Iterator[None]:
        """Within, layers such as dropout draw from this run's own stream; the process' own goes on untouched."""
        if not self._has_random_layers:
            yield
            return
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            self._set_random_state(self._layers.get_state())
            yield
            self._layers.set_state(self._random_state())

    def _random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _set_random_state(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


def _is_random(layer: nn.Module) -> bool:
    """Whether it draws at random in training: dropout of any kind, stochastic depth, attention with dropout."""
    name = type(layer).__name__
    is_attention = isinstance(layer, nn.MultiheadAttention) and layer.dropout > 0
    return isinstance(layer, _DropoutNd) or name == "StochasticDepth" or is_attention
