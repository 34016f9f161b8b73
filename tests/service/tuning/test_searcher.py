"""What the driver makes of what Tune tells it, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.spec import StudySpec
from service.store.reports import AttemptLost, AttemptStarted, EpochReported, Report, TrialEnded
from service.store.snapshots import Instructions
from service.study import Intent, Reason, StudyState, TrialState
from service.tuning.decisions import Ending, IssuedTrial, Leaving
from service.tuning.idle_workers import IdleWorkers
from service.tuning.orders import TrialOrder, TrialReport
from service.tuning.progress import StudyProgress
from service.tuning.recorder import Recorder
from service.tuning.searcher import StudyCallback, StudySearcher, StudyStopper
from tests.service.tuning.test_progress import FakeAlgorithm


@dataclass
class KeptReports:
    """A recorder that keeps what it is given."""

    instructions: Instructions | None = None
    has_lost_lease: bool = False
    reports: list[Report] = field(default_factory=list)
    ticks: int = 0

    def record(self, report: Report, after_commit: Callable[[], None] | None = None) -> None:
        self.reports.append(report)

    def tick(self) -> None:
        self.ticks += 1


class Tune:
    """Tune's side of a study: it asks for trials, and tells what becomes of them."""

    def __init__(self, spec: StudySpec, recorded: Any) -> None:
        self.recorded = recorded
        self.seconds = 0.0
        self.idle = SimpleNamespace(given_back=0, give_back=self._give_back)
        self.recorder = KeptReports()
        recorder = cast(Recorder, self.recorder)
        self.algorithm: Any = FakeAlgorithm()
        self.progress = StudyProgress(
            spec, recorded.snapshot(), self.algorithm, recorded, stopwatch=lambda: self.seconds
        )
        self.searcher = StudySearcher(self.progress, recorder, self._order, cast(IdleWorkers, self.idle))
        self.stopper = StudyStopper(self.searcher)
        self.callback = StudyCallback(
            self.searcher,
            self.progress,
            recorder,
            metric="val_accuracy",
            why_stopped=lambda _: None,
            tidy_checkpoints=lambda _: None,
            trial_grace_s=5,
        )
        self.trials: list[Any] = []

    def _give_back(self) -> None:
        self.idle.given_back += 1

    def ask(self) -> Any:
        """A Tune trial whose worker has not begun yet, or what the searcher says instead."""
        trial = SimpleNamespace(
            trial_id=f"tune-{len(self.trials)}",
            node_ip="node-1",
            error_file=None,
            status="PENDING",
            temporary_state=SimpleNamespace(ray_actor=None),
        )
        answer = self.searcher.suggest(trial.trial_id)
        if not isinstance(answer, dict):
            return answer
        self.trials.append(trial)
        return trial

    def start(self, trial: Any) -> None:
        trial.status = "RUNNING"
        self.callback.on_trial_start(0, self.trials, trial)

    def report(self, trial: Any, epoch: int, *, is_last: bool = False, is_saved: bool = True) -> bool:
        """Whether the trial is to leave its worker."""
        issued = self.searcher.issued(trial.trial_id)
        report = TrialReport(
            issued.trial_id, issued.attempt, epoch, {"val_accuracy": 0.5}, is_last, is_saved=is_saved
        ).to_tune_result()
        self.callback.on_trial_result(0, self.trials, trial, report)
        return self.stopper(trial.trial_id, report)

    def want(self, intent: Intent, *, slots: int | None = None, **budget: Any) -> None:
        known = len(self.recorded.configurations)
        self.recorder.instructions = Instructions(intent, budget, slots, known)

    @staticmethod
    def _order(issued: IssuedTrial) -> TrialOrder:
        return TrialOrder("s", issued.trial_id, issued.attempt, issued.epochs_done, {}, 1, "", 1, True)


@pytest.fixture
def tune(make_spec: Callable[..., StudySpec], recorded: Any) -> Tune:
    return Tune(make_spec(budget={"max_trials": 4, "max_trial_s": 60}), recorded)


