"""The parts of a training run, each built from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from trainers.catalog import DATASETS, OPTIMIZERS, SAMPLINGS, facts_of
from trainers.closed_form import ClosedFormSteps, Sizes
from trainers.config import LAMBDA_SCHEDULES, InvalidTrainConfigError, TrainConfig
from trainers.datasets import Dataset, Split, load_dataset
from trainers.knob import ConfigProblem
from trainers.metrics import has_bound
from trainers.models import build_model
from trainers.problems import Problem, ProblemSettings, problem
from trainers.rules import asks_for_theory
from trainers.sampling import ImprobableExampleError, Sampler, build_sampler, smoothness_of_chunks
from trainers.schedules import Schedule, Setting, learning_rate_at, value_at
from trainers.theory import Theory
from trainers.unified_sam import UnifiedSAM

_CHUNK = 4096


class DeviceUnavailableError(RuntimeError):
    """The device asked for is not on this machine."""


def device_of(name: str) -> torch.device:
    """The device of this name, "auto" taking CUDA where there is one. Raises DeviceUnavailableError."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise DeviceUnavailableError("device is cuda, and torch finds no CUDA device here; use auto or cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def problem_of(config: TrainConfig) -> Problem | None:
    """The synthetic problem that is trained on; None for a dataset that is loaded."""
    if not DATASETS[config.dataset].is_problem:
        return None
    return problem(
        ProblemSettings.of(
            config.dataset,
            n_samples=config.n_samples,
            n_features=config.n_features,
            condition_number=config.condition_number,
            spectrum=config.spectrum,
            targets=config.targets,
            regulariser=config.regulariser,
        )
    )


def dataset_of(config: TrainConfig, problem: Problem | None) -> Dataset:
    """The dataset on the CPU, its training split cut to `train_examples`. Raises DatasetUnavailableError."""
    if problem is not None:
        return problem.dataset()
    dataset = load_dataset(config.dataset, config.validation)
    if not isinstance(config.train_examples, int):
        return dataset
    kept = slice(config.train_examples)
    train = Split(dataset.train.inputs[kept], dataset.train.targets[kept])
    return Dataset(train, dataset.validation, dataset.test, dataset.objective, dataset.normalisation)


def model_of(config: TrainConfig, dataset: Dataset, device: torch.device) -> nn.Module:
    """The model with its initial weights, in the precision of its inputs, on the device."""
    model = build_model(config.model, facts_of(config.to_mapping()), seed=config.seed)
    inputs = dataset.train.inputs
    dtype = inputs.dtype if inputs.is_floating_point() else torch.float32
    model.to(device=device, dtype=dtype)
    return model.to(memory_format=memory_format_of(config))  # type: ignore[call-overload, no-any-return]


def memory_format_of(config: TrainConfig) -> torch.memory_format:
    return torch.channels_last if config.memory_format == "channels_last" else torch.contiguous_format


