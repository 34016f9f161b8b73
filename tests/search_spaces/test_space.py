from __future__ import annotations

import time
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces import NAMED_SPACES, GridNeedsStepError, SearchSpace, point_key


def space(**parameters: dict[str, Any]) -> SearchSpace:
    return SearchSpace.model_validate(parameters)


def choice(*values: object, **when: Any) -> dict[str, Any]:
    return {"type": "categorical", "choices": list(values), "when": when}


def message_of(**parameters: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        space(**parameters)
    return str(caught.value)


def test_the_first_parameter_is_slowest() -> None:
    points = list(space(a=choice(1, 2), b=choice("x", "y")).grid())
    assert points == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


def test_a_conditional_parameter_is_in_a_point_only_where_its_condition_holds() -> None:
    tried = space(factor={"type": "int", "low": 2, "high": 3, "when": {"how": ["norm"]}}, how=choice("flat", "norm"))
    assert tried.ordered() == ("how", "factor")
    assert list(tried.grid()) == [
        {"how": "flat"},
        {"how": "norm", "factor": 2},
        {"how": "norm", "factor": 3},
    ]
    assert tried.active({"how": "flat", "factor": 2}) == ("how",)
    assert tried.contains({"how": "norm", "factor": 3})
    assert not tried.contains({"how": "norm"})
    assert not tried.contains({"how": "flat", "factor": 2})
    assert not tried.contains({"how": "norm", "factor": 4})


def test_a_point_within_rounding_is_snapped_to_one_of_the_grid() -> None:
    rho = {"type": "float", "low": 0.1, "high": 0.5, "step": 0.1, "when": {"how": [1]}}
    tried = space(rho=rho, how=choice(0, 1))
    copy = {"rho": 0.1 + 0.2, "how": 1.0}
    assert tried.contains(copy)
    assert not tried.is_exact(copy)
    assert tried.snapped(copy) in list(tried.grid())
    assert all(tried.is_exact(point) and tried.snapped(point) == point for point in tried.grid())
    assert tried.is_exact({"how": 0.0})
    assert not tried.is_exact({"how": 0, "rho": 0.3})


def test_what_depends_on_an_inactive_parameter_is_inactive() -> None:
    tried = space(a=choice(0, 1), b=choice(0, 1, a=[1]), c=choice(0, 1, b=[0, 1]))
    assert [len(point) for point in tried.grid()] == [1, 3, 3, 3, 3]


def test_a_condition_does_not_confuse_1_and_true() -> None:
    tried = space(a=choice(1, True), b=choice("x", a=[True]))
    assert [len(point) for point in tried.grid()] == [1, 2]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"a": choice(1), "b": choice(1, aa=[1])}, "'aa' is no parameter of this space; did you mean 'a'?"),
        ({"a": choice(1), "b": choice(1, a=[2])}, "a never has the value 2"),
        ({"a": choice(1, a=[1])}, "a cannot depend on itself"),
        ({"a": choice(1, b=[1]), "b": choice(1, a=[1])}, "must not go in a circle: a → b → a"),
        ({"a": {"type": "float", "low": 0, "high": 1}, "b": choice(1, a=[1])}, "and a is a float"),
        ({f"p{index}": choice(1) for index in range(65)}, "at most 64 parameters, got 65"),
        ({"a b": choice(1)}, "letters, digits and underscores"),
        ({}, "at least 1"),
    ],
)
def test_a_broken_structure_is_refused(parameters: dict[str, Any], words: str) -> None:
    assert words in message_of(**parameters)


def test_a_huge_grid_is_counted_and_started_at_once() -> None:
    huge = space(**{f"p{index}": {"type": "int", "low": 1, "high": 10**12} for index in range(64)})
    assert huge.grid_size() == 10 ** (12 * 64)
    assert set(next(huge.grid()).values()) == {1}
    assert len(list(islice(huge.corners(), 100))) == 100


def test_a_long_chain_of_conditions_is_counted() -> None:
    chain = {"p0": choice(0, 1)} | {f"p{i}": choice(0, 1, **{f"p{i - 1}": [1]}) for i in range(1, 64)}
    assert space(**chain).grid_size() == 65


def test_conditions_that_nobody_could_count_are_refused() -> None:
    parents = {f"p{index}": choice(0, 1) for index in range(32)}
    children = {f"c{index}": choice(0, 1, **{f"p{index}": [1]}) for index in range(32)}
    assert "too entangled" in message_of(**parents, **children)


