from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.placement import Node, has_place
from service.shares import MOST_SLOTS, Demand, Usage, fair_shares

ENDLESS = float("inf")


def demand(
    name: str, owner: str = "ada", *, cpu: float = 1, gpu: float = 0, wanted: float = ENDLESS, running: int = 0
) -> Demand:
    return Demand(name, owner, cpu, gpu, wanted, running)


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


def test_a_trial_that_fits_on_no_node_asks_for_one_and_takes_nothing() -> None:
    """What a cluster that grows goes by; others have all that there is."""
    assert fair_shares([demand("a", gpu=1), demand("b")], [Node(4, 0)]) == {"a": 1, "b": 4}
    assert fair_shares([demand("a", cpu=3), demand("b")], [Node(2, 0), Node(2, 0)]) == {"a": 1, "b": 4}
    assert fair_shares([demand("a", gpu=1, wanted=0), demand("b")], [Node(4, 0)]) == {"a": 0, "b": 4}


@pytest.mark.parametrize(
    ("node", "count", "trial", "shares"),
    [
        (Node(8, 8), 2, (1, 5), [1, 1]),
        (Node(2, 1), 2, (1, 0.6), [1, 1]),
        (Node(4, 0), 3, (3, 0), [1, 1, 1]),
        (Node(8, 0), 4, (5, 0), [1, 1, 1, 1, 0]),
    ],
)
def test_what_is_left_on_several_nodes_is_no_slot(
    node: Node, count: int, trial: tuple[float, float], shares: list[int]
) -> None:
    """Else the first owner filled the nodes, and the slot of the last one, who had no turn then, never came true."""
    cpu, gpu = trial
    demands = [demand(str(number), f"owner {number}", cpu=cpu, gpu=gpu) for number in range(len(shares))]
    assert list(fair_shares(demands, [node] * count).values()) == shares


def test_large_and_small_trials_share_nodes() -> None:
    demands = [demand("large", "ada", cpu=3), demand("small", "bob", cpu=1)]
    assert fair_shares(demands, [Node(4, 0), Node(4, 0)]) == {"large": 1, "small": 5}


def test_with_more_studies_than_slots_the_later_ones_wait() -> None:
    shares = fair_shares([demand(name) for name in "abc"], [Node(2, 0)])
    assert shares == {"a": 1, "b": 1, "c": 0}


@dataclass
class _Trial:
    study: Demand
    ends_at: float = inf


def simulated(
    asked: dict[str, tuple[Demand, float]], nodes: list[Node], hours: int, *, comes_at: dict[str, float] | None = None
) -> dict[str, float]:
    """CPU hours by study of trials that last so many minutes; a look every minute.

    As in the service, a study asks for workers up to its share, what it has asked for is not taken back, and each
    begins as soon as it fits.
    """
    usage, training, waiting, had = Usage(), list[_Trial](), list[_Trial](), dict.fromkeys(asked, 0.0)
    for minute in range(hours * 60):
        there = [one for name, (one, _) in asked.items() if minute >= 60 * (comes_at or {}).get(name, 0)]
        trained = Counter(trial.study.study_id for trial in training)
        demands = [replace(one, running=trained[one.study_id]) for one in there]
        usage.count(demands, nodes, now=60.0 * minute)
        shares = fair_shares(demands, nodes, usage)
        training = [trial for trial in training if trial.ends_at > minute]
        for one in there:
            slots = shares[one.study_id]
            issued = sum(trial.study.study_id == one.study_id for trial in (*training, *waiting))
            waiting += [_Trial(one)] * max(0, (int(nodes[0].cpu) if slots is None else slots) - issued)
        for trial in list(waiting):
            if sum(other.study.cpu for other in training) + trial.study.cpu <= sum(node.cpu for node in nodes):
                waiting.remove(trial)
                training.append(_Trial(trial.study, minute + asked[trial.study.study_id][1]))
        for trial in training:
            had[trial.study.study_id] += trial.study.cpu / 60
    return had


@pytest.mark.parametrize("first", ["small", "large"])
@pytest.mark.parametrize(("small_min", "large_min"), [(5, 5), (7, 240), (240, 7)])
def test_owners_whose_trials_do_not_fit_side_by_side_have_the_same_over_time(
    first: str, small_min: float, large_min: float
) -> None:
    asked = {
        "small": (demand("small", "ada", cpu=1), small_min),
        "large": (demand("large", "bob", cpu=8), large_min),
    }
    ordered = {name: asked[name] for name in sorted(asked, key=lambda name: name != first)}
    had = simulated(ordered, [Node(8, 0)], 24 * 4)
    assert had["small"] + had["large"] > 0.85 * 8 * 24 * 4  # what idles waits for the last of the small ones
    assert had["small"] == pytest.approx(had["large"], abs=2 * 8 * 4)  # two turns of the longer ones


def test_more_owners_than_slots_take_turns() -> None:
    asked = {name: (demand(name, f"owner of {name}"), 10.0) for name in "abcde"}
    had = simulated(asked, [Node(2, 0)], 100)
    assert sum(had.values()) == pytest.approx(200, rel=0.01)
    assert all(hours == pytest.approx(40, rel=0.05) for hours in had.values())


def test_an_owner_of_many_studies_has_no_more_than_one_of_one() -> None:
    asked = {name: (demand(name, "ada"), 10.0) for name in "abcd"} | {"e": (demand("e", "bob"), 10.0)}
    had = simulated(asked, [Node(2, 0)], 100)
    assert had["e"] == pytest.approx(100, rel=0.02)
    assert had["a"] == pytest.approx(100, rel=0.02)  # the younger ones wait


