from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.parameters import Point
from service.analysis.aggregation import aggregate, most_seeds_first
from service.errors import StoreUnavailableError
from service.spec import StudySpec
from service.store.snapshots import Instructions
from service.study import Intent, Purpose, Reason, StudyState, TrialState
from service.tuning.decisions import Ending, IssuedTrial, Leaving
from service.tuning.progress import StudyProgress


class FakeAlgorithm:
    """Proposes ρ = 1, 2, …, as many as there are, and remembers what it was told."""

    def __init__(self, size: int = 1_000) -> None:
        self.points: list[Point] = [{"rho": float(number)} for number in range(1, size + 1)]
        self.known_points: list[Point] = []
        self.learned: list[tuple[Point, str, float | None]] = []

    def propose(self) -> Point | None:
        left = [point for point in self.points if point not in self.known_points]
        if not left:
            return None
        self.known_points.append(left[0])
        return left[0]

    def known(self, point: Point) -> None:
        self.known_points.append(point)

    def learn(self, point: Point, outcome: str, value: float | None) -> None:
        self.learned.append((point, outcome, value))


class Driver:
    """A study's progress over its recorded study, and short ways through a trial."""

    def __init__(self, spec: StudySpec, recorded: Any, size: int = 1_000) -> None:
        self.recorded = recorded
        self.algorithm = FakeAlgorithm(size)
        self.seconds = 0.0
        self.progress = StudyProgress(
            spec,
            recorded.snapshot(),
            self.algorithm,
            recorded,
            stopwatch=lambda: self.seconds,
        )

    def issue(self) -> IssuedTrial:
        issued = self.progress.next_trial()
        assert isinstance(issued, IssuedTrial)
        self.progress.attempt_started(issued.trial_id, issued.attempt)
        return issued

    def end(self, issued: IssuedTrial, *values: float, state: TrialState = TrialState.SUCCEEDED) -> float | None:
        for epoch, value in enumerate(values, 1):
            self.progress.epoch_reported(issued.trial_id, epoch, value)
        return self.progress.trial_ended(issued.trial_id, state)

    def diverge(self, issued: IssuedTrial, *values: float) -> None:
        """The training diverges after epochs of these values."""
        for epoch, value in enumerate(values, 1):
            self.progress.epoch_reported(issued.trial_id, epoch, value)
        assert self.progress.trial_ended(issued.trial_id, TrialState.EARLY_STOPPED, has_diverged=True) is None

    def run_all(self, value: float = 0.5) -> tuple[int, Ending | None]:
        """Runs trials one after the other until there is none: how many, and the ending."""
        ran = 0
        while isinstance(issued := self.progress.next_trial(), IssuedTrial):
            self.progress.attempt_started(issued.trial_id, issued.attempt)
            self.end(issued, value)
            ran += 1
        return ran, issued


@pytest.fixture
def drive(make_spec: Callable[..., StudySpec], recorded: Any) -> Callable[..., Driver]:
    def make(size: int = 1_000, **changes: Any) -> Driver:
        return Driver(make_spec(**changes), recorded, size)

    return make


def succeeded(reason: Reason) -> Ending:
    return Ending(StudyState.SUCCEEDED, reason)


def test_the_budget_counts_trials(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 6}, replicates={"seeds": [0, 1]})
    assert driver.run_all() == (6, succeeded(Reason.MAX_TRIALS))
    assert len(driver.recorded.configurations) == 3


def test_a_space_that_is_used_up_ends_the_study(drive: Callable[..., Driver]) -> None:
    assert drive(size=4).run_all() == (4, succeeded(Reason.SPACE_EXHAUSTED))


def test_a_space_smaller_than_the_budget_is_used_up(drive: Callable[..., Driver]) -> None:
    assert drive(size=4, budget={"max_trials": 5}).run_all() == (4, succeeded(Reason.SPACE_EXHAUSTED))


def test_no_more_trials_run_at_once_than_allowed(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 4, "max_concurrent_trials": 2})
    first, second = driver.issue(), driver.issue()
    assert driver.progress.next_trial() is None
    driver.end(first, 0.5)
    third = driver.issue()
    assert driver.progress.next_trial() is None
    for issued in (second, third):
        driver.end(issued, 0.5)
    driver.issue()


def test_the_study_waits_for_its_last_trials(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 1})
    issued = driver.issue()
    assert driver.progress.next_trial() is None
    driver.end(issued, 0.5)
    assert driver.progress.next_trial() == succeeded(Reason.MAX_TRIALS)


def test_nothing_is_waited_for_once_all_has_ended(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 1})
    assert not driver.progress.is_about_to_end  # nobody has asked for one yet
    only = driver.issue()
    assert not driver.progress.is_about_to_end
    driver.end(only, 0.5)
    assert driver.progress.is_about_to_end


def test_a_reopened_study_waits_for_what_is_yet_to_be_made(drive: Callable[..., Driver], recorded: Any) -> None:
    (done,) = recorded.add_configuration({"rho": 1.0}, "", (0,))[1]
    recorded.end(done.id, 0.5)
    driver = drive(budget={"max_trials": 2})
    assert not driver.progress.is_about_to_end
    driver.end(driver.issue(), 0.5)
    assert driver.progress.is_about_to_end