def autocast_of(config: TrainConfig, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context that the model runs in."""
    if config.precision == "float32":
        return nullcontext
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float16
    return lambda: torch.autocast(device.type, dtype)


def scaler_of(config: TrainConfig, device: torch.device) -> GradScaler | None:
    """What keeps the gradients of float16 from vanishing."""
    return GradScaler(device.type) if config.precision == "float16" else None


@dataclass(frozen=True)
class StepSizes:
    """ρ_t, λ_t and γ_t of a run, its constants taken from the theorems where the configuration says so.

    bounding: the theory whose bound holds for these sizes; None where the run reports none.
    """

    rho: Setting
    lam: Setting
    learning_rate: Callable[[int], float]
    bounding: Theory | None

    def at(self, step: int) -> Sizes:
        """Those of a step, from 0; ρ and λ count their t from 1."""
        t = step + 1
        return Sizes(self.learning_rate(step), float(value_at(self.rho, t)), float(value_at(self.lam, t)))

    def bound_after(self, bound: float, steps: range) -> float:
        """The bound after these steps, from the one before; unchanged where none is reported."""
        if self.bounding is None:
            return bound
        for step in steps:
            bound = self.bounding.next_bound(bound, self.learning_rate(step), value_at(self.rho, step + 1))
        return bound


def step_sizes_of(config: TrainConfig, problem: Problem | None, *, steps_per_epoch: int) -> StepSizes:
    """The step sizes. Raises InvalidTrainConfigError where lr is "theory" and rho is not below ρ* of Theorem 3.2."""
    values, total_steps = config.to_mapping(), config.epochs * steps_per_epoch
    rho, lr, theory = config.rho, config.lr, None
    if problem is not None and asks_for_theory(values):
        assert not isinstance(config.lam, str)  # noqa: S101 (a rule of the configuration; narrows the type)
        theory = Theory(problem, config.sampling, config.batch_size, config.lam, uniform_share_of(config))
        rho = theory.rho if rho == "theory" else rho
        try:
            lr = theory.gamma_at(float(rho)) if lr == "theory" else lr
        except ValueError as error:
            raise InvalidTrainConfigError([ConfigProblem("rho", str(error))]) from error
    rho, lr = float(rho), float(lr)

    def learning_rate(step: int) -> float:
        return learning_rate_at(
            config.lr_schedule,
            step,
            lr=lr,
            total_steps=total_steps,
            warmup_steps=config.lr_warmup_epochs * steps_per_epoch,
            mu=problem.mu if problem is not None else None,
        )

    return StepSizes(
        rho=_rho(config, rho, total_steps, steps_per_epoch),
        lam=_lam(config, total_steps, steps_per_epoch),
        learning_rate=learning_rate,
        bounding=theory if has_bound(values) else None,
    )


def _rho(config: TrainConfig, rho: float, total_steps: int, steps_per_epoch: int) -> Setting:
    warmup_steps = config.rho_warmup_epochs * steps_per_epoch
    if config.rho_schedule == "constant" and not warmup_steps:
        return rho
    return _schedule(
        config.rho_schedule, rho, config.rho_end, total_steps, warmup_steps, _steps_per_t(config, steps_per_epoch)
    )


def _lam(config: TrainConfig, total_steps: int, steps_per_epoch: int) -> Setting:
    warmup_steps, steps_per_t = config.lambda_warmup_epochs * steps_per_epoch, _steps_per_t(config, steps_per_epoch)
    if isinstance(config.lam, str):
        return Schedule(config.lam, warmup_steps=warmup_steps, steps_per_t=steps_per_t)
    if config.lambda_schedule == "constant" and not warmup_steps:
        return config.lam
    return _schedule(config.lambda_schedule, config.lam, config.lambda_end, total_steps, warmup_steps, steps_per_t)


def _schedule(kind: str, start: float, end: float, total_steps: int, warmup_steps: int, steps_per_t: int) -> Schedule:
    if kind in ("linear", "cosine"):
        return Schedule(kind, start, end, total_steps, warmup_steps)
    return Schedule(kind, start, warmup_steps=warmup_steps, steps_per_t=steps_per_t if kind in LAMBDA_SCHEDULES else 1)


def _steps_per_t(config: TrainConfig, steps_per_epoch: int) -> int:
    return steps_per_epoch if config.t_counts == "epochs" else 1


def optimizer_of(config: TrainConfig, model: nn.Module, sizes: StepSizes) -> UnifiedSAM:
    """The base optimizer in Unified SAM, with its fused kernels, which skip a step without asking the host."""
    facts = OPTIMIZERS[config.optimizer]
    arguments: dict[str, Any] = {"lr": sizes.learning_rate(0)}
    if facts.has_weight_decay:
        arguments["weight_decay"] = config.weight_decay
    if facts.has_momentum:
        arguments["momentum"] = config.momentum
    if facts.has_fused:
        arguments["fused"] = True
    return UnifiedSAM(
        model.parameters(),
        getattr(torch.optim, facts.torch_name),
        rho=sizes.rho,
        lam=sizes.lam,
        adaptive=config.perturbation == "adaptive",
        max_perturbation=None if isinstance(config.max_perturbation, str) else config.max_perturbation,
        clip_norm=None if isinstance(config.gradient_clip, str) else config.gradient_clip,
        **arguments,
    )


def closed_form_of(config: TrainConfig, problem: Problem | None, device: torch.device) -> ClosedFormSteps | None:
    """What takes the steps of a synthetic problem without autograd; None where only the model and optimizer can."""
    is_plain = (
        config.optimizer == "sgd"
        and config.momentum == config.weight_decay == 0
        and config.perturbation == "l2"
        and {config.gradient_clip, config.max_perturbation, config.micro_batch_size, config.compile} == {"none"}
    )
    if problem is None or not is_plain or not SAMPLINGS[config.sampling].is_static or device.type != "cpu":
        return None
    return ClosedFormSteps(problem)


def sampler_of(
    config: TrainConfig, dataset: Dataset, score: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Sampler:
    """The sampler. score: maps indices (m,) of the training split to the scores (m,) of the current model.

    Raises InvalidTrainConfigError where the inputs' norms leave an example so improbable that it would never be drawn.
    """
    inputs, objective = dataset.train.inputs, dataset.objective
    smoothness = None
    if config.sampling == "lipschitz":
        smoothness = smoothness_of_chunks(
            (dataset.prepare(chunk) for chunk in torch.split(inputs, _CHUNK)),
            objective.task,
            regulariser=objective.regulariser,
            has_bias=objective.task == "classification",
        )
    try:
        return build_sampler(
            config.sampling,
            size=len(dataset.train),
            batch_size=config.batch_size,
            generator=generator,
            task=objective.task,
            smoothness=smoothness,
            score=score,
            uniform_share=uniform_share_of(config),
            presample_factor=config.presample_factor,
            passes=2 if _ascends(config) else 1,
        )
    except ImprobableExampleError as error:
        raise InvalidTrainConfigError([ConfigProblem("uniform_share", str(error))]) from error


def _ascends(config: TrainConfig) -> bool:
    """Whether ρ is above 0 at some step."""
    return config.rho != 0 or (config.rho_schedule in ("linear", "cosine") and config.rho_end > 0)


def uniform_share_of(config: TrainConfig) -> float:
    """α of the mixture with the uniform distribution."""
    if isinstance(config.uniform_share, str):
        return SAMPLINGS[config.sampling].uniform_share
    return config.uniform_share


def generator_of(config: TrainConfig, stream: int, device: torch.device) -> torch.Generator:
    """A random stream of its own, apart from the initialisation's and from those of other numbers."""
    seed = int(np.random.SeedSequence((config.seed, stream)).generate_state(1)[0])  # of 32 bits: torch ignores others
    return torch.Generator(device).manual_seed(seed)
