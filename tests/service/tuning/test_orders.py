"""What a worker is told of its trial."""

from __future__ import annotations

from typing import Any

import pytest

from service.spec import parse_spec
from service.study import Purpose
from service.tuning.decisions import IssuedTrial
from service.tuning.orders import TrialOrder, TrialReport, order_for_trial

SPEC: dict[str, Any] = {
    "name": "orders",
    "search_space": {"rho": {"type": "categorical", "choices": [0.05, 0.1]}},
    "objective": {"metric": "val_accuracy", "mode": "max"},
}


def order(**changes: Any) -> TrialOrder:
    issued = IssuedTrial("s-t1", 2, 3, {"rho": 0.1}, 7, Purpose.SEARCH, 60.0, 12.5)
    return order_for_trial(parse_spec({**SPEC, **changes}), "s", issued, storage_uri="file:///there")


def test_an_order_says_what_to_train_from_where_and_for_how_long() -> None:
    told = order(train={"epochs": 9}, checkpoint={"every_epochs": 2})
    assert (told.study_id, told.trial_id, told.attempt, told.epochs_done) == ("s", "s-t1", 2, 3)
    assert (told.train["rho"], told.train["epochs"], told.train["seed"]) == (0.1, 9, 7)
    assert (told.max_trial_s, told.seconds_left) == (60.0, 12.5)
    assert (told.checkpoint_every_epochs, told.keep_last_checkpoint) == (2, True)
    assert TrialOrder.from_tune_config(told.to_tune_config()) == told


@pytest.mark.parametrize(
    ("checkpoint", "last", "best_by"),
    [
        ({}, True, None),
        ({"keep": "best"}, False, "val_accuracy"),
        ({"keep": "latest_and_best"}, True, "val_accuracy"),
        ({"keep": "none"}, False, None),
        ({"keep": "latest_and_best", "every_epochs": 0}, False, None),
    ],
)
def test_an_order_says_what_is_to_stay(checkpoint: dict[str, Any], last: bool, best_by: str | None) -> None:
    told = order(checkpoint=checkpoint)
    assert (told.keep_last_checkpoint, told.best_by, told.best_mode) == (last, best_by, "max")


@pytest.mark.parametrize(("cpu", "threads"), [(0.5, 1), (1, 1), (3, 3)])
def test_a_trial_has_as_many_threads_as_cores(cpu: float, threads: int) -> None:
    assert order(resources_per_trial={"cpu": cpu}).threads == threads


@pytest.mark.parametrize(
    ("device", "gpu", "told"),
    [("auto", 0, "cpu"), ("cpu", 0, "cpu"), ("auto", 1, "auto"), ("auto", 0.5, "auto"), ("cuda", 1, "cuda")],
)
def test_a_trial_that_has_no_gpu_takes_none(device: str, gpu: float, told: str) -> None:
    trained = order(train={"device": device}, resources_per_trial={"gpu": gpu}).train
    assert trained["device"] == told


def test_what_another_version_says_beside_is_left_out() -> None:
    """In the midst of an upgrade a driver may be of another version than its workers."""
    told = order()
    config = told.to_tune_config()
    config["orders"][0]["new_in_another_version"] = 1
    assert TrialOrder.from_tune_config(config) == told
    report = TrialReport("s-1-0", 1, 1, {}, False)
    result = report.to_tune_result()
    result["reports"][0]["new_in_another_version"] = 1
    assert TrialReport.from_tune_result(result) == report