def test_a_limit_that_only_a_newer_version_knows_does_not_end_the_driver(drive: Callable[..., Driver]) -> None:
    driver = drive()
    wanted(driver, max_trials=2, max_megawatt_hours=0.5)
    assert driver.run_all() == (2, Ending(StudyState.SUCCEEDED, Reason.MAX_TRIALS))


def test_a_stopped_study_waits_for_no_trial_that_has_not_begun(drive: Callable[..., Driver]) -> None:
    driver = drive()
    begun, issued = driver.issue(), driver.progress.next_trial()  # Tune has no place for the second one yet
    assert isinstance(issued, IssuedTrial)
    driver.progress.follow(Instructions(Intent.STOP, {"max_trials": 8}, 0, None))
    assert not driver.progress.is_about_to_end
    driver.end(begun, 0.5)
    assert driver.progress.is_about_to_end


def test_too_many_failures_end_the_study_at_once(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_failed_trials": 1})
    driver.issue()
    driver.end(driver.issue(), state=TrialState.FAILED)
    assert driver.progress.must_end_now() is None
    driver.end(driver.issue(), state=TrialState.FAILED)
    ending = driver.progress.must_end_now()
    assert ending is not None
    assert (ending.state, ending.reason) == (StudyState.FAILED, Reason.TOO_MANY_FAILURES)
    assert ending.error == "2 trials failed, and budget.max_failed_trials is 1"
    assert driver.progress.next_trial() == ending


def test_without_a_limit_only_a_study_of_failures_fails(drive: Callable[..., Driver]) -> None:
    driver = drive(size=2, budget={"max_failed_trials": None})
    driver.end(driver.issue(), state=TrialState.FAILED)
    driver.end(driver.issue(), state=TrialState.FAILED)
    ending = driver.progress.next_trial()
    assert isinstance(ending, Ending)
    assert (ending.state, ending.error) == (StudyState.FAILED, "every trial failed")


def test_the_wall_clock_ends_the_study(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_wallclock_s": 60})
    driver.end(driver.issue(), 0.5)
    driver.issue()
    driver.seconds += 60
    assert driver.progress.must_end_now() is None
    driver.seconds += 1
    assert driver.progress.next_trial() == succeeded(Reason.BUDGET_EXHAUSTED)


@pytest.mark.parametrize("state", [TrialState.FAILED, None], ids=["failed", "never ended"])
@pytest.mark.parametrize("budget", [{"max_wallclock_s": 60}, {"max_gpu_hours": 0.01}])
def test_a_study_whose_budget_ran_out_before_it_found_anything_fails(
    drive: Callable[..., Driver], state: TrialState | None, budget: dict[str, float]
) -> None:
    driver = drive(budget=budget, resources_per_trial={"gpu": 1})
    issued = driver.issue()
    driver.seconds += 61
    if state:
        driver.end(issued, state=state)
    ((limit, most),) = budget.items()
    said = f"no trial succeeded within budget.{limit} of {most}"
    assert driver.progress.must_end_now() == Ending(StudyState.FAILED, Reason.BUDGET_EXHAUSTED, said)


@pytest.mark.parametrize(("mode", "target", "worse", "better"), [("max", 0.9, 0.8, 0.9), ("min", 0.1, 0.2, 0.1)])
def test_a_target_reached_lets_the_running_trials_end(
    drive: Callable[..., Driver], mode: str, target: float, worse: float, better: float
) -> None:
    driver = drive(objective={"metric": "val_loss", "mode": mode, "target": target})
    driver.end(driver.issue(), worse)
    first, second = driver.issue(), driver.issue()
    assert driver.progress.waiting_reason is None
    driver.end(first, better)
    assert driver.progress.next_trial() is None
    assert driver.progress.waiting_reason == "has reached its target: what trains does so to its end, no other begins"
    driver.end(second, worse)
    assert driver.progress.waiting_reason is None
    assert driver.progress.next_trial() == succeeded(Reason.TARGET_REACHED)


def test_at_the_target_a_trial_without_a_place_is_not_waited_for(drive: Callable[..., Driver]) -> None:
    driver = drive(objective={"metric": "val_accuracy", "mode": "max", "target": 0.9})
    first, second = driver.issue(), driver.progress.next_trial()  # Tune has no place for the second one yet
    assert isinstance(second, IssuedTrial)
    assert driver.progress.must_end_now() is None
    driver.end(first, 0.95)
    assert driver.progress.must_end_now() == succeeded(Reason.TARGET_REACHED)
    assert driver.progress.next_trial() == succeeded(Reason.TARGET_REACHED)


def test_at_the_target_a_trial_whose_place_comes_late_does_not_begin(drive: Callable[..., Driver]) -> None:
    objective = {"metric": "val_accuracy", "mode": "max", "target": 0.9}
    driver = drive(objective=objective, confirm={"top_k": 1, "seeds": [7]}, budget={"max_concurrent_trials": 2})
    first, second = driver.issue(), driver.progress.next_trial()
    assert isinstance(second, IssuedTrial)
    driver.end(first, 0.95)
    assert driver.progress.must_end_now() is None
    confirming = driver.issue()
    assert confirming.purpose is Purpose.CONFIRM
    assert not driver.progress.attempt_started(second.trial_id, second.attempt)
    assert driver.progress.next_trial() is None
    driver.end(confirming, 0.9)
    assert driver.progress.next_trial() == succeeded(Reason.TARGET_REACHED)


@pytest.mark.parametrize("how", ["lost", "retried"])
def test_what_has_begun_is_finished_at_the_target_and_nothing_else(
    drive: Callable[..., Driver], recorded: Any, how: str
) -> None:
    for value in (0.95, None, None):
        (trial,) = recorded.add_configuration({"rho": float(len(recorded.configurations) + 1)}, "", (0,))[1]
        if value is not None:
            recorded.end(trial.id, value)
    begun, _ = list(recorded.trials.values())[1:]
    recorded.change(begun.id, attempt=1)
    driver = drive(objective={"metric": "val_accuracy", "mode": "max", "target": 0.9})
    issued = driver.issue()
    assert (issued.trial_id, issued.attempt) == (begun.id, 2)
    if how == "lost":
        assert driver.progress.attempt_lost(begun.id)
        issued = driver.issue()
        assert (issued.trial_id, issued.attempt) == (begun.id, 3)
    driver.end(issued, 0.5)
    assert driver.progress.next_trial() == succeeded(Reason.TARGET_REACHED)


def test_the_mean_over_the_seeds_reaches_the_target(drive: Callable[..., Driver]) -> None:
    driver = drive(objective={"metric": "val_accuracy", "mode": "max", "target": 0.9}, replicates={"seeds": [0, 1]})
    driver.end(driver.issue(), 1.0)
    driver.end(driver.issue(), 0.7)
    assert isinstance(driver.progress.next_trial(), IssuedTrial)


def test_an_early_stopped_trial_reaches_no_target(drive: Callable[..., Driver]) -> None:
    driver = drive(objective={"metric": "val_accuracy", "mode": "max", "target": 0.9})
    driver.end(driver.issue(), 0.95, state=TrialState.EARLY_STOPPED)
    assert isinstance(driver.progress.next_trial(), IssuedTrial)


def test_a_lost_trial_is_tried_again_as_often_as_allowed(drive: Callable[..., Driver]) -> None:
    driver = drive(failure={"max_retries": 2})
    first = driver.issue()
    for attempt in (2, 3):
        assert driver.progress.attempt_lost(first.trial_id)
        again = driver.issue()
        assert (again.trial_id, again.attempt) == (first.trial_id, attempt)
    assert not driver.progress.attempt_lost(first.trial_id)


def test_a_lost_trial_comes_before_new_ones_and_knows_its_epochs(drive: Callable[..., Driver]) -> None:
    driver = drive()
    first, _ = driver.issue(), driver.issue()
    driver.progress.epoch_reported(first.trial_id, 1, 0.1)
    driver.progress.epoch_reported(first.trial_id, 2, None)
    driver.progress.attempt_lost(first.trial_id)
    again = driver.issue()
    assert (again.trial_id, again.attempt, again.epochs_done) == (first.trial_id, 2, 2)


def test_losses_before_this_driver_count_too(drive: Callable[..., Driver], recorded: Any) -> None:
    (trial,) = recorded.add_configuration({"rho": 1.0}, "", (0,))[1]
    recorded.change(trial.id, attempt=4)
    recorded.lost_attempts[trial.id] = 2
    driver = drive(failure={"max_retries": 3})
    assert driver.issue().attempt == 5
    assert driver.progress.attempt_lost(trial.id)
    assert driver.issue().attempt == 6
    assert not driver.progress.attempt_lost(trial.id)


@pytest.mark.parametrize(
    ("at", "mode", "objective"),
    [("last", "max", 0.4), ("last", "min", 0.4), ("best", "max", 0.9), ("best", "min", 0.1)],
)
def test_the_objective_is_of_the_last_or_the_best_epoch(
    drive: Callable[..., Driver], at: str, mode: str, objective: float
) -> None:
    driver = drive(objective={"metric": "val_loss", "mode": mode, "at": at})
    assert driver.end(driver.issue(), 0.1, 0.9, 0.4) == objective


@pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.CANCELLED])
def test_a_trial_that_did_not_end_well_says_nothing_of_the_objective(
    drive: Callable[..., Driver], state: TrialState
) -> None:
    driver = drive()
    assert driver.end(driver.issue(), 0.9, state=state) is None