def test_a_worker_that_dies_of_its_start_has_had_an_attempt(tune: Tune) -> None:
    trial = tune.ask()
    tune.callback.on_trial_error(0, tune.trials, trial)
    assert tune.recorder.reports == [
        AttemptStarted("s-1-0", 1, "node-1"),
        AttemptLost("s-1-0", 1, "the worker ended without a word"),
    ]


def test_a_trial_that_diverges_is_stopped_early_and_worth_nothing(tune: Tune) -> None:
    trial = tune.ask()
    tune.start(trial)
    tune.report(trial, 1)
    said = "training diverged: val_loss is nan in epoch 2"
    report = TrialReport("s-1-0", 1, 1, {}, is_last=False, divergence=said).to_tune_result()
    assert report["done"]
    tune.callback.on_trial_result(0, tune.trials, trial, report)
    tune.callback.on_trial_complete(0, tune.trials, trial)
    assert tune.recorder.reports == [
        AttemptStarted("s-1-0", 1, "node-1"),
        EpochReported("s-1-0", 1, 1, {"val_accuracy": 0.5}),
        TrialEnded("s-1-0", 1, TrialState.EARLY_STOPPED, None, note=said),
    ]


@pytest.mark.parametrize(
    ("slots", "given_back"),
    [(None, 0), (3, 0), (2, 1), (0, 1)],
)
def test_a_worker_without_a_trial_is_given_back_where_others_have_its_place(
    slots: int | None, given_back: int, tune: Tune
) -> None:
    """Two trials are under way, and the algorithm waits for them."""
    trials = [tune.ask(), tune.ask()]
    for trial in trials:
        tune.start(trial)
    tune.algorithm.propose = lambda: None
    tune.want(Intent.RUN, slots=slots)
    assert tune.ask() is None
    assert tune.idle.given_back == given_back


def test_a_workers_last_words_may_be_no_text(tune: Tune, tmp_path: Path) -> None:
    trial = tune.ask()
    trial.error_file = str(tmp_path / "error.txt")
    Path(trial.error_file).write_bytes(b"no file 'a\xff'\n")
    tune.callback.on_trial_error(0, tune.trials, trial)
    assert tune.recorder.reports[-1] == AttemptLost("s-1-0", 1, "no file 'a\ufffd'")


def test_the_last_of_these_attempts_fails_the_trial(tune: Tune) -> None:
    for _ in range(4):  # failure.max_retries is 3
        tune.callback.on_trial_error(0, tune.trials, tune.ask())
    *_, started, ended = tune.recorder.reports
    assert started == AttemptStarted("s-1-0", 4, "node-1")
    assert isinstance(ended, TrialEnded)
    assert (ended.attempt, ended.state) == (4, TrialState.FAILED)
    assert "lost once too often" in str(ended.error)


@pytest.mark.parametrize("intent", [Intent.PAUSE, Intent.STOP])
def test_nothing_that_begins_after_a_pause_or_stop_counts(tune: Tune, intent: Intent) -> None:
    training, late = tune.ask(), tune.ask()
    tune.start(training)
    tune.want(intent)
    assert not tune.stopper.stop_all()
    tune.start(late)
    assert tune.report(late, 1)
    tune.callback.on_trial_complete(0, tune.trials, late)
    tune.report(training, 1, is_last=True)
    tune.callback.on_trial_complete(0, tune.trials, training)
    assert tune.stopper.stop_all()
    assert tune.searcher.ending == Leaving()
    assert {type(report) for report in tune.recorder.reports} == {AttemptStarted, EpochReported, TrialEnded}
    assert {report.trial_id for report in tune.recorder.reports} == {"s-1-0"}


@pytest.mark.parametrize("intent", [Intent.PAUSE, Intent.STOP])
def test_what_waits_for_a_place_in_the_cluster_holds_nobody_up(tune: Tune, intent: Intent) -> None:
    trial = tune.ask()
    tune.want(intent)
    assert tune.stopper.stop_all()
    tune.callback.on_trial_complete(0, tune.trials, trial)  # as Tune has it of what it takes back
    assert (tune.searcher.ending, tune.recorder.reports) == (Leaving(), [])


