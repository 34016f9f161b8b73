"""Text and numbers of any kind within MLflow's limits."""

from __future__ import annotations

import math
import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

from service.tracking import limits
from service.tracking.limits import MetricPoint, RunContent, batches


@pytest.mark.parametrize("name", ["val_accuracy", "best.lambda", "a b", "train/loss", "λ"])
def test_a_legal_key_stays_as_it_is(name: str) -> None:
    assert limits.key(name) == name


@given(st.text(max_size=400))
def test_every_name_becomes_a_legal_key(name: str) -> None:
    key = limits.key(name)
    _validate_metric_name(key)
    _validate_tag_name(key)
    assert 1 <= len(key) <= limits.MAX_KEY
    assert posixpath.normpath(key) == key
    assert re.fullmatch(r"[/\w.\- ]+", key)


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_names_never_become_one_key(first: str, second: str) -> None:
    assert (limits.key(first) == limits.key(second)) == (first == second)


@given(st.text(st.characters(codec=None), max_size=50))
def test_every_text_can_be_sent(value: str) -> None:
    sent = limits.text(value)
    sent.encode()
    assert "\x00" not in sent


def test_long_text_loses_its_end_and_a_traceback_its_beginning() -> None:
    long = "first " + "x" * limits.MAX_TAG + " last"
    assert len(limits.text(long)) == len(limits.last_lines(long)) == limits.MAX_TAG
    assert limits.text(long).startswith("first ")
    assert limits.last_lines(long).endswith(" last")
    assert limits.last_lines("short") == "short"


def test_little_goes_into_one_batch_and_nothing_into_none() -> None:
    content = RunContent({"lr": "0.1"}, {"state": "RUNNING"}, [MetricPoint("loss", 1.0, 1, 0)])
    assert list(batches(content)) == [content]
    assert list(batches(RunContent())) == []


def test_numbers_that_mlflow_cannot_show_are_left_out() -> None:
    points = [MetricPoint("loss", value, step, 0) for step, value in enumerate([math.nan, 1.0, math.inf, -math.inf])]
    (batch,) = batches(RunContent(metrics=points))
    assert [point.step for point in batch.metrics] == [1]


def test_much_is_split_at_mlflows_limits_and_nothing_is_lost() -> None:
    content = RunContent(
        params={f"param {number}": "ρ" * limits.MAX_PARAM for number in range(250)},
        tags={f"tag {number}": "x" for number in range(250)},
        metrics=[MetricPoint("loss", 0.5, step, 0) for step in range(2_500)],
    )
    parts = list(batches(content))
    for part in parts:
        assert len(part.params) <= 100
        assert len(part.tags) <= 100
        assert len(part.params) + len(part.tags) + len(part.metrics) <= 1_000
        assert sum(6 * len(value) for value in part.params.values()) < 1_000_000
    assert {name: value for part in parts for name, value in part.params.items()} == content.params
    assert {name: value for part in parts for name, value in part.tags.items()} == content.tags
    assert [point for part in parts for point in part.metrics] == content.metrics