def test_an_epoch_done_again_counts_once(drive: Callable[..., Driver]) -> None:
    driver = drive()
    issued = driver.issue()
    for epoch, value in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.7), (3, 0.8)]:
        driver.progress.epoch_reported(issued.trial_id, epoch, value)
    assert driver.end(issued) == 0.3


def test_the_algorithm_learns_the_mean_once_every_seed_has_ended(drive: Callable[..., Driver]) -> None:
    driver = drive(replicates={"seeds": [0, 1, 2]})
    for value in (0.1, 0.2):
        driver.end(driver.issue(), value)
    assert driver.algorithm.learned == []
    driver.end(driver.issue(), 0.6)
    ((point, outcome, value),) = driver.algorithm.learned
    assert (point, outcome) == ({"rho": 1.0}, "complete")
    assert value == pytest.approx(0.3)


def test_the_algorithm_learns_a_mean_whose_sum_is_no_float(drive: Callable[..., Driver]) -> None:
    driver = drive(replicates={"seeds": [0, 1]}, confirm={"top_k": 1, "seeds": [7]}, budget={"max_trials": 2})
    for value in (1.5e308, 1.7e308):
        driver.end(driver.issue(), value)
    ((_, outcome, value),) = driver.algorithm.learned
    assert (outcome, value) == ("complete", pytest.approx(1.6e308))
    assert driver.issue().purpose is Purpose.CONFIRM