def test_who_comes_later_is_owed_nothing() -> None:
    asked = {"small": (demand("small", "ada"), 5.0), "large": (demand("large", "bob", cpu=8), 5.0)}
    had = simulated(asked, [Node(8, 0)], 200, comes_at={"large": 100})
    assert had["large"] == pytest.approx(400, rel=0.1)
    assert had["small"] == pytest.approx(800 + 400, rel=0.1)


def counted(usage: Usage, demands: list[Demand], seconds: float, *, since: float, nodes: list[Node]) -> float:
    """A look every second; answers when the last one was."""
    for second in range(int(seconds) + 1):
        usage.count(demands, nodes, now=since + second)
    return since + int(seconds)


def test_usage_is_what_has_trained() -> None:
    usage = Usage()
    counted(usage, [demand("a", "ada", running=2), demand("b", "bob", running=1)], 10, since=0, nodes=[Node(4, 0)])
    assert (usage.of("ada"), usage.of("bob")) == (5.0, 2.5)


def test_a_time_without_looks_is_nobodys() -> None:
    """The machine slept, another controller led, or ada was alone, when nobody looks."""
    usage, nodes = Usage(), [Node(4, 0)]
    now = counted(usage, [demand("a", "ada", cpu=4, running=1), demand("c", "cyd", cpu=4)], 15, since=0, nodes=nodes)
    both = [demand("a", "ada", cpu=4, running=1), demand("b", "bob", cpu=4)]
    usage.count(both, nodes, now=now + 3600)
    assert usage.of("ada") - usage.of("bob") <= 60
    assert fair_shares(both, nodes, usage) == {"a": 1, "b": 0}


def test_who_comes_is_owed_no_more_than_those_who_wait() -> None:
    """cyd, who has all that cyd wants, has had little; ada and bob take turns."""
    usage, nodes = Usage(), [Node(4, 0), Node(4, 0)]
    one = demand("c", "cyd", wanted=1, running=1)
    now = 0.0
    for turn in range(40):
        running = (1, 0) if turn % 2 else (0, 1)
        turns = [
            demand(name, owner, cpu=4, running=n) for name, owner, n in zip("ab", ("ada", "bob"), running, strict=True)
        ]
        now = counted(usage, [*turns, one], 60, since=now, nodes=nodes)
    all_four = [demand("a", "ada", cpu=4), demand("b", "bob", cpu=4), one, demand("d", "dan", cpu=4)]
    usage.count(all_four, nodes, now=now + 1)
    assert usage.of("dan") >= min(usage.of("ada"), usage.of("bob")) > 500
    assert usage.of("cyd") >= min(usage.of("ada"), usage.of("bob"))


def test_who_is_away_for_a_moment_is_owed_the_same() -> None:
    usage, nodes = Usage(), [Node(4, 0)]
    ada, bob = demand("a", "ada", cpu=4, running=1), demand("b", "bob", cpu=4)
    now = counted(usage, [ada, bob], 300, since=0, nodes=nodes)
    owed = usage.of("ada") - usage.of("bob")
    now = counted(usage, [ada], 60, since=now, nodes=nodes)
    usage.count([ada, bob], nodes, now=now + 1)
    assert usage.of("ada") - usage.of("bob") >= owed == 300
    now = counted(usage, [ada], 700, since=now + 1, nodes=nodes)
    usage.count([ada, bob], nodes, now=now + 1)
    assert usage.of("bob") == usage.of("ada")  # as if bob had come anew


def test_a_study_that_no_node_holds_makes_nobodys_turn_longer_and_nobody_rich() -> None:
    usage, nodes = Usage(), [Node(4, 0)]
    waits = demand("c", "cyd", cpu=1024)
    both = [demand("a", "ada", cpu=4, running=1), demand("b", "bob", cpu=4)]
    now = counted(usage, [*both, waits], 61, since=0, nodes=nodes)
    assert fair_shares([*both, waits], nodes, usage) == {"a": 0, "b": 1, "c": 1}
    turned = [replace(both[0], running=0), replace(both[1], running=1)]
    now = counted(usage, [*turned, waits], 300, since=now, nodes=nodes)
    usage.count([*turned, waits, demand("d", "dan", cpu=4)], nodes, now=now)
    assert usage.of("dan") == usage.of("ada") == 61


@pytest.mark.parametrize("amount", [1e-11, 1e-300, 5e-324])
def test_no_amount_is_too_small_for_the_others(amount: float) -> None:
    """The spec refuses them; one that is in the store all the same must not keep everybody from a share."""
    for tiny in (demand("a", cpu=amount), demand("a", gpu=amount)):
        shares = fair_shares([tiny, demand("b", "bob")], [Node(4, 1)])
        assert shares["b"] is not None
        assert shares["b"] >= 2


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
    asked = [Demand(str(index), owner, cpu, gpu, most, 0) for index, (owner, cpu, gpu, most) in enumerate(demands)]
    has = [Node(cpu, gpu) for cpu, gpu in nodes]
    shares = fair_shares(asked, has)
    assert all(0 <= (shares[one.study_id] or 0) <= one.wanted for one in asked)
    given = [(one, shares[one.study_id] or 0) for one in asked if has_place(one.cpu, one.gpu, has)]
    assert sum(slots * one.cpu for one, slots in given) <= sum(cpu for cpu, _ in nodes) + 1e-6
    assert sum(slots * one.gpu for one, slots in given) <= sum(gpu for _, gpu in nodes) + 1e-6
