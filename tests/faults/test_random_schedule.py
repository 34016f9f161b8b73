"""A bounded random schedule of faults over a study, from a seed that is printed; afterwards everything must be right.

SAMSTUDY_FAULTS_SEED repeats a run; SAMSTUDY_FAULTS_MINUTES says how long the long test goes on, one study after the
other.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.spec import parse_spec, plan
from service.study import Purpose, Reason, TrialState
from tests.embedded_service import Service
from tests.faults.conftest import submit
from tests.faults.invariants import Witness
from tests.faults.schedule import EVERY, OF_POSTGRESQL, QUICK, Strike, Striker, random_schedule
from tests.postgresql import Databases, PostgresqlServer

SEED = int(os.environ.get("SAMSTUDY_FAULTS_SEED") or secrets.randbelow(2**32))
MINUTES = float(os.environ.get("SAMSTUDY_FAULTS_MINUTES") or 10)

QUICKEST_EPOCH_S = 0.02
"""What an epoch of `study_spec` takes with its checkpoint and its report, on a quick machine that is idle."""

SLOWEST_EPOCH_S = 0.5
"""And on a slow one that is busy, over PostgreSQL, two trials at a time."""


KEPT = ["latest", "none", "best", "latest_and_best"]


def random_study(seed: int, epochs: int) -> dict[str, Any]:
    """Changes of a study's spec: another algorithm, early stopping, replicates, what stays of checkpoints.

    Six trials of which early stopping takes up to a third of the epochs last as long as four whole ones.
    """
    choose = random.Random(seed)
    changes: dict[str, Any] = {
        "checkpoint": {"every_epochs": choose.choice([1, 1, 7]), "keep": choose.choice(KEPT)},
        "failure": {"max_retries": 100},
    }
    if choose.random() < 0.5:
        changes["search_space"] = {"rho": {"type": "float", "low": 0.01, "high": 0.5, "log": True}}
        changes["algorithm"] = {"name": choose.choice(["tpe", "random", "qmc"]), "seed": choose.randrange(1_000)}
        changes["budget"] = {"max_trials": 6}
        changes["replicates"] = {"seeds": [0, 1]}
        if choose.random() < 0.5:
            early = {"grace_period": 2 * epochs // 3}
            halving = {**early, "reduction_factor": 2}
            changes["scheduler"] = choose.choice(
                [
                    {"name": "asha", **halving},
                    {"name": "hyperband", "brackets": 1, **halving},
                    {"name": "median", "min_trials": 2, **early},
                ]
            )
    if choose.random() < 0.3:
        changes["confirm"] = {"top_k": 1, "seeds": [7]}
    return changes


def epochs_for(schedule: list[Strike]) -> int:
    """So many that a study of four trials, two at a time, does not end before the schedule does."""
    return 60 + math.ceil(sum(strike.after_s for strike in schedule) / 2 / QUICKEST_EPOCH_S)


def check_end(witness: Witness) -> None:
    """The study has ended as its spec says: for this reason, with so many trials, none of them stopped but early."""
    spec = parse_spec(witness.study().spec)
    planned = plan(spec)
    reason = Reason.MAX_TRIALS if spec.budget.max_trials else Reason.SPACE_EXHAUSTED
    witness.check(reason=reason, deadline_s=120 + planned.trials * int(spec.train["epochs"]) * SLOWEST_EPOCH_S / 2)
    searching = [trial for trial in witness.trials() if trial.purpose is Purpose.SEARCH]
    confirming = [trial for trial in witness.trials() if trial.purpose is Purpose.CONFIRM]
    assert len(searching) == planned.trials - planned.confirming_trials
    ends = {TrialState.SUCCEEDED} | ({TrialState.EARLY_STOPPED} if spec.scheduler.name != "none" else set())
    states: dict[str, set[TrialState]] = {}
    for trial in searching:
        states.setdefault(trial.configuration_id, set()).add(trial.state)
    assert all(found <= ends for found in states.values())
    whole = [name for name, found in states.items() if found == {TrialState.SUCCEEDED}]
    confirmed = min(len(whole), spec.confirm.top_k) * len(spec.confirm.seeds) if spec.confirm else 0
    assert [trial.state for trial in confirming] == [TrialState.SUCCEEDED] * confirmed


def run_under_faults(
    witness: Witness, schedule: list[Strike], seed: int, postgresql: PostgresqlServer | None = None
) -> None:
    """Raises what went wrong, with the seed and the schedule."""
    print(f"SAMSTUDY_FAULTS_SEED={seed}: " + "; ".join(map(str, schedule)))
    striker = Striker(witness, postgresql)
    try:
        witness.wait_for_trials(finished=0)
        striker.carry_out(schedule)
        check_end(witness)
        assert striker.done, "the study has seen no fault at all"
    except BaseException as error:
        error.add_note(
            f"SAMSTUDY_FAULTS_SEED={seed}, study {witness.study_id}, carried out: {striker.done}, "
            f"missed: {striker.missed}\n" + "\n".join(map(str, schedule))
        )
        raise


@pytest.mark.soak
def test_a_study_survives_a_few_random_faults(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = random_schedule(SEED, QUICK, faults=4, longest_pause_s=3.0)
    with capsys.disabled():
        print(f" SAMSTUDY_FAULTS_SEED={SEED} ", end="")
    retries = {"failure": {"max_retries": 100}}
    witness = submit(service, f"random-{SEED}", trials=4, epochs=epochs_for(schedule), **retries)
    run_under_faults(witness, schedule, SEED)


@pytest.fixture(params=["sqlite", "postgresql"])
def any_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Service, PostgresqlServer | None]]:
    if request.param == "sqlite":
        yield request.getfixturevalue("service"), None
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    databases: Databases = request.getfixturevalue("databases")
    service = Service(tmp_path / "home", {"SAMSTUDY_DATABASE_URL": databases.create()})
    yield service, server
    assert service.stop() == (0, [])


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 900)
def test_studies_survive_random_faults_for_a_while(
    any_service: tuple[Service, PostgresqlServer | None], capsys: pytest.CaptureFixture[str]
) -> None:
    service, postgresql = any_service
    kinds = EVERY if postgresql is None else (*EVERY, *OF_POSTGRESQL)
    deadline = time.monotonic() + MINUTES * 60 / 2  # on each of the two stores
    seed = SEED
    while time.monotonic() < deadline:
        schedule = random_schedule(seed, kinds, faults=4, longest_pause_s=8.0)
        with capsys.disabled():
            print(f"\nSAMSTUDY_FAULTS_SEED={seed}: " + "; ".join(map(str, schedule)), flush=True)
        epochs = epochs_for(schedule)
        witness = submit(service, f"random-{seed}", trials=4, epochs=epochs, **random_study(seed, epochs))
        run_under_faults(witness, schedule, seed, postgresql)
        seed += 1