@pytest.mark.parametrize(
    ("states", "learned"),
    [
        ((TrialState.SUCCEEDED, TrialState.EARLY_STOPPED), ("pruned", 0.5)),
        ((TrialState.SUCCEEDED, TrialState.FAILED), ("pruned", 0.5)),
        ((TrialState.FAILED, TrialState.FAILED), ("failed", None)),
    ],
)
def test_the_algorithm_learns_how_a_configuration_ended(
    drive: Callable[..., Driver], states: tuple[TrialState, ...], learned: tuple[str, float | None]
) -> None:
    driver = drive(replicates={"seeds": [0, 1]})
    for state in states:
        driver.end(driver.issue(), 0.5, state=state)
    assert driver.algorithm.learned == [({"rho": 1.0}, *learned)]


def test_what_diverges_with_one_of_its_seeds_is_worth_nothing(drive: Callable[..., Driver]) -> None:
    driver = drive(replicates={"seeds": [0, 1]})
    driver.end(driver.issue(), 0.9)
    driver.diverge(driver.issue(), 0.6, 0.7)
    assert driver.algorithm.learned == [({"rho": 1.0}, "pruned", None)]


def test_a_new_driver_knows_what_has_diverged(drive: Callable[..., Driver], recorded: Any) -> None:
    for trial, value in zip(recorded.add_configuration({"rho": 1.0}, "", (0, 1))[1], (0.9, None), strict=True):
        recorded.end(trial.id, value, TrialState.SUCCEEDED if value else TrialState.EARLY_STOPPED)
    driver = drive(replicates={"seeds": [0, 1]})
    assert driver.algorithm.learned == [({"rho": 1.0}, "pruned", None)]


@pytest.mark.parametrize("lacking", [None, math.inf])
def test_a_success_without_an_objective_leaves_the_mean_incomplete(
    drive: Callable[..., Driver], recorded: Any, lacking: float | None
) -> None:
    for trial, value in zip(recorded.add_configuration({"rho": 1.0}, "", (0, 1))[1], (0.95, lacking), strict=True):
        recorded.end(trial.id, value)
    objective = {"metric": "val_accuracy", "mode": "max", "target": 0.9}
    driver = drive(objective=objective, replicates={"seeds": [0, 1]})
    assert driver.algorithm.learned == [({"rho": 1.0}, "pruned", 0.95)]
    assert driver.issue().point == {"rho": 2.0}


def test_a_new_driver_runs_exactly_what_did_not_end(drive: Callable[..., Driver], recorded: Any) -> None:
    done, running = recorded.add_configuration({"rho": 1.0}, "", (0, 1))[1]
    waiting, failed = recorded.add_configuration({"rho": 2.0}, "", (0, 1))[1]
    recorded.end(done.id, 0.5)
    recorded.end(failed.id, None, TrialState.FAILED)
    recorded.change(running.id, attempt=2)
    recorded.report(running.id, 1, 0.3)
    driver = drive(replicates={"seeds": [0, 1]}, budget={"max_trials": 6})
    issued = [driver.issue() for _ in range(4)]
    assert [(one.trial_id, one.attempt, one.epochs_done, one.point, one.seed) for one in issued[:2]] == [
        (running.id, 3, 1, {"rho": 1.0}, 1),
        (waiting.id, 1, 0, {"rho": 2.0}, 0),
    ]
    assert [trial.point for trial in issued[2:]] == [{"rho": 3.0}] * 2
    assert driver.progress.next_trial() is None


def test_a_new_driver_tells_the_algorithm_what_is_known(drive: Callable[..., Driver], recorded: Any) -> None:
    for rho, value in [(1.0, 0.1), (2.0, 0.2)]:
        (trial,) = recorded.add_configuration({"rho": rho}, "", (0,))[1]
        recorded.end(trial.id, value)
    recorded.add_configuration({"rho": 3.0}, "", (0,))
    driver = drive()
    assert driver.algorithm.known_points == [{"rho": 1.0}, {"rho": 2.0}, {"rho": 3.0}]
    assert driver.algorithm.learned == [({"rho": 1.0}, "complete", 0.1), ({"rho": 2.0}, "complete", 0.2)]


def test_a_new_driver_counts_what_epochs_were_worth_before(drive: Callable[..., Driver], recorded: Any) -> None:
    (trial,) = recorded.add_configuration({"rho": 1.0}, "", (0,))[1]
    recorded.report(trial.id, 1, 0.9)
    driver = drive(objective={"metric": "val_accuracy", "mode": "max", "at": "best"})
    issued = driver.issue()
    driver.progress.epoch_reported(issued.trial_id, 2, 0.5)
    assert driver.end(issued) == 0.9


def test_a_study_that_was_done_before_ends_the_same_way(drive: Callable[..., Driver], recorded: Any) -> None:
    (trial,) = recorded.add_configuration({"rho": 1.0}, "", (0,))[1]
    recorded.end(trial.id, 0.95)
    target = {"metric": "val_accuracy", "mode": "max", "target": 0.9}
    assert drive(objective=target).progress.next_trial() == succeeded(Reason.TARGET_REACHED)
    assert drive(budget={"max_trials": 1}).progress.next_trial() == succeeded(Reason.MAX_TRIALS)
    assert drive(size=1).progress.next_trial() == succeeded(Reason.SPACE_EXHAUSTED)


