from __future__ import annotations

import math
import statistics
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from service.spec import StudySpec
from service.store.snapshots import EpochValue
from service.study import Purpose
from service.tuning.idle_workers import IdleWorkers
from service.tuning.schedulers import scheduler_for, why_stopped

EPOCHS, TRIALS = 9, 6
STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


class Leg:
    """One driver's scheduler; its Tune trials have ids of their own, `leg-number`."""

    def __init__(self, spec: StudySpec, recorded: Any, name: str) -> None:
        self._recorded, self._name = recorded, name
        self._added: set[int] = set()
        self.scheduler = scheduler_for(spec, recorded.snapshot(), ours, IdleWorkers())

    def report(self, number: int, epoch: int, value: float, *, is_new: bool = True) -> str:
        trial = SimpleNamespace(trial_id=f"{self._name}-{number}")
        if number not in self._added:
            self.scheduler.on_trial_add(None, trial)
            self._added.add(number)
        decision = self.scheduler.on_trial_result(None, trial, {"epoch": epoch, "val_accuracy": value})
        if is_new:
            self._recorded.epoch_values.append(EpochValue(f"s-{number}", epoch, value))
        if decision == STOP:
            self.scheduler.on_trial_remove(None, trial)
        elif epoch == EPOCHS:
            self.scheduler.on_trial_complete(None, trial, {"epoch": epoch, "val_accuracy": value})
        return decision


def ours(tune_id: str, purpose: Purpose = Purpose.SEARCH) -> Any:
    return SimpleNamespace(trial_id=f"s-{tune_id.split('-')[1]}", purpose=purpose)


SCHEDULERS: dict[str, dict[str, Any]] = {
    "asha": {"name": "asha", "reduction_factor": 2},
    "hyperband": {"name": "hyperband", "reduction_factor": 2},
    "median": {"name": "median", "min_trials": 2},
}


@pytest.fixture(scope="session")
def spec_with(make_spec: Callable[..., StudySpec]) -> Callable[..., StudySpec]:
    def make(scheduler: dict[str, Any], mode: str = "max") -> StudySpec:
        objective = {"metric": "val_accuracy", "mode": mode}
        return make_spec(train={"epochs": EPOCHS}, objective=objective, scheduler=scheduler)

    return make


@pytest.fixture(scope="session")
def asha(spec_with: Callable[..., StudySpec]) -> Callable[..., StudySpec]:
    return partial(spec_with, SCHEDULERS["asha"])


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@given(
    order=st.lists(st.tuples(st.integers(0, TRIALS - 1), st.integers(0, 20)), min_size=1, max_size=60),
    cut=st.integers(0, 60),
    redone=st.integers(0, 3),
    mode=st.sampled_from(["max", "min"]),
)
@settings(max_examples=60, deadline=None)
def test_a_new_driver_decides_as_the_old_one_would_have(
    spec_with: Callable[..., StudySpec],
    scheduler: str,
    new_recording: Callable[[], Any],
    order: list[tuple[int, int]],
    cut: int,
    redone: int,
    mode: str,
) -> None:
    spec = spec_with(SCHEDULERS[scheduler], mode)

    def decisions(cut: int | None) -> list[str]:
        recorded = new_recording()
        leg = Leg(spec, recorded, "first")
        epochs, stopped, decided = dict.fromkeys(range(TRIALS), 0), set(), []
        for index, (number, value) in enumerate(order):
            if index == cut:
                leg = Leg(spec, recorded, "second")
                for again in (n for n in range(TRIALS) if epochs[n] and n not in stopped and epochs[n] < EPOCHS):
                    for epoch in range(max(1, epochs[again] - redone + 1), epochs[again] + 1):
                        assert leg.report(again, epoch, 0.0, is_new=False) == CONTINUE
            if number in stopped or epochs[number] == EPOCHS:
                continue
            epochs[number] += 1
            decided.append(leg.report(number, epochs[number], float(value)))
            if decided[-1] == STOP:
                stopped.add(number)
        return decided

    assert decisions(cut) == decisions(None)


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@given(
    order=st.lists(st.tuples(st.integers(0, TRIALS - 1), st.integers(0, 20)), min_size=1, max_size=60),
    unasked=st.lists(st.tuples(st.integers(0, TRIALS - 1), st.integers(0, 20)), max_size=TRIALS),
    cut=st.integers(0, 60),
    mode=st.sampled_from(["max", "min"]),
)
@example(order=[(0, 18), (1, 18), (2, 4)], unasked=[(2, 2)], cut=2, mode="max")
@settings(max_examples=60, deadline=None)
def test_drivers_agree_on_results_that_tune_asked_nobody_about(
    spec_with: Callable[..., StudySpec],
    scheduler: str,
    new_recording: Callable[[], Any],
    order: list[tuple[int, int]],
    unasked: list[tuple[int, int]],
    cut: int,
    mode: str,
) -> None:
    """The study pauses at the cut: what then comes is recorded only. The second driver goes on, and a third one."""
    spec, recorded = spec_with(SCHEDULERS[scheduler], mode), new_recording()
    epochs, stopped = dict.fromkeys(range(TRIALS), 0), set()

    def train(leg: Leg | None, results: list[tuple[int, int]]) -> None:
        for number, value in results:
            if number in stopped or epochs[number] == EPOCHS:
                continue
            epochs[number] += 1
            if leg is None:
                recorded.epoch_values.append(EpochValue(f"s-{number}", epochs[number], float(value)))
            elif leg.report(number, epochs[number], float(value)) == STOP:
                stopped.add(number)

    train(Leg(spec, recorded, "first"), order[:cut])
    train(None, unasked)
    second = Leg(spec, recorded, "second")
    train(second, order[cut:])
    third = Leg(spec, recorded, "third")
    trials = [f"s-{number}" for number in range(TRIALS)]
    assert [why_stopped(third.scheduler, one) for one in trials] == [
        why_stopped(second.scheduler, one) for one in trials
    ]
    for number in (number for number in range(TRIALS) if number not in stopped and epochs[number] < EPOCHS):
        next_result = {"epoch": epochs[number] + 1, "val_accuracy": 10.0}
        decisions = {
            leg.scheduler.on_trial_result(None, SimpleNamespace(trial_id=f"any-{number}"), dict(next_result))
            for leg in (second, third)
        }
        assert len(decisions) == 1


