import copy
import itertools
import json
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.schedules import KINDS, Schedule, from_plain, learning_rate_at, to_plain, value_at


def values(schedule: Schedule, steps: int) -> list[float]:
    return [value_at(schedule, step) for step in range(1, steps + 1)]


def test_lambda_schedules_start_at_the_first_step_as_published() -> None:
    assert [value_at("1/t", t) for t in (1, 2, 4)] == [1, 0.5, 0.25]
    assert [value_at("1-1/t", t) for t in (1, 2, 4)] == [0, 0.5, 0.75]
    assert [value_at(0.3, t) for t in (1, 2, 4)] == [0.3, 0.3, 0.3]
    for kind in ("1/t", "1-1/t"):
        assert values(Schedule(kind), 50) == [value_at(kind, t) for t in range(1, 51)]


def test_steps_count_from_one_and_schedules_are_known() -> None:
    with pytest.raises(ValueError, match="t must be at least 1, got 0"):
        value_at(0.5, 0)
    with pytest.raises(ValueError, match="got '1/t²'"):
        value_at("1/t²", 1)


def test_t_may_count_epochs() -> None:
    assert values(Schedule("1/t", steps_per_t=3), 7) == [1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 3]
    assert values(Schedule("1-1/t", steps_per_t=2), 5) == [0, 0, 1 / 2, 1 / 2, 1 - 1 / 3]


def test_a_linear_schedule_goes_from_its_start_to_its_end_in_equal_strides_and_stays() -> None:
    assert values(Schedule("linear", 0.25, 0.75, total_steps=5), 7) == [0.25, 0.375, 0.5, 0.625, 0.75, 0.75, 0.75]
    assert values(Schedule("linear", 0.5, 0.0, total_steps=1), 2) == [0.5, 0.0]


def test_a_cosine_schedule_goes_through_the_middle_flat_at_both_ends() -> None:
    got = values(Schedule("cosine", 1.0, 0.2, total_steps=101), 101)
    assert (got[0], got[-1]) == (1.0, 0.2)
    assert got[50] == pytest.approx(0.6)
    assert got == sorted(got, reverse=True)
    assert got[0] - got[1] < 0.001 < 0.01 < got[50] - got[51]


def test_the_decreasing_schedule_is_that_of_the_theorem_which_counts_from_zero() -> None:
    assert values(Schedule("decreasing", 0.4), 5) == [min(0.4, 1 / (2 * t + 1)) for t in range(5)]
    assert values(Schedule("decreasing", 0.4), 3) == [0.4, 1 / 3, 1 / 5]


def test_a_warm_up_rises_to_the_whole_value_in_equal_strides() -> None:
    assert values(Schedule("constant", 0.4, warmup_steps=4), 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    falling = values(Schedule("linear", 0.4, 0.0, total_steps=9, warmup_steps=4), 9)
    assert falling == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1, 0.0])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize(("total_steps", "warmup_steps"), [(1, 0), (1, 3), (3, 3), (4, 3)])
def test_a_warm_up_that_leaves_one_step_or_none_has_the_end_from_the_step_after_the_next(
    kind: str, total_steps: int, warmup_steps: int
) -> None:
    got = values(Schedule(kind, 0.3, 0.1, total_steps, warmup_steps), warmup_steps + 3)
    warmed = [0.3 * step / warmup_steps for step in range(1, warmup_steps + 1)]
    assert got == pytest.approx([*warmed, 0.3, 0.1, 0.1])


def schedules() -> st.SearchStrategy[Schedule]:
    numbers, counts = st.floats(0, 1e6), st.integers(1, 50)
    moving = st.builds(
        Schedule, st.sampled_from(["linear", "cosine"]), numbers, numbers, counts, st.integers(0, 60), counts
    )
    others = [kind for kind in KINDS if kind not in ("linear", "cosine")]
    fixed = st.builds(
        lambda kind, start, warmup_steps, steps_per_t: Schedule(
            kind, start, warmup_steps=warmup_steps, steps_per_t=steps_per_t
        ),
        st.sampled_from(others),
        numbers,
        st.integers(0, 60),
        counts,
    )
    return moving | fixed


@given(schedules(), st.integers(1, 200))
def test_every_value_lies_between_zero_and_the_larger_end(schedule: Schedule, step: int) -> None:
    assert 0 <= value_at(schedule, step) <= schedule.largest * (1 + 1e-12)


@given(schedules())
def test_a_schedule_survives_pickles_copies_and_plain_data(schedule: Schedule) -> None:
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert copy.deepcopy(schedule) == schedule
    assert from_plain(json.loads(json.dumps(to_plain(schedule)))) == schedule  # type: ignore[arg-type]


def test_numbers_and_names_are_plain_already() -> None:
    assert to_plain("1/t") == from_plain("1/t") == "1/t"
    assert to_plain(1) == from_plain(1.0) == 1.0


