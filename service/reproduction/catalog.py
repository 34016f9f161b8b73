"""The experiments by name."""

from __future__ import annotations

from collections.abc import Callable

from service.reproduction import (
    ExperimentName,
    Scale,
    constant_vs_decreasing,
    importance,
    lambda_rho_table,
    lambda_sweep,
)
from service.reproduction.experiment import Experiment

_EXPERIMENTS: dict[ExperimentName, Callable[[Scale], Experiment]] = {
    ExperimentName.LAMBDA_SWEEP: lambda _: lambda_sweep.experiment(),
    ExperimentName.CONSTANT_VS_DECREASING: lambda _: constant_vs_decreasing.experiment(),
    ExperimentName.IMPORTANCE: lambda _: importance.experiment(),
    ExperimentName.LAMBDA_RHO: lambda_rho_table.experiment,
}


def experiment(name: ExperimentName, scale: Scale) -> Experiment:
    """The experiment of this name at this scale."""
    return _EXPERIMENTS[name](scale)