def test_asha_stops_what_is_behind(asha: Callable[..., StudySpec], recorded: Any) -> None:
    leg = Leg(asha(), recorded, "first")
    assert [leg.report(number, 1, value) for number, value in [(0, 0.9), (1, 0.8), (2, 0.1)]][-1] == STOP


def test_a_trial_that_goes_on_keeps_its_place_in_the_rungs(asha: Callable[..., StudySpec], recorded: Any) -> None:
    first = Leg(asha(), recorded, "first")
    for number in range(4):
        first.report(number, 1, 0.5)
    second = Leg(asha(), recorded, "second")
    for number in range(4):
        second.report(number, 1, 0.1, is_new=False)
    ((_, rung),) = [rung for rung in second.scheduler.rule.brackets[0]._rungs if rung[0] == 1]
    assert rung == {f"s-{number}": 0.5 for number in range(4)}


def test_a_decision_to_stop_survives_its_driver(asha: Callable[..., StudySpec], recorded: Any) -> None:
    first = Leg(asha(), recorded, "first")
    for number, value in [(0, 0.9), (1, 0.8)]:
        first.report(number, 1, value)
    assert first.report(2, 1, 0.1) == STOP  # and the driver is lost before it says so
    assert Leg(asha(), recorded, "second").report(2, 2, 0.95) == STOP


def test_epochs_without_the_metric_are_passed_over(asha: Callable[..., StudySpec], recorded: Any) -> None:
    leg = Leg(asha(), recorded, "first")
    trial = SimpleNamespace(trial_id="first-0")
    leg.scheduler.on_trial_add(None, trial)
    assert leg.scheduler.on_trial_result(None, trial, {"epoch": 1}) == CONTINUE


def test_without_a_scheduler_every_trial_goes_on(make_spec: Callable[..., StudySpec], recorded: Any) -> None:
    scheduler = scheduler_for(make_spec(), recorded.snapshot(), ours, IdleWorkers())
    assert isinstance(scheduler, FIFOScheduler)


def test_a_stopped_trial_says_against_how_many_others_it_lost(asha: Callable[..., StudySpec], recorded: Any) -> None:
    leg = Leg(asha(), recorded, "first")
    for number, value in [(0, 0.9), (1, 0.8), (2, 0.1)]:
        leg.report(number, 1, value)
    said = why_stopped(leg.scheduler, "s-2")
    assert said == (
        "asha, from epoch 1 on: val_accuracy 0.1 is below 0.85, the cutoff of 2 other trials that came so far, "
        "one seed each"
    )
    assert why_stopped(leg.scheduler, "s-0") is None


def test_where_less_is_better_it_is_above_the_cutoff(asha: Callable[..., StudySpec], recorded: Any) -> None:
    leg = Leg(asha("min"), recorded, "first")
    for number, value in [(0, 0.1), (1, 0.2), (2, 0.9)]:
        leg.report(number, 1, value)
    assert "val_accuracy 0.9 is above 0.15" in str(why_stopped(leg.scheduler, "s-2"))