def test_a_worker_that_takes_no_notice_of_its_limit_is_killed(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr("service.tuning.searcher.ray.kill", killed.append)
    monkeypatch.setattr("service.tuning.searcher._LOOK_EVERY_S", 0.0)
    trial, other = tune.ask(), tune.ask()
    tune.start(trial)
    trial.temporary_state.ray_actor = "actor"
    tune.seconds += 65
    tune.start(other)
    tune.callback.on_step_begin(0, tune.trials)
    assert killed == []
    tune.seconds += 1
    for _ in range(2):
        tune.callback.on_step_begin(0, tune.trials)
    assert killed == ["actor"]
    tune.callback.on_trial_error(0, tune.trials, trial)
    ended = tune.recorder.reports[-1]
    assert isinstance(ended, TrialEnded)
    assert ended.state is TrialState.FAILED
    assert "max_trial_s of 60 s" in str(ended.error)
    assert tune.recorder.ticks == 5, "each question and each step"


def test_a_trial_that_succeeds_after_its_studys_end_was_decided_is_a_success(
    make_spec: Callable[..., StudySpec], recorded: Any
) -> None:
    tune = Tune(make_spec(budget={"max_trials": 1, "max_wallclock_s": 60}), recorded)
    trial = tune.ask()
    tune.start(trial)
    tune.seconds += 61
    assert tune.searcher.must_stop()
    assert tune.searcher.ending.state is StudyState.FAILED
    tune.report(trial, 1, is_last=True)
    tune.callback.on_trial_complete(0, tune.trials, trial)
    assert tune.searcher.ending == Ending(StudyState.SUCCEEDED, Reason.BUDGET_EXHAUSTED)


def test_a_driver_without_a_share_is_alive_as_long_as_tune_asks(tune: Tune) -> None:
    tune.want(Intent.RUN, slots=0)
    assert [tune.ask() for _ in range(3)] == [None] * 3
    assert tune.recorder.ticks == 3


def test_what_comes_after_the_decision_to_end_is_not_taken_for_known(tune: Tune) -> None:
    for _ in range(4):
        trial = tune.ask()
        tune.start(trial)
        tune.report(trial, 1, is_last=True)
        tune.callback.on_trial_complete(0, tune.trials, trial)
    assert tune.ask() == "FINISHED"
    decided, known = tune.searcher.ending, tune.progress.known
    tune.want(Intent.RUN, max_trials=8)
    assert tune.stopper.stop_all()
    assert (tune.searcher.ending, tune.progress.known) == (decided, known)
    assert known.budget.max_trials == 4


def test_a_budget_raised_after_it_ran_out_does_not_leave_the_study_without_an_ending(
    make_spec: Callable[..., StudySpec], recorded: Any
) -> None:
    tune = Tune(make_spec(budget={"max_wallclock_s": 60}), recorded)
    tune.start(tune.ask())
    tune.seconds += 61
    assert tune.ask() == "FINISHED"
    tune.want(Intent.RUN, max_wallclock_s=600)
    assert tune.stopper.stop_all()
    assert tune.searcher.ending == Ending(
        StudyState.FAILED, Reason.BUDGET_EXHAUSTED, "no trial succeeded within budget.max_wallclock_s of 60"
    )


def test_a_pause_waits_for_a_checkpoint_that_could_be_written(tune: Tune) -> None:
    trial = tune.ask()
    tune.start(trial)
    assert not tune.report(trial, 1)
    tune.want(Intent.PAUSE)
    tune.searcher.must_stop()
    assert not tune.report(trial, 2, is_saved=False), "what it has trained since the last one would be lost"
    assert tune.report(trial, 3)


def test_a_pause_waits_for_no_checkpoint_where_there_never_is_one(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tune.searcher,
        "_order_for",
        lambda issued: TrialOrder("s", issued.trial_id, issued.attempt, issued.epochs_done, {}, 1, "", 0, False),
    )
    trial = tune.ask()
    tune.start(trial)
    tune.want(Intent.PAUSE)
    tune.searcher.must_stop()
    assert tune.report(trial, 1, is_saved=False)