def test_a_schedule_holds_pythons_own_numbers_and_names() -> None:
    schedule = Schedule(
        np.str_("cosine"),
        np.float32(0.5),  # type: ignore[arg-type]
        Fraction(1, 4),  # type: ignore[arg-type]
        total_steps=np.int64(10),  # type: ignore[arg-type]
        warmup_steps=np.int32(2),  # type: ignore[arg-type]
    )
    assert schedule == Schedule("cosine", 0.5, 0.25, total_steps=10, warmup_steps=2)
    assert [type(value) for value in to_plain(schedule).values()] == [str, float, float, int, int, int]  # type: ignore[union-attr]
    assert type(to_plain(np.str_("1/t"))) is str
    assert type(to_plain(np.float32(1))) is float  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [{"kind": "1/t", "begin": 0.5}, {"start": 0.5}, {}], ids=str)
def test_plain_data_with_other_fields_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the fields of a schedule are kind, start, end, total_steps") as caught:
        from_plain(data)
    assert str(caught.value).endswith(f"steps_per_t, got {list(data)}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "exponential"}, "kind must be one of constant, linear, cosine, 1/t, 1-1/t, decreasing"),
        ({"kind": "constant", "start": -0.1}, "start must be a finite number of at least 0, got -0.1"),
        ({"kind": "constant", "start": math.inf}, "start must be a finite number of at least 0, got inf"),
        ({"kind": "constant", "start": "1"}, "start must be a finite number"),
        ({"kind": "constant", "start": np.float32(np.nan)}, "start must be a finite number"),
        ({"kind": "constant", "start": Fraction(10**400)}, "start must be a finite number"),
        ({"kind": "constant", "start": np.bool_(True)}, "start must be a finite number"),
        ({"kind": "linear", "total_steps": 3}, "end must be a finite number of at least 0, got None"),
        ({"kind": "cosine", "end": math.nan, "total_steps": 3}, "end must be a finite number"),
        ({"kind": "linear", "end": 0.5}, "total_steps must be an integer of at least 1, got None"),
        ({"kind": "linear", "end": 0.5, "total_steps": 0}, "total_steps must be an integer of at least 1, got 0"),
        ({"kind": "1/t", "end": 0.5}, "a 1/t schedule takes neither end nor total_steps"),
        ({"kind": "constant", "total_steps": 3}, "a constant schedule takes neither end nor total_steps"),
        ({"kind": "1/t", "steps_per_t": 0}, "steps_per_t must be an integer of at least 1, got 0"),
        ({"kind": "constant", "warmup_steps": -1}, "warmup_steps must be an integer of at least 0, got -1"),
        ({"kind": "constant", "warmup_steps": 1.5}, "warmup_steps must be an integer of at least 0, got 1.5"),
        ({"kind": "constant", "warmup_steps": True}, "warmup_steps must be an integer of at least 0, got True"),
    ],
)
def test_a_schedule_checks_itself(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


def rates(schedule: str, steps: int, **arguments: Any) -> list[float]:
    return [learning_rate_at(schedule, step, lr=0.2, total_steps=steps, **arguments) for step in range(steps)]


def test_cosine_falls_from_the_learning_rate_through_its_half_to_almost_nothing() -> None:
    got = rates("cosine", 100)
    assert got[0] == 0.2
    assert got[50] == pytest.approx(0.1)
    assert 0 < got[-1] < 1e-4
    assert got == sorted(got, reverse=True)
    assert set(rates("constant", 9)) == {0.2}


def test_linear_falls_in_equal_strides_towards_zero() -> None:
    assert rates("linear", 4) == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_step_falls_to_a_tenth_at_three_quarters_and_again_at_nine_tenths() -> None:
    assert rates("step", 20) == pytest.approx([0.2] * 15 + [0.02] * 3 + [0.002] * 2)
    assert rates("step", 20, warmup_steps=4) == pytest.approx([0.05, 0.1, 0.15, *[0.2] * 12, *[0.02] * 3, *[0.002] * 2])


def test_decreasing_is_the_rate_of_the_theorem() -> None:
    got = rates("decreasing", 200, mu=0.5)
    assert got == [min(0.2, (2 * t + 1) / ((t + 1) ** 2 * 0.5)) for t in range(200)]
    assert got[0] == 0.2
    assert got[-1] < 0.03
    for mu in (None, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="needs mu above 0, got"):
            rates("decreasing", 3, mu=mu)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_after_a_warm_up_a_schedule_runs_in_the_steps_that_are_left(schedule: str) -> None:
    got = rates(schedule, 10, warmup_steps=4)
    assert got[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert got[4:] == pytest.approx(rates(schedule, 6))


def test_a_warm_up_as_long_as_the_run_only_rises() -> None:
    for schedule in ("constant", "cosine", "linear"):
        assert all(low < high for low, high in itertools.pairwise(rates(schedule, 8, warmup_steps=8)))


def test_an_unknown_learning_rate_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of constant, cosine, linear, step, decreasing, got 'square'"):
        learning_rate_at("square", 0, lr=0.1, total_steps=1)