def test_a_study_whose_budget_was_raised_goes_on(drive: Callable[..., Driver]) -> None:
    assert drive(budget={"max_trials": 2}).run_all()[0] == 2
    for trial_id in list(drive().recorded.trials):
        drive().recorded.end(trial_id, 0.5)
    assert drive(budget={"max_trials": 5}).run_all() == (3, succeeded(Reason.MAX_TRIALS))


def test_a_point_that_could_not_be_recorded_is_not_skipped(drive: Callable[..., Driver], recorded: Any) -> None:
    driver = drive(size=2)
    recorded.failures = [StoreUnavailableError("down"), StoreUnavailableError("down")]
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            driver.progress.next_trial()
    assert driver.run_all() == (2, succeeded(Reason.SPACE_EXHAUSTED))
    assert [configuration.point for configuration in recorded.configurations] == [{"rho": 1.0}, {"rho": 2.0}]


def wanted(
    driver: Driver, *, intent: Intent = Intent.RUN, slots: int | None = None, newest: int | None = None, **budget: Any
) -> None:
    """What the driver hears at a heartbeat; `budget` are the limits that are not null."""
    known = len(driver.recorded.configurations) if newest is None else newest
    driver.progress.follow(Instructions(intent, budget, slots, known))


def test_a_proposal_whose_answer_was_lost_is_not_recorded_twice(
    drive: Callable[..., Driver], recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()
    add = recorded.add_configuration

    def add_and_lose_the_answer(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        add(*arguments, **options)
        raise StoreUnavailableError("the connection was closed after the commit")

    monkeypatch.setattr(recorded, "add_configuration", add_and_lose_the_answer)
    with pytest.raises(StoreUnavailableError):
        driver.progress.next_trial()
    wanted(driver)
    points = [driver.issue().point["rho"] for _ in range(3)]
    assert len(set(points)) == 3
    assert [configuration.point["rho"] for configuration in recorded.configurations] == points


def test_a_study_being_paused_begins_nothing_and_is_left_once_nothing_runs(drive: Callable[..., Driver]) -> None:
    driver = drive()
    first, second = driver.issue(), driver.issue()
    wanted(driver, intent=Intent.PAUSE)
    assert driver.progress.is_pausing
    assert driver.progress.next_trial() is None
    driver.progress.trial_paused(first.trial_id)
    driver.end(second, 0.5)
    assert driver.progress.next_trial() == Leaving()
    assert driver.progress.open_trials() == [first.trial_id]


def test_a_driver_that_has_begun_to_pause_goes_on_with_it(drive: Callable[..., Driver]) -> None:
    driver = drive()
    first = driver.issue()
    wanted(driver, intent=Intent.PAUSE)
    wanted(driver)
    driver.progress.trial_paused(first.trial_id)
    assert driver.progress.next_trial() == Leaving()


@pytest.mark.parametrize("intent", [Intent.PAUSE, Intent.STOP])
def test_a_trial_that_the_cluster_has_no_place_for_is_not_waited_for(
    drive: Callable[..., Driver], intent: Intent
) -> None:
    driver = drive()
    training, placeless = driver.issue(), driver.progress.next_trial()
    assert isinstance(placeless, IssuedTrial)
    wanted(driver, intent=intent)
    assert driver.progress.must_end_now() is None  # as one trains
    driver.end(training, 0.5)
    assert driver.progress.must_end_now() == Leaving()
    assert driver.progress.next_trial() == Leaving()


@pytest.mark.parametrize("intent", [Intent.PAUSE, Intent.STOP])
def test_a_trial_that_begins_too_late_does_not_count_as_begun(drive: Callable[..., Driver], intent: Intent) -> None:
    driver = drive()
    training, late = driver.issue(), driver.progress.next_trial()
    assert isinstance(late, IssuedTrial)
    wanted(driver, intent=intent)
    assert not driver.progress.attempt_started(late.trial_id, late.attempt)
    assert not driver.progress.has_started(late.trial_id, late.attempt)
    driver.end(training, 0.5)
    assert driver.progress.next_trial() == Leaving()
    assert driver.progress.open_trials() == [late.trial_id]


def test_a_new_limit_of_a_trial_goes_along_with_the_next_one(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 3})
    assert driver.issue().max_trial_s is None
    wanted(driver, max_trials=3, max_trial_s=60)
    issued = driver.issue()
    assert (issued.max_trial_s, issued.seconds_left) == (60, 60)


def test_what_the_driver_knows_grows_with_what_it_hears_and_proposes(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 4})
    before = driver.progress.known
    driver.issue()
    wanted(driver, max_trials=8)
    after = driver.progress.known
    assert (before.budget.max_trials, before.last_configuration) == (4, 0)
    assert (after.budget.max_trials, after.last_configuration) == (8, 1)


def test_paused_trials_go_on_with_the_next_driver(drive: Callable[..., Driver], recorded: Any) -> None:
    (trial,) = recorded.add_configuration({"rho": 1.0}, "", (0,))[1]
    recorded.report(trial.id, 1, 0.5)
    recorded.change(trial.id, state=TrialState.PAUSED, attempt=1)
    issued = drive().issue()
    assert (issued.trial_id, issued.attempt, issued.epochs_done) == (trial.id, 2, 1)


