from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from service.shares import MOST_SLOTS, Demand, Node, fair_shares

ENDLESS = float("inf")


def demand(name: str, owner: str = "ada", *, cpu: float = 1, gpu: float = 0, wanted: float = ENDLESS) -> Demand:
    return Demand(name, owner, cpu, gpu, wanted)


def test_one_study_has_no_limit() -> None:
    assert fair_shares([demand("a")], [Node(2, 0)]) == {"a": None}


def test_a_cluster_that_is_not_known_sets_no_limit() -> None:
    assert fair_shares([demand("a"), demand("b")], []) == {"a": None, "b": None}


def test_equal_studies_have_equal_shares_and_the_older_one_the_rest() -> None:
    assert fair_shares([demand("a"), demand("b")], [Node(3, 0), Node(2, 0)]) == {"a": 3, "b": 2}


def test_owners_have_equal_shares_however_many_studies_they_have() -> None:
    shares = fair_shares([demand("a"), demand("b"), demand("c"), demand("d", "bob")], [Node(6, 0)])
    assert shares == {"a": 1, "b": 1, "c": 1, "d": 3}


def test_what_one_does_not_want_the_others_have() -> None:
    assert fair_shares([demand("a", wanted=1), demand("b", "bob")], [Node(8, 0)]) == {"a": 1, "b": 7}


def test_the_resource_that_is_scarce_for_each_decides() -> None:
    """The example of the paper: 9 CPUs and 18 GB; tasks of (1 CPU, 4 GB) and (3 CPUs, 1 GB) get 3 and 2."""
    shares = fair_shares([demand("a", cpu=1, gpu=4), demand("b", "bob", cpu=3, gpu=1)], [Node(9, 18)])
    assert shares == {"a": 3, "b": 2}


def test_a_trial_that_fits_on_no_node_has_no_share() -> None:
    assert fair_shares([demand("a", gpu=1), demand("b")], [Node(4, 0)]) == {"a": 0, "b": 4}
    assert fair_shares([demand("a", cpu=3), demand("b")], [Node(2, 0), Node(2, 0)]) == {"a": 0, "b": 4}


def test_with_more_studies_than_slots_the_later_ones_wait() -> None:
    shares = fair_shares([demand(name) for name in "abc"], [Node(2, 0)])
    assert shares == {"a": 1, "b": 1, "c": 0}


def test_trials_of_any_size_are_shared_out_at_once() -> None:
    tiny = [demand(str(number), f"owner {number % 3}", cpu=0.0001) for number in range(20)]
    began = time.process_time()
    shares = fair_shares(tiny, [Node(256, 0)])
    assert set(shares.values()) == {MOST_SLOTS}
    assert time.process_time() - began < 5  # of a lease of 10 s, and it took minutes


@given(
    demands=st.lists(
        st.tuples(
            st.sampled_from("xyz"), st.sampled_from([0.5, 1, 2]), st.sampled_from([0, 0.5, 1]), st.integers(0, 9)
        ),
        min_size=2,
        max_size=6,
    ),
    nodes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_shares_fit_into_the_cluster_and_nobody_has_more_than_it_wants(
    demands: list[tuple[str, float, float, int]], nodes: list[tuple[int, int]]
) -> None:
    asked = [Demand(str(index), owner, cpu, gpu, most) for index, (owner, cpu, gpu, most) in enumerate(demands)]
    shares = fair_shares(asked, [Node(cpu, gpu) for cpu, gpu in nodes])
    given = [(one, shares[one.study_id] or 0) for one in asked]
    assert all(0 <= slots <= one.wanted for one, slots in given)
    assert sum(slots * one.cpu for one, slots in given) <= sum(cpu for cpu, _ in nodes) + 1e-6
    assert sum(slots * one.gpu for one, slots in given) <= sum(gpu for _, gpu in nodes) + 1e-6
