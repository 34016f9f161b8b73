"""What a driver and its workers say to each other through Tune: orders as its config, reports as its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from service.spec import StudySpec
from service.spec_sections import Mode
from service.tuning.decisions import IssuedTrial


@dataclass(frozen=True, slots=True)
class TrialOrder:
    """What a worker is told to do. `train` is a TrainConfig by wire names; every value is plain, for Tune's config.

    epochs_done: how many epochs earlier attempts have reported; this one goes on from there, so that none is missing.
    max_trial_s: how long the trial may train, over all of its attempts. seconds_left: how much of that this one has.
    best_by: the metric by which an epoch is better than those before, and is saved; None: none is saved for that.
    """

    study_id: str
    trial_id: str
    attempt: int
    epochs_done: int
    train: dict[str, Any]
    threads: int
    storage_uri: str
    checkpoint_every_epochs: int
    keep_last_checkpoint: bool
    max_trial_s: float | None = None
    seconds_left: float | None = None
    best_by: str | None = None
    best_mode: Mode = "max"

    def to_tune_config(self) -> dict[str, Any]:
        """The order as Tune's config of one trial: a list, because a Tune trial may execute several of ours."""
        return {"orders": [asdict(self)]}

    @classmethod
    def from_tune_config(cls, config: dict[str, Any]) -> TrialOrder:
        """The order in Tune's config; today there is exactly one."""
        (order,) = config["orders"]
        return cls(**_known(cls, order))


def order_for_trial(spec: StudySpec, study_id: str, issued: IssuedTrial, *, storage_uri: str) -> TrialOrder:
    """What a worker is to do for a trial of a study with this spec."""
    train = spec.train_config(issued.point, issued.seed).to_mapping()
    if train["device"] == "auto" and not spec.resources_per_trial.gpu:
        train["device"] = "cpu"  # Ray does not hide a node's GPUs from a worker that was given none
    every_epochs, keep = spec.checkpoint.every_epochs, spec.checkpoint.keep
    return TrialOrder(
        study_id=study_id,
        trial_id=issued.trial_id,
        attempt=issued.attempt,
        epochs_done=issued.epochs_done,
        train=train,
        threads=max(1, int(spec.resources_per_trial.cpu)),
        storage_uri=storage_uri,
        checkpoint_every_epochs=every_epochs,
        max_trial_s=issued.max_trial_s,
        seconds_left=issued.seconds_left,
        keep_last_checkpoint=bool(every_epochs) and keep in ("latest", "latest_and_best"),
        best_by=spec.objective.metric if every_epochs and keep in ("best", "latest_and_best") else None,
        best_mode=spec.objective.mode,
    )


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What a worker says after an epoch, or of what ended the trial before its last one.

    error: the traceback of a training that failed. divergence: where one left the finite numbers, in words. Neither
    comes with an epoch's metrics. warning: what went wrong without ending anything, such as a checkpoint that could not
    be written. is_saved: whether the next attempt can go on from this epoch or a later one.
    """

    trial_id: str
    attempt: int
    epoch: int
    metrics: dict[str, float]
    is_last: bool
    error: str | None = None
    divergence: str | None = None
    warning: str | None = None
    is_saved: bool = False

    def to_tune_result(self) -> dict[str, Any]:
        """The report as Tune's result, with what Tune's schedulers look at beside it."""
        return {"reports": [asdict(self)], "epoch": self.epoch, **self.metrics, "done": self.is_end}

    @property
    def is_result(self) -> bool:
        """Whether it tells of an epoch."""
        return self.error is None and self.divergence is None

    @property
    def is_end(self) -> bool:
        """Whether the trial's training is over."""
        return self.is_last or not self.is_result

    @classmethod
    def from_tune_result(cls, result: dict[str, Any]) -> TrialReport:
        """The report in Tune's result; today there is exactly one."""
        (report,) = result["reports"]
        return cls(**_known(cls, report))


def _known(kind: type[TrialOrder | TrialReport], said: dict[str, Any]) -> dict[str, Any]:
    """What this version knows of it: a driver may be of another one than its workers, in the midst of an upgrade."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in said.items() if name in names}