@pytest.mark.parametrize(("mode", "worst"), [("max", -1), ("min", 1)])
@pytest.mark.parametrize(
    ("others", "value", "decision"),
    [
        ([math.inf, -0.5], sys.float_info.max, STOP),  # one has diverged before, and another one has not
        ([sys.float_info.max, -sys.float_info.max], -1.0, CONTINUE),  # the middle is 0
    ],
)
def test_cutoffs_between_values_of_any_size_are_numbers(
    others: list[float],
    value: float,
    decision: str,
    mode: str,
    worst: int,
    asha: Callable[..., StudySpec],
    recorded: Any,
) -> None:
    leg = Leg(asha(mode), recorded, "first")
    for number, other in enumerate(others):
        leg.report(number, 1, worst * other)
    assert leg.report(len(others), 1, worst * value) == decision


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_trials_that_confirm_are_neither_stopped_nor_compared_with(
    spec_with: Callable[..., StudySpec], name: str, recorded: Any
) -> None:
    """The last one searches, and is worse than all of them."""
    purposes = dict.fromkeys(range(9), Purpose.CONFIRM)
    scheduler = scheduler_for(
        spec_with(SCHEDULERS[name]),
        recorded.snapshot(),
        lambda tune_id: ours(tune_id, purposes.get(int(tune_id.split("-")[1]), Purpose.SEARCH)),
        IdleWorkers(),
    )
    for number in range(10):
        trial = SimpleNamespace(trial_id=f"first-{number}")
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, EPOCHS):
            said = scheduler.on_trial_result(None, trial, {"epoch": epoch, "val_accuracy": 0.9 - number / 20})
            assert said == CONTINUE


def test_hyperband_has_each_trial_in_one_bracket_by_its_number_alone(
    spec_with: Callable[..., StudySpec], recorded: Any
) -> None:
    spec = spec_with({"name": "hyperband", "reduction_factor": 2, "brackets": 3})
    rules = {study: Leg(spec, recorded, "first").scheduler.rule for study in ("a", "b")}
    brackets = [[rule.bracket_of(f"{study}-{number}-0") for number in range(1, 2001)] for study, rule in rules.items()]
    assert brackets[0] == brackets[1]
    shares = [brackets[0].count(bracket) / 2000 for bracket in range(3)]
    whole = math.exp(2) + math.exp(1) + 1  # rungs at 1, 2, 4, 8; 2, 4, 8; 4, 8
    assert shares == pytest.approx([math.exp(2) / whole, math.exp(1) / whole, 1 / whole], abs=0.03)


def test_hyperband_stops_nobody_before_the_first_rung_of_its_bracket(
    spec_with: Callable[..., StudySpec], recorded: Any
) -> None:
    leg = Leg(spec_with({"name": "hyperband", "reduction_factor": 2, "brackets": 3}), recorded, "first")
    ends: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for number in range(60):
        for epoch in range(1, EPOCHS + 1):
            if leg.report(number, epoch, -float(number)) == STOP:  # each is worse than all before it
                said = str(why_stopped(leg.scheduler, f"s-{number}"))
                bracket = int(said.partition("in bracket ")[2][0])
                ends[bracket].add(epoch)
                assert said.startswith(f"hyperband, from epoch {2**bracket} on in bracket {bracket}: val_accuracy")
                break
    assert ends == {0: {1}, 1: {2}, 2: {4}}


