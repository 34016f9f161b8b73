"""Two real processes train together over gloo; what they come to is compared with one process and with the formula."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.unified_sam.reference import Group, Reference, a_batch, a_model, constant, same, weights_of
from tests.trainers.unified_sam.replica import SCENARIOS, SETTINGS, SPOILT_STEP, STEPS

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120

Outcomes = list[dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What each replica wrote, of all scenarios in one start of the processes."""
    folder = tmp_path_factory.mktemp("replicas")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.trainers.unified_sam.replica", "2", str(folder)],
        cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as both:
        try:
            output = both.communicate(timeout=DEADLINE_S)[0]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(both.pid, signal.SIGKILL)
    assert both.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def reference(**options: float) -> Reference:
    eta = options.pop("eta", None)
    group = Group([0, 1, 2, 3], constant(SETTINGS["rho"]), constant(SETTINGS["lam"]), eta)
    sgd = {name: SETTINGS[name] for name in ("lr", "momentum", "weight_decay")}
    return Reference(a_model(), [group], **sgd, **options)


def assert_agrees(outcome: dict[str, Any], step: int, expected: Reference) -> None:
    for one, other in zip(outcome["weights"][step], weights_of(expected.model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "scenario", [*SCENARIOS, "scaler", *(f"batch normalisation, {w}" for w in ("per replica", "synchronised"))]
)
def test_replicas_stay_equal_bit_for_bit(outcomes: Outcomes, scenario: str) -> None:
    first, second = (outcome[scenario] for outcome in outcomes)
    for one, other in zip(first["weights"], second["weights"], strict=True):
        assert same(one, other)
    for name in ("t", "skipped_steps", "scale", "norms"):
        assert first.get(name) == second.get(name)


def test_a_synchronised_step_is_that_of_one_process_with_the_whole_batch(outcomes: Outcomes) -> None:
    expected = reference()
    for number in range(STEPS):
        parts = [a_batch(10 * number + rank) for rank in (0, 1)]
        expected.step((torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])))
        assert_agrees(outcomes[0]["synchronised"], number, expected)


@pytest.mark.parametrize(
    "scenario", [name for name in SCENARIOS if name.startswith("per replica") and "spoilt" not in name]
)
def test_replicas_that_ascend_each_on_its_own_take_the_step_of_as_many_micro_batches(
    outcomes: Outcomes, scenario: str
) -> None:
    options = SCENARIOS[scenario][0]
    expected = reference(
        **{name: options[name] for name in ("clip_norm", "max_perturbation", "eta") if name in options}
    )
    shares = (0.125, 0.375, 0.125, 0.375) if scenario.endswith("micro-batches") else (0.5, 0.5)
    for number in range(STEPS):
        expected.step(*[a_batch(10 * number + part) for part in range(len(shares))], shares=shares)
        assert_agrees(outcomes[0][scenario], number, expected)


def test_synchronised_micro_batches_ascend_each_by_the_mean_gradient_of_all_replicas(outcomes: Outcomes) -> None:
    expected = reference()
    for number in range(STEPS):
        unions = []
        for part in (0, 1):
            pair = [a_batch(10 * number + 2 * rank + part) for rank in (0, 1)]
            unions.append((torch.cat([inputs for inputs, _ in pair]), torch.cat([targets for _, targets in pair])))
        expected.step(*unions, shares=(0.25, 0.75))
        assert_agrees(outcomes[0]["synchronised, micro-batches"], number, expected)


@pytest.mark.parametrize("scenario", ["per replica, spoilt", "per replica, spoilt, fused"])
def test_a_gradient_that_is_not_finite_on_one_replica_skips_the_step_on_all(outcomes: Outcomes, scenario: str) -> None:
    expected = reference()
    for number in range(STEPS):
        if number != SPOILT_STEP:
            expected.step(a_batch(10 * number), a_batch(10 * number + 1), shares=(0.5, 0.5))
        for outcome in outcomes:
            assert_agrees(outcome[scenario], number, expected)
    assert [outcome[scenario]["skipped_steps"] for outcome in outcomes] == [1, 1]
    assert [outcome[scenario]["t"] for outcome in outcomes] == [STEPS, STEPS]


def test_replicas_of_other_process_groups_have_no_part_in_a_step(outcomes: Outcomes) -> None:
    for rank, outcome in enumerate(outcomes):
        expected = reference()
        for number in range(STEPS):
            if not (rank == 1 and number == SPOILT_STEP):
                expected.step(a_batch(10 * number + rank))
        assert outcome["groups of their own"]["skipped_steps"] == rank
        assert_agrees(outcome["groups of their own"], -1, expected)


def test_the_norms_of_replicas_that_ascend_each_on_its_own_are_their_mean(outcomes: Outcomes) -> None:
    outcome = outcomes[0]["per replica"]
    model = a_model()
    for parameter, weight in zip(model.parameters(), outcome["weights"][STEPS - 2], strict=True):
        parameter.data.copy_(weight)
    norms = []
    for rank in (0, 1):
        inputs, targets = a_batch(10 * (STEPS - 1) + rank)
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(model(inputs), targets), model.parameters())
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
    rho, lam = SETTINGS["rho"], SETTINGS["lam"]
    radii = [rho * (1 - lam) * norm + rho * lam for norm in norms]
    assert outcome["norms"] == pytest.approx([sum(norms) / 2, sum(radii) / 2], rel=1e-9)


def test_an_overflow_on_one_replica_halves_the_scale_on_all(outcomes: Outcomes) -> None:
    assert [outcome["scaler"]["scale"] for outcome in outcomes] == [2.0**9, 2.0**9]
    assert [outcome["scaler"]["skipped_steps"] for outcome in outcomes] == [1, 1]


@pytest.mark.parametrize("way", ["per replica", "synchronised"])
def test_running_statistics_move_once_a_step_on_replicas_too(outcomes: Outcomes, way: str) -> None:
    outcome = outcomes[0][f"batch normalisation, {way}"]
    assert outcome["batches"] == STEPS
    alone = torch.nn.BatchNorm1d(5).double()
    for number in range(STEPS):
        alone(a_batch(10 * number)[0])  # DistributedDataParallel keeps the statistics of its first replica
    assert torch.equal(outcome["mean"], alone.running_mean)