def test_a_study_being_stopped_finishes_what_has_begun_and_nothing_else(
    drive: Callable[..., Driver], recorded: Any
) -> None:
    begun, untouched = recorded.add_configuration({"rho": 1.0}, "", (0, 1))[1]
    recorded.change(begun.id, attempt=1)
    recorded.intent = Intent.STOP
    driver = drive(replicates={"seeds": [0, 1]}, budget={"max_trials": 40})
    issued = driver.issue()
    assert issued.trial_id == begun.id
    driver.progress.attempt_lost(issued.trial_id)
    again = driver.issue()
    driver.end(again, 0.5)
    assert driver.progress.next_trial() == Leaving()
    assert driver.progress.open_trials() == [untouched.id]


def test_a_share_limits_what_runs_at_once_and_may_change(drive: Callable[..., Driver]) -> None:
    driver = drive()
    wanted(driver, slots=1)
    first = driver.issue()
    assert driver.progress.next_trial() is None
    wanted(driver, slots=2)
    driver.issue()
    assert driver.progress.next_trial() is None
    wanted(driver, slots=0)
    driver.end(first, 0.5)
    assert driver.progress.next_trial() is None


def test_without_a_share_a_study_ends_once_it_has_nothing_left_to_do(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 1})
    only = driver.issue()
    wanted(driver, slots=0, max_trials=1)
    driver.end(only, 0.5)
    assert driver.progress.next_trial() == succeeded(Reason.MAX_TRIALS)


def test_without_a_share_what_is_left_to_do_waits(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 2})
    first = driver.issue()
    wanted(driver, slots=0, max_trials=2)
    driver.end(first, 0.5)
    assert [driver.progress.next_trial() for _ in range(3)] == [None] * 3
    assert len(driver.algorithm.known_points) == 2
    wanted(driver, slots=1, max_trials=2)
    driver.end(driver.issue(), 0.5)
    assert driver.progress.next_trial() == succeeded(Reason.MAX_TRIALS)


def test_a_raised_budget_reaches_a_running_driver(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 1})
    driver.end(driver.issue(), 0.5)
    wanted(driver, max_trials=2)
    driver.end(driver.issue(), 0.5)
    assert driver.progress.next_trial() == succeeded(Reason.MAX_TRIALS)


def test_a_point_that_a_user_enqueues_is_run_next_and_not_proposed_again(
    drive: Callable[..., Driver], recorded: Any
) -> None:
    driver = drive(size=3)
    driver.end(driver.issue(), 0.5)
    recorded.add_configuration({"rho": 3.0}, "", (0,))
    wanted(driver)
    assert driver.issue().point == {"rho": 3.0}
    assert driver.issue().point == {"rho": 2.0}
    assert driver.progress.next_trial() is None


def test_a_point_enqueued_at_the_very_moment_of_its_proposal_runs_once(
    drive: Callable[..., Driver], recorded: Any
) -> None:
    driver = drive(size=2)
    recorded.add_configuration({"rho": 1.0}, "", (0,))  # which the driver has not heard of yet
    assert [driver.issue().point for _ in range(2)] == [{"rho": 1.0}, {"rho": 2.0}]
    assert len(recorded.configurations) == 2
    assert driver.progress.next_trial() is None


def test_pauses_do_not_count_for_the_wall_clock(drive: Callable[..., Driver], recorded: Any) -> None:
    recorded.elapsed_s = 50.0  # of drivers before this one
    driver = drive(budget={"max_wallclock_s": 60})
    driver.end(driver.issue(), 0.5)
    driver.seconds += 10
    assert driver.progress.must_end_now() is None
    driver.seconds += 1
    assert driver.progress.must_end_now() == succeeded(Reason.BUDGET_EXHAUSTED)


def test_gpu_hours_count_every_attempt_also_the_running_ones(drive: Callable[..., Driver], recorded: Any) -> None:
    recorded.attempts_s = 1_800.0  # half an hour on two GPUs, before this driver
    driver = drive(resources_per_trial={"gpu": 2}, budget={"max_gpu_hours": 3})
    first = driver.issue()
    driver.seconds += 1_800
    driver.end(first, 0.5)
    driver.issue()
    driver.seconds += 1_800
    assert driver.progress.must_end_now() is None
    driver.seconds += 1
    assert driver.progress.must_end_now() == succeeded(Reason.BUDGET_EXHAUSTED)


@pytest.mark.parametrize("budget", [{"max_wallclock_s": 60}, {"max_gpu_hours": 0.1}, {"max_trial_s": 60}])
def test_no_budget_pays_for_a_night_in_which_the_machine_slept(
    drive: Callable[..., Driver], budget: dict[str, float]
) -> None:
    driver = drive(resources_per_trial={"gpu": 1}, budget=budget)
    first = driver.issue()
    driver.seconds += 20
    assert driver.progress.must_end_now() is None
    driver.progress.attempt_lost(first.trial_id)
    assert driver.issue().seconds_left == (40 if "max_trial_s" in budget else None)


@pytest.mark.parametrize("states", [(), (TrialState.EARLY_STOPPED,), (TrialState.FAILED, TrialState.EARLY_STOPPED)])
def test_a_study_in_which_no_trial_succeeded_in_time_has_failed(
    drive: Callable[..., Driver], states: tuple[TrialState, ...]
) -> None:
    driver = drive(budget={"max_wallclock_s": 60})
    for state in states:
        driver.end(driver.issue(), None if state is TrialState.FAILED else 0.5, state=state)
    driver.seconds += 61
    said = "no trial succeeded within budget.max_wallclock_s of 60"
    assert driver.progress.must_end_now() == Ending(StudyState.FAILED, Reason.BUDGET_EXHAUSTED, said)


