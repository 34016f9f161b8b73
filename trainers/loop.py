"""The training loop: `for result in train(config): ...`. It knows no logger, no scheduler and no file."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.catalog import DATASETS
from trainers.config import TrainConfig
from trainers.datasets import Dataset, load_dataset
from trainers.evaluation import evaluate
from trainers.models import build_model
from trainers.sampling import (
    GradientNormSampler,
    LipschitzSampler,
    MiniBatch,
    Sampler,
    UniformSampler,
    effective_sample_size,
    gradient_norm_scores,
    smoothness_constants,
)
from trainers.schedules import lam_at, learning_rate_at
from trainers.unified_sam import UnifiedSAM


class DivergedError(RuntimeError):
    """Training left the finite numbers; `epoch` and `metric` say when and where."""

    def __init__(self, epoch: int, metric: str, value: float) -> None:
        super().__init__(f"training diverged: {metric} is {value} in epoch {epoch}")
        self.epoch, self.metric, self.value = epoch, metric, value

    def __reduce__(self) -> tuple[type[DivergedError], tuple[int, str, float]]:
        return type(self), (self.epoch, self.metric, self.value)


class DeviceUnavailableError(RuntimeError):
    """The device asked for is not on this machine."""


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch came to.

    epoch: from 1. metrics: those of `trainers.config.reported_metrics`, the test ones in the last epoch only. Means
    are over the epoch's steps; lr, rho and lambda are those of its last step; effective_sample_size is a count, at
    most the batch size. All are finite.
    """

    epoch: int
    metrics: dict[str, float]
    is_last: bool


def train(config: TrainConfig, *, threads: int | None = None) -> Iterator[EpochResult]:
    """Trains from start to end, one result per epoch; see `Training` for the errors and for resuming."""
    training = Training(config, threads=threads)
    while training.epochs_done < config.epochs:
        yield training.run_epoch()


class Training:
    """One training run between two epochs.

    threads: CPU threads of torch, for the whole process; None leaves them as they are. On one machine's CPU and with
    the same number of threads, the same configuration gives the same numbers bit for bit, resumed or not.
    Raises DatasetUnavailableError and DeviceUnavailableError.
    """

    def __init__(self, config: TrainConfig, *, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        device = _device(config.device)
        self.config = config
        self.epochs_done = 0
        self._dataset = load_dataset(config.dataset).to(device)
        self._model = build_model(config.model, DATASETS[config.dataset], seed=config.seed).to(device)
        self._optimizer = _optimizer(config, self._model, is_fused=device.type == "cuda")
        self._sampler = _sampler(config, self._dataset, self._model)

    def run_epoch(self) -> EpochResult:
        """Trains for one epoch, evaluates, and counts it.

        Raises DivergedError where a loss or another metric is no longer finite, and RuntimeError after the last epoch.
        """
        if self.epochs_done >= self.config.epochs:
            raise RuntimeError(f"all {self.config.epochs} epochs are done")
        metrics = self._train_one_epoch()
        self.epochs_done += 1
        is_last = self.epochs_done == self.config.epochs
        metrics.update(self._evaluate("val"))
        if is_last:
            metrics.update(self._evaluate("test"))
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(self.epochs_done, name, value)
        return EpochResult(self.epochs_done, metrics, is_last)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the next epoch depends on, fit for `trainers.checkpoint`."""
        return copy.deepcopy(
            {
                "epochs_done": self.epochs_done,
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "sampler": self._sampler.state_dict(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of a run with the same dataset, model, optimizer and sampling.

        The settings stay those of this run's configuration, so that a run can go on from another one's state.
        """
        state = copy.deepcopy(state)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)
        self._sampler.load_state_dict(state["sampler"])
        self.epochs_done = state["epochs_done"]

    def _train_one_epoch(self) -> dict[str, float]:
        train_split, config = self._dataset.train, self.config
        steps_per_epoch = math.ceil(len(train_split) / config.batch_size)
        total_steps = config.epochs * steps_per_epoch
        recorded: list[Tensor] = []  # read back once an epoch, not once a step
        started = time.perf_counter()
        for batch in self._sampler.batches():
            lr = learning_rate_at(config.lr_schedule, self._optimizer.t, lr=config.lr, total_steps=total_steps)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            loss = self._optimizer.step(partial(self._loss_and_gradient, batch), model=self._model)
            recorded.append(
                torch.stack(
                    (
                        loss.detach() * len(batch.indices),
                        self._optimizer.last_grad_norm,
                        self._optimizer.last_perturbation_norm,
                        effective_sample_size(batch.weights),
                    )
                )
            )
        totals = torch.stack(recorded).sum(0, dtype=torch.float64).tolist()
        duration_s = time.perf_counter() - started
        loss_sum, grad_norm_sum, perturbation_norm_sum, sample_size_sum = totals
        return {
            "train_loss": loss_sum / len(train_split),
            "grad_norm": grad_norm_sum / steps_per_epoch,
            "perturbation_norm": perturbation_norm_sum / steps_per_epoch,
            "lr": float(lr),
            "rho": float(config.rho),
            "lambda": float(lam_at(config.lam, self._optimizer.t)),
            "samples_per_s": len(train_split) / duration_s,
            "effective_sample_size": sample_size_sum / steps_per_epoch,
        }

    def _loss_and_gradient(self, batch: MiniBatch) -> Tensor:
        """The optimizer's closure, called at the weights and again at the ascent point, with the same mini-batch."""
        inputs, targets = self._dataset.train.inputs[batch.indices], self._dataset.train.targets[batch.indices]
        loss = self._dataset.objective.weighted_mean(self._model, inputs, targets, batch.weights)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _evaluate(self, prefix: str) -> dict[str, float]:
        split = self._dataset.validation if prefix == "val" else self._dataset.test
        evaluation = evaluate(self._model, split, self._dataset.objective)
        metrics = {f"{prefix}_loss": evaluation.loss}
        if evaluation.accuracy is not None:
            metrics[f"{prefix}_accuracy"] = evaluation.accuracy
        return metrics