def test_values_that_the_same_conditions_hold_for_are_counted_as_one() -> None:
    """A chain in which each asks for every value of the one before, beside one that is remembered to the end."""
    every = list(range(1_000))
    chain: dict[str, Any] = {"r": choice(0, 1, 2, 3), "p0": {"type": "int", "low": 0, "high": 999}}
    for index in range(1, 18):
        chain[f"p{index}"] = {"type": "int", "low": 0, "high": 999, "when": {f"p{index - 1}": every}}
    chain["z"] = choice(0, 1, r=[0, 1, 2], p17=[0])
    began = time.process_time()
    assert space(**chain).grid_size() == 1_000**17 * (4 * 999 + 3 * 2 + 1)
    assert time.process_time() - began < 3  # 0.2 s; value by value it took minutes


def test_counting_gives_up_in_time_and_takes_little_memory() -> None:
    """Every value told apart from every other by the conditions of ten, for two parents that are remembered at once."""
    bits = {
        f"{parent}{bit}": choice(0, **{parent: [value for value in range(1_000) if value >> bit & 1]})
        for parent in "pq"
        for bit in range(10)
    }
    parents = {parent: {"type": "int", "low": 0, "high": 999} for parent in "pq"}
    began = time.process_time()
    assert "too entangled" in message_of(**parents, **bits)
    assert time.process_time() - began < 3
    remembered = {f"p{index}": choice(0, 1) for index in range(11)} | {f"q{index}": choice(0) for index in range(28)}
    meanwhile = {f"t{index}": choice(0, 1, p0=[0]) for index in range(24)}
    last = choice(0, **{name: [0] for name in remembered})
    began = time.process_time()
    assert "too entangled" in message_of(**remembered, **meanwhile, z=last)
    assert time.process_time() - began < 3


def test_parameters_that_depend_on_nothing_cost_nothing_beside_what_is_remembered() -> None:
    parents = {f"p{index}": choice(0, 1) for index in range(12)}
    others = {f"t{index}": choice(0, 1) for index in range(50)}
    last = choice(0, 1, **{name: [1] for name in parents})
    assert space(**parents, **others, z=last).grid_size() == 2**50 * (2**12 + 1)


def test_a_grid_over_a_continuum_names_the_parameters_without_a_step() -> None:
    continuous = NAMED_SPACES["lambda_rho_continuous"].space
    assert continuous.size() is None
    with pytest.raises(GridNeedsStepError, match="lambda, rho"):
        continuous.grid()
    with pytest.raises(GridNeedsStepError):
        continuous.grid_size()


def test_corners_of_some_names_bring_their_parents_and_the_values_that_matter() -> None:
    tried = space(tau={"type": "int", "low": 1, "high": 9}, noise=choice("x"), b=choice("y", tau=[5]))
    assert list(tried.corners(["b"])) == [{"tau": 1}, {"tau": 9}, {"tau": 5, "b": "y"}]


def test_the_papers_grid_is_five_by_four() -> None:
    paper = NAMED_SPACES["paper_lambda_rho"].space
    assert paper.grid_size() == 20
    assert {point["lambda"] for point in paper.grid()} == {0.0, 0.5, 1.0, "1/t", "1-1/t"}


@pytest.mark.parametrize("name", NAMED_SPACES)
def test_a_named_space_survives_json(name: str) -> None:
    named = NAMED_SPACES[name]
    assert named.name == name
    assert SearchSpace.model_validate_json(named.space.model_dump_json()) == named.space


@st.composite
def small_spaces(draw: st.DrawFn) -> SearchSpace:
    parameters: dict[str, Any] = {}
    for index in range(draw(st.integers(1, 5))):
        parents = draw(st.lists(st.sampled_from(list(parameters)), max_size=2, unique=True)) if parameters else []
        when = {name: draw(st.lists(st.integers(0, 2), min_size=1, max_size=2)) for name in parents}
        parameters[f"p{index}"] = {"type": "int", "low": 0, "high": 2, "when": when}
    shuffled = draw(st.permutations(list(parameters)))
    return SearchSpace.model_validate({name: parameters[name] for name in shuffled})


@given(small_spaces())
@settings(max_examples=60, deadline=None)
def test_the_grid_has_as_many_distinct_points_as_counted_and_contains_each(tried: SearchSpace) -> None:
    points = list(tried.grid())
    assert len({point_key(point) for point in points}) == len(points) == tried.grid_size() == tried.size()
    assert all(tried.contains(point) for point in points)