@pytest.mark.parametrize(
    ("failed", "diverged", "reason", "said"),
    [
        (2, 0, Reason.TOO_MANY_FAILURES, "no trial succeeded: of 3, 2 failed, the others were stopped early"),
        (0, 0, Reason.MAX_TRIALS, "no trial succeeded: all 3 were stopped early"),
        (0, 2, Reason.MAX_TRIALS, "no trial succeeded: of 3, 2 diverged, the others were stopped early"),
        (1, 2, Reason.TOO_MANY_FAILURES, "no trial succeeded: of 3, 1 failed, 2 diverged"),
        (0, 3, Reason.MAX_TRIALS, "no trial succeeded: all 3 diverged, so lr or rho is too large"),
    ],
)
def test_a_study_of_which_no_trial_was_trained_to_its_end_has_failed(
    drive: Callable[..., Driver], failed: int, diverged: int, reason: Reason, said: str
) -> None:
    driver = drive(budget={"max_trials": 3, "max_failed_trials": None})
    for number in range(3):
        if number < failed:
            driver.end(driver.issue(), state=TrialState.FAILED)
        elif number < failed + diverged:
            driver.diverge(driver.issue(), 0.5)
        else:
            driver.end(driver.issue(), 0.5, state=TrialState.EARLY_STOPPED)
    assert driver.progress.next_trial() == Ending(StudyState.FAILED, reason, said)


def test_trainings_that_diverge_are_no_failures(drive: Callable[..., Driver]) -> None:
    driver = drive(budget={"max_trials": 4, "max_failed_trials": 0})
    for _ in range(3):
        driver.diverge(driver.issue())
        assert driver.progress.must_end_now() is None
    driver.end(driver.issue(), 0.5)
    assert driver.progress.next_trial() == succeeded(Reason.MAX_TRIALS)


def test_a_driver_that_was_long_in_starting_has_spent_that(drive: Callable[..., Driver], recorded: Any) -> None:
    recorded.starting_s = 30.0
    driver = drive(budget={"max_wallclock_s": 60})
    driver.end(driver.issue(), 0.5)
    driver.seconds += 30
    assert driver.progress.must_end_now() is None
    driver.seconds += 1
    assert driver.progress.must_end_now() == succeeded(Reason.BUDGET_EXHAUSTED)


def test_a_trial_knows_how_long_it_may_still_train(drive: Callable[..., Driver], recorded: Any) -> None:
    (trial,) = recorded.add_configuration({"rho": 1.0}, "", (0,))[1]
    recorded.change(trial.id, attempt=1)
    recorded.trained_s[trial.id] = 25.0
    driver = drive(budget={"max_trial_s": 60})
    first = driver.issue()
    assert first.seconds_left == 35.0
    driver.seconds += 20
    driver.progress.attempt_lost(first.trial_id)
    assert driver.issue().seconds_left == 15.0
    assert driver.issue().seconds_left == 60.0


CONFIRM = {"confirm": {"top_k": 2, "seeds": [7, 8]}, "replicates": {"seeds": [0, 1]}, "budget": {"max_trials": 6}}


def test_the_best_run_again_on_fresh_seeds_after_the_search(drive: Callable[..., Driver], recorded: Any) -> None:
    driver = drive(**CONFIRM)
    for value in (0.1, 0.1, 0.9, 0.9, 0.5, 0.5):
        driver.end(driver.issue(), value)
    learned = len(driver.algorithm.learned)
    confirming = [driver.issue() for _ in range(4)]
    assert driver.progress.next_trial() is None
    assert {(one.point["rho"], one.seed) for one in confirming} == {(2.0, 7), (2.0, 8), (3.0, 7), (3.0, 8)}
    assert {one.purpose for one in confirming} == {Purpose.CONFIRM}
    for one in confirming:
        driver.end(one, 0.0)
    assert driver.progress.next_trial() == succeeded(Reason.MAX_TRIALS)
    assert len(driver.algorithm.learned) == learned


def test_nothing_is_confirmed_while_the_search_still_runs(drive: Callable[..., Driver]) -> None:
    driver = drive(**CONFIRM)
    issued = [driver.issue() for _ in range(6)]
    for one in issued[:-1]:
        driver.end(one, 0.5)
    assert driver.progress.next_trial() is None


def test_only_what_succeeded_with_every_seed_is_confirmed(drive: Callable[..., Driver]) -> None:
    driver = drive(**CONFIRM)
    for value, state in [
        (0.9, TrialState.SUCCEEDED),
        (0.9, TrialState.EARLY_STOPPED),
        *[(0.1, TrialState.SUCCEEDED)] * 4,
    ]:
        driver.end(driver.issue(), value, state=state)
    assert {driver.issue().point["rho"] for _ in range(4)} == {2.0, 3.0}


def test_without_a_whole_configuration_those_with_most_seeds_are_confirmed(drive: Callable[..., Driver]) -> None:
    driver = drive(**{**CONFIRM, "confirm": {"top_k": 1, "seeds": [7, 8]}, "replicates": {"seeds": [0, 1, 2]}})
    pruned, succeeded = TrialState.EARLY_STOPPED, TrialState.SUCCEEDED
    for states in ((succeeded, pruned, pruned), (succeeded, succeeded, pruned)):
        for state in states:
            driver.end(driver.issue(), 0.9 if states[1] is pruned else 0.8, state=state)
    assert driver.issue().point == {"rho": 2.0}