_BASE_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise DeviceUnavailableError("device is cuda, and torch finds no CUDA device here; use auto or cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _optimizer(config: TrainConfig, model: nn.Module, *, is_fused: bool) -> UnifiedSAM:
    """The base optimizer in Unified SAM; fused kernels skip a step without asking the host."""
    arguments: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": is_fused}
    if config.optimizer == "sgd":
        arguments["momentum"] = config.momentum
    base = _BASE_OPTIMIZERS[config.optimizer]
    return UnifiedSAM(model.parameters(), base, rho=config.rho, lam=config.lam, **arguments)


def _sampler(config: TrainConfig, dataset: Dataset, model: nn.Module) -> Sampler:
    """The sampler of the configuration, with a random stream of its own, apart from the initialisation's."""
    split = dataset.train
    device = split.inputs.device
    generator = torch.Generator(device).manual_seed(_sampling_seed(config.seed))
    if config.sampling == "lipschitz":
        objective = dataset.objective
        smoothness = smoothness_constants(split.inputs, objective.task, regulariser=objective.regulariser)
        return LipschitzSampler(smoothness, config.batch_size, generator)
    if config.sampling == "gradient_norm":
        return GradientNormSampler(
            len(split),
            config.batch_size,
            generator,
            presample_factor=config.presample_factor,
            passes=2 if config.rho > 0 else 1,
            score=partial(_scores, model, dataset),
        )
    return UniformSampler(len(split), config.batch_size, generator)


@torch.no_grad()
def _scores(model: nn.Module, dataset: Dataset, indices: Tensor) -> Tensor:
    """Gradient-norm scores of these training examples, in evaluation mode so that no running statistic moves."""
    model.eval()
    logits = model(dataset.train.inputs[indices])
    model.train()
    return gradient_norm_scores(logits, dataset.train.targets[indices])


def _sampling_seed(seed: int) -> int:
    """Another seed than the initialisation's, of 32 bits: torch's CPU generator ignores higher ones."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