@given(
    order=st.lists(st.tuples(st.integers(0, TRIALS - 1), st.integers(0, 20)), min_size=1, max_size=80),
    mode=st.sampled_from(["max", "min"]),
    grace_period=st.integers(1, 4),
    min_trials=st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_the_median_rule_by_hand(
    spec_with: Callable[..., StudySpec],
    new_recording: Callable[[], Any],
    order: list[tuple[int, int]],
    mode: str,
    grace_period: int,
    min_trials: int,
) -> None:
    """A trial stops where its best is worse than the median of the others' means up to its epoch."""
    scheduler = {"name": "median", "grace_period": grace_period, "min_trials": min_trials}
    leg = Leg(spec_with(scheduler, mode), new_recording(), "first")
    seen: dict[int, list[float]] = {number: [] for number in range(TRIALS)}
    stopped = set()
    for number, value in order:
        if number in stopped or len(seen[number]) == EPOCHS:
            continue
        seen[number].append(float(value))
        epoch = len(seen[number])
        means = [
            statistics.fmean(values[grace_period - 1 : epoch])
            for other, values in seen.items()
            if other != number and len(values) >= epoch >= grace_period
        ]
        stops = False
        if len(means) >= min_trials:
            best, median = (max if mode == "max" else min)(seen[number]), statistics.median(means)
            stops = best < median if mode == "max" else best > median
        assert leg.report(number, epoch, float(value)) == (STOP if stops else CONTINUE)
        if stops:
            stopped.add(number)


@given(
    steps=st.lists(st.integers(1, 4), min_size=TRIALS, max_size=TRIALS),
    order=st.lists(st.tuples(st.integers(0, TRIALS - 1), st.integers(0, 20), st.booleans()), min_size=1, max_size=80),
    mode=st.sampled_from(["max", "min"]),
    grace_period=st.integers(1, 4),
    min_trials=st.integers(1, 4),
)
@settings(max_examples=100, deadline=None)
def test_the_median_rule_where_trials_do_not_report_every_epoch(
    spec_with: Callable[..., StudySpec],
    new_recording: Callable[[], Any],
    steps: list[int],
    order: list[tuple[int, int, bool]],
    mode: str,
    grace_period: int,
    min_trials: int,
) -> None:
    """Each trial has a step of its own, and reports some epochs once more, of which the first report counts."""
    scheduler = {"name": "median", "grace_period": grace_period, "min_trials": min_trials}
    leg = Leg(spec_with(scheduler, mode), new_recording(), "first")
    seen: dict[int, dict[int, float]] = {number: {} for number in range(TRIALS)}
    stopped = set()
    for number, value, is_again in order:
        last = max(seen[number], default=0)
        if number in stopped or last == EPOCHS:
            continue
        if is_again and last:
            assert leg.report(number, last, float(value)) == CONTINUE
            continue
        epoch = min(last + steps[number], EPOCHS)
        seen[number][epoch] = float(value)
        compared = [
            [one for at, one in values.items() if grace_period <= at <= epoch]
            for other, values in seen.items()
            if other != number and max(values, default=0) >= epoch >= grace_period
        ]
        means = [statistics.fmean(values) for values in compared if values]
        stops = False
        if len(means) >= min_trials:
            best, median = (max if mode == "max" else min)(seen[number].values()), statistics.median(means)
            stops = best < median if mode == "max" else best > median
        assert leg.report(number, epoch, float(value)) == (STOP if stops else CONTINUE)
        if stops:
            stopped.add(number)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_equal_trials_are_not_behind_the_median_by_rounding(
    spec_with: Callable[..., StudySpec], mode: str, recorded: Any
) -> None:
    """0.1 + 0.1 + 0.1 is above 0.3."""
    leg = Leg(spec_with(SCHEDULERS["median"], mode), recorded, "first")
    for epoch in range(1, EPOCHS + 1):
        assert [leg.report(number, epoch, 0.1) for number in range(3)] == [CONTINUE] * 3


def test_the_median_rule_passes_over_what_is_no_number(spec_with: Callable[..., StudySpec], recorded: Any) -> None:
    leg = Leg(spec_with(SCHEDULERS["median"]), recorded, "first")
    assert [leg.report(number, 1, math.nan) for number in range(4)] == [CONTINUE] * 4
    assert [leg.report(number, 2, value) for number, value in enumerate([0.9, math.inf, 0.8])] == [CONTINUE] * 2 + [
        STOP
    ]


def test_the_median_rule_of_a_large_study_is_replayed_at_once(
    spec_with: Callable[..., StudySpec], recorded: Any
) -> None:
    recorded.epoch_values.extend(
        EpochValue(f"s-{number}", epoch, 0.5 + epoch / 1000) for epoch in range(1, 91) for number in range(300)
    )
    began = time.process_time()
    leg = Leg(spec_with(SCHEDULERS["median"]), recorded, "first")
    assert time.process_time() - began < 5  # 0.2 s; where each result took all means anew, it took minutes
    assert leg.report(300, 90, 0.1) == STOP
    assert "the means of 300 other trials" in str(why_stopped(leg.scheduler, "s-300"))


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_of_a_result_its_numbers_alone_are_kept(spec_with: Callable[..., StudySpec], name: str, recorded: Any) -> None:
    class Order:
        """What comes with a result beside its metrics."""

    scheduler = Leg(spec_with(SCHEDULERS[name]), recorded, "first").scheduler
    orders: list[weakref.ref[Order]] = []
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(20):
        for epoch in range(1, 91):
            result = {"epoch": epoch, "val_accuracy": 0.5 + epoch / 1000, "config": (order := Order())}
            orders.append(weakref.ref(order))
            scheduler.on_trial_result(None, SimpleNamespace(trial_id=f"first-{number}"), result)
    del result, order
    gone = [ref() is None for ref in orders]
    orders.clear()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(gone)
    assert (kept - before) / (20 * 90) < 200  # bytes a result


def test_a_trial_below_the_median_says_what_it_lost_against(spec_with: Callable[..., StudySpec], recorded: Any) -> None:
    leg = Leg(spec_with({"name": "median"}), recorded, "first")
    for number, value in [(0, 0.9), (1, 0.8), (2, 0.6), (3, 0.7), (4, 0.2)]:
        leg.report(number, 1, value)
    assert why_stopped(leg.scheduler, "s-4") == (
        "median, epoch 1: the best val_accuracy so far, 0.2, is below 0.75, the median of the means of 4 other trials "
        "up to there, one seed each"
    )