def test_of_equal_means_the_steadier_and_then_the_earlier_configuration_is_confirmed(
    drive: Callable[..., Driver],
) -> None:
    once = {"confirm": {"top_k": 1, "seeds": [7, 8]}, "budget": {"max_trials": 22}}
    driver = drive(**{**CONFIRM, **once})
    for number in range(1, 12):
        for value in (0.75, 0.75) if number in (2, 10) else (0.5, 1.0):
            driver.end(driver.issue(), value)
    assert driver.issue().point == {"rho": 2.0}


def best_by_hand(recorded: Any, number: int) -> list[str]:
    """Ids of the configurations that are to be confirmed, from everything that is recorded."""
    results = aggregate(recorded.configurations, recorded.trials.values())
    ranked = sorted(
        (most_seeds_first(one.objective, one.configuration.number, "max"), one.configuration.id)
        for one in results
        if one.objective is not None
    )
    return [name for _, name in ranked[:number]]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_later_the_best_of_all_that_has_ended_is_confirmed(
    make_spec: Callable[..., StudySpec], new_recording: Callable[[], Any], seed: int
) -> None:
    budget = {"max_trials": 8, "max_failed_trials": None, "max_concurrent_trials": 3}
    chance, recorded = random.Random(seed), new_recording()
    driver, running = Driver(make_spec(**{**CONFIRM, "budget": budget}), recorded), []
    for step in range(60):
        if chance.random() < 0.1:
            recorded.add_configuration({"rho": 100.0 + step}, "", (0, 1))  # by its user
            wanted(driver, **budget)
        best, before = best_by_hand(recorded, 2), set(recorded.trials)
        issued = driver.progress.next_trial()
        confirming = {
            one.id: one.configuration_id for one in recorded.trials.values() if one.purpose is Purpose.CONFIRM
        }
        assert {confirming[new] for new in confirming.keys() - before} <= set(best)
        if isinstance(issued, IssuedTrial):
            driver.progress.attempt_started(issued.trial_id, issued.attempt)
            running.append(issued)
        elif running:
            ended = running.pop(chance.randrange(len(running)))
            state = chance.choice([TrialState.SUCCEEDED] * 3 + [TrialState.EARLY_STOPPED, TrialState.FAILED])
            recorded.end(ended.trial_id, driver.end(ended, chance.choice([0.1, 0.5, 0.9]), state=state), state)
        else:
            assert isinstance(issued, Ending)
            assert set(best) <= set(confirming.values())


def test_what_to_confirm_is_chosen_once(drive: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = []
    monkeypatch.setattr(
        "service.tuning.confirming.most_seeds_first",
        lambda summary, number, mode: ranked.append(number) or most_seeds_first(summary, number, mode),
    )
    driver = drive(**CONFIRM)
    for _ in range(6):
        driver.end(driver.issue(), 0.5)
    for _ in range(4):
        driver.end(driver.issue(), 0.5)
    assert driver.progress.next_trial() == succeeded(Reason.MAX_TRIALS)
    assert ranked == [1, 2, 3]


def test_a_new_driver_goes_on_with_the_confirmation_and_adds_none(drive: Callable[..., Driver], recorded: Any) -> None:
    for rho in (1.0, 2.0, 3.0):
        for trial in recorded.add_configuration({"rho": rho}, "", (0, 1))[1]:
            recorded.end(trial.id, rho)
    recorded.add_confirming_trials("s-3", (7, 8))  # and the driver was lost before it added those of the second
    driver = drive(**CONFIRM)
    assert {(driver.issue().point["rho"]) for _ in range(4)} == {3.0, 2.0}
    assert driver.progress.next_trial() is None
    assert len(recorded.trials) == 10


def test_what_is_confirmed_on_some_of_the_seeds_is_run_on_the_others(
    drive: Callable[..., Driver], recorded: Any
) -> None:
    for rho in (1.0, 2.0, 3.0):
        for trial in recorded.add_configuration({"rho": rho}, "", (0, 1))[1]:
            recorded.end(trial.id, rho)
    for trial in recorded.add_confirming_trials("s-3", (7,)):
        recorded.end(trial.id, 0.5)
    driver = drive(**CONFIRM)
    assert [(one.point["rho"], one.seed) for one in (driver.issue() for _ in range(3))] == [
        (3.0, 8),
        (2.0, 7),
        (2.0, 8),
    ]


def test_a_target_reached_is_confirmed_too(drive: Callable[..., Driver]) -> None:
    objective = {"metric": "val_accuracy", "mode": "max", "target": 0.8}
    driver = drive(**CONFIRM, objective=objective)
    for _ in range(2):
        driver.end(driver.issue(), 0.9)
    confirming = [driver.issue() for _ in range(2)]
    assert {one.purpose for one in confirming} == {Purpose.CONFIRM}
    said = "has reached its target: what trains does so to its end, only what confirms its best begins"
    assert driver.progress.waiting_reason == said
    for one in confirming:
        driver.end(one, 0.7)
    assert driver.progress.next_trial() == succeeded(Reason.TARGET_REACHED)
