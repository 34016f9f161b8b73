"""A study store as it looks after a year: 1,000 studies, 100,000 trials, a million results, written in bulk."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table, insert

from service.access import KeyToken, NewKey, Role
from service.analysis.aggregation import Summary, summarise
from service.spec import parse_spec
from service.store import tables
from service.store.database import Database
from service.store.keys import KeyStore
from service.study import AttemptState, Intent, Origin, Purpose, Reason, StudyState, TrialState
from trainers.config import defaults
from trainers.metrics import epoch_metrics, reported_metrics

OWNERS = ("ada", "emmy", "grace", "hedy", "ida", "kathleen", "lise", "mary", "rosalind", "sofia")
TEAMS = ("language", "speech", "theory", "vision")
LARGE_STUDY = "thelargestudy"
SEEDS = (0, 1)
FRESH_SEEDS = (100, 101, 102, 103, 104)

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_ROWS_AT_A_TIME = 20_000
_DIFFERENT_METRICS = 500
_TRACEBACK = (
    "Traceback (most recent call last):\n" + 12 * '  File "trainers/loop.py", line 123, in train\n' + "ValueError"
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is in the store. confirmed: configurations of each large study that ran again on fresh seeds."""

    studies: int = 1_000
    trials: int = 100_000
    trials_of_the_large_one: int = 10_000
    epochs: int = 10
    confirmed: int = 4


@dataclass(frozen=True, slots=True)
class _Source:
    """What the rows are drawn from. epochs: metrics of an epoch; ends: those of a trial's last one, which are more."""

    size: Size
    chance: random.Random
    epochs: list[dict[str, float]]
    ends: list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class FilledStore:
    """What whoever asks has to know: the keys' tokens by owner, one of an admin, and the studies of each owner."""

    tokens: dict[str, str]
    admin_token: str
    studies: dict[str, list[str]]


def fill(database: Database, size: Size) -> FilledStore:
    """Brings an empty database to its schema and fills it. The rows are the same every time, the keys are not."""
    database.migrate()
    source = _source(size)
    studies: dict[str, list[str]] = {owner: [] for owner in OWNERS}
    rows = _Rows(database)
    for number, trials in enumerate(_trials_of_studies(size)):
        study = _study(number, trials, source)
        studies[study["owner"]].append(study["id"])
        rows.add(tables.studies, [study])
        for configuration in _configurations(study, trials, source):
            for table, found in configuration.items():
                rows.add(table, found)
    rows.flush()
    keys = KeyStore(database)
    tokens = {owner: _token(keys, owner, Role.USER) for owner in OWNERS}
    return FilledStore(tokens, _token(keys, "operator", Role.ADMIN), studies)


def a_spec(name: str, *, trials: int, epochs: int, confirmed: int = 0) -> dict[str, Any]:
    """A sound spec of a random search over λ and ρ, as a user would post it."""
    return {
        "name": name,
        "description": "filled by the benchmark",
        "labels": {"team": "vision"},
        "train": {"dataset": "digits", "model": "mlp", "epochs": epochs, "batch_size": 64, "lr": 0.05},
        "search_space": {
            "lambda": {"type": "float", "low": 0.0, "high": 1.0},
            "rho": {"type": "float", "low": 0.01, "high": 0.5, "log": True},
        },
        "algorithm": {"name": "random"},
        "objective": {"metric": "val_accuracy", "mode": "max"},
        "replicates": {"seeds": list(SEEDS)},
        "budget": {"max_trials": trials},
        "confirm": {"top_k": confirmed, "seeds": list(FRESH_SEEDS)} if confirmed else None,
    }


class _Rows:
    """Rows that wait for enough others to be written together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[Table, list[Mapping[str, Any]]] = {table: [] for table in tables.metadata.sorted_tables}

    def add(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        self._waiting[table] += rows
        if len(self._waiting[table]) >= _ROWS_AT_A_TIME:
            self.flush()

    def flush(self) -> None:
        """Writes what waits, tables before those that refer to them."""
        with self._database.writing() as connection:
            for table, rows in self._waiting.items():
                if rows:
                    connection.execute(insert(table), rows)
                    rows.clear()


def _token(keys: KeyStore, owner: str, role: Role) -> str:
    token: KeyToken = keys.create(NewKey(owner=owner, role=role, name="benchmark"))[1]
    return token.text


def _trials_of_studies(size: Size) -> Iterator[int]:
    """Even numbers whose sum is the wanted one; the first is that of the large study."""
    yield size.trials_of_the_large_one
    left, studies = size.trials - size.trials_of_the_large_one, size.studies - 1
    pairs, rest = divmod(left // 2, studies)
    yield from (2 * (pairs + (number < rest)) for number in range(studies))


def _study(number: int, trials: int, source: _Source) -> dict[str, Any]:
    size, chance, large = source.size, source.chance, number == 0
    searching = trials - size.confirmed * len(FRESH_SEEDS) * large
    spec = a_spec(
        f"lambda-rho-{number}", trials=searching, epochs=size.epochs, confirmed=size.confirmed if large else 0
    )
    spec["labels"] = {"team": chance.choice(TEAMS), "paper": str(number % 50)}
    accepted = parse_spec(spec).to_mapping()
    state = StudyState.RUNNING if large else _study_state(chance)
    created_at = _BEGIN + timedelta(hours=7 * number, seconds=chance.random())
    ended = state.is_final
    return {
        "id": LARGE_STUDY if large else f"study{number:05}",
        "name": spec["name"],
        "description": spec["description"],
        "owner": OWNERS[number % len(OWNERS)],
        "labels": spec["labels"],
        "spec": accepted,
        "state": state,
        "intent": Intent.PAUSE if state is StudyState.PAUSED else Intent.RUN,
        "reason": Reason.MAX_TRIALS if ended else None,
        "error": _TRACEBACK if state is StudyState.FAILED else None,
        "waiting_reason": "paused by its user" if state is StudyState.PAUSED else None,
        "created_at": created_at,
        "started_at": created_at,
        "finished_at": created_at + timedelta(hours=3) if ended else None,
        "request_digest": hashlib.sha256(str(number).encode()).hexdigest(),
        "driver_attempt": 1,
        "driver_losses": 0,
        "lease_expires_at": created_at + timedelta(days=3650) if large else None,
        "running_since": created_at if large else None,
        "revision": 100,
        "exported_revision": 100,
        "mlflow_experiment_id": str(number),
        "mlflow_run_id": f"{number:032x}",
    }


def _study_state(chance: random.Random) -> StudyState:
    states = (StudyState.SUCCEEDED, StudyState.FAILED, StudyState.CANCELLED, StudyState.PAUSED)
    return chance.choices(states, weights=(85, 5, 5, 5))[0]


def _configurations(
    study: Mapping[str, Any], trials: int, source: _Source
) -> Iterator[dict[Table, list[dict[str, Any]]]]:
    """The rows of one configuration after the other, by table."""
    chance = source.chance
    confirmed = source.size.confirmed if study["spec"]["confirm"] else 0
    configurations = (trials - confirmed * len(FRESH_SEEDS)) // len(SEEDS)
    number_of_trial = 0
    for number in range(1, configurations + 1):
        identifier = f"{study['id']}-{number}"
        seeds = [(seed, Purpose.SEARCH) for seed in SEEDS]
        if number <= confirmed:
            seeds += [(seed, Purpose.CONFIRM) for seed in FRESH_SEEDS]
        rows: dict[Table, list[dict[str, Any]]] = {
            tables.configurations: [],
            tables.trials: [],
            tables.attempts: [],
            tables.results: [],
            tables.events: [],
        }
        objectives: dict[Purpose, list[float]] = {Purpose.SEARCH: [], Purpose.CONFIRM: []}
        for seed, purpose in seeds:
            number_of_trial += 1
            trial = _trial(study, identifier, number_of_trial, seed, purpose, source)
            _add_trial(rows, trial, source)
            if trial["objective"] is not None:
                objectives[purpose].append(trial["objective"])
        point = {"lambda": chance.random(), "rho": 0.01 + 0.49 * chance.random()}
        rows[tables.configurations].append(
            {
                "id": identifier,
                "study_id": study["id"],
                "number": number,
                "point": point,
                "point_key": hashlib.sha256(repr(point).encode()).hexdigest(),
                "created_at": study["created_at"],
                "origin": Origin.SEARCH,
                "complete": len(objectives[Purpose.SEARCH]) == len(SEEDS),
                **_summary("objective", objectives[Purpose.SEARCH]),
                **_summary("confirmed", objectives[Purpose.CONFIRM]),
            }
        )
        yield rows


def _summary(name: str, values: list[float]) -> dict[str, float | None]:
    known: Summary | None = summarise(values) if values else None
    return {
        f"{name}_mean": known.mean if known else None,
        f"{name}_std": known.std if known else None,
        f"{name}_n": len(values),
    }


def _trial(
    study: Mapping[str, Any],
    configuration_id: str,
    number: int,
    seed: int,
    purpose: Purpose,
    source: _Source,
) -> dict[str, Any]:
    size, chance = source.size, source.chance
    state = chance.choices((TrialState.SUCCEEDED, TrialState.EARLY_STOPPED, TrialState.FAILED), weights=(90, 9, 1))[0]
    if study["state"] is StudyState.RUNNING and number > 0.99 * size.trials_of_the_large_one:
        state = TrialState.PENDING if number % 10 else TrialState.RUNNING
    started = state is not TrialState.PENDING
    last = chance.choice(source.ends)
    return {
        "id": f"{configuration_id}-{seed}",
        "study_id": study["id"],
        "configuration_id": configuration_id,
        "number": number,
        "seed": seed,
        "purpose": purpose,
        "state": state,
        "attempt": int(started),
        "epochs_done": size.epochs if state is TrialState.SUCCEEDED else 3 * started,
        "metrics": last if started else {},
        "objective": last["val_accuracy"] if state is TrialState.SUCCEEDED else None,
        "error": _TRACEBACK if state is TrialState.FAILED else None,
        "note": "stopped at epoch 3: 0.81 is not among the best 1/4 of 16"
        if state is TrialState.EARLY_STOPPED
        else None,
        "created_at": study["created_at"],
        "started_at": study["created_at"] if started else None,
        "finished_at": study["created_at"] + timedelta(minutes=1) if state.is_final else None,
        "revision": 20,
        "exported_revision": 20,
        "exported_epoch": size.epochs,
        "mlflow_run_id": f"{chance.getrandbits(128):032x}",
    }


def _add_trial(rows: dict[Table, list[dict[str, Any]]], trial: Mapping[str, Any], source: _Source) -> None:
    """The trial, its attempt, its results and its events."""
    rows[tables.trials].append(dict(trial))
    if not trial["attempt"]:
        return
    at = trial["created_at"]
    ended = TrialState(trial["state"]).is_final
    rows[tables.attempts].append(
        {
            "trial_id": trial["id"],
            "number": 1,
            "driver_attempt": 1,
            "state": AttemptState(trial["state"]),
            "node": "node-1",
            "error": trial["error"],
            "started_at": at,
            "finished_at": trial["finished_at"],
        }
    )
    rows[tables.results] += [
        {
            "trial_id": trial["id"],
            "epoch": epoch,
            "attempt": 1,
            "metrics": source.chance.choice(source.epochs),
            "recorded_at": at,
        }
        for epoch in range(1, trial["epochs_done"] + 1)
    ]
    states = (TrialState.RUNNING, trial["state"]) if ended else (TrialState.RUNNING,)
    rows[tables.events] += [
        {
            "study_id": trial["study_id"],
            "trial_id": trial["id"],
            "kind": "trial.state",
            "data": {"state": state},
            "at": at,
        }
        for state in states
    ]


def _source(size: Size) -> _Source:
    """Metrics by the names that trials on digits report."""
    values = {**defaults(), "dataset": "digits"}
    chance = random.Random(0)
    epochs = [{name: chance.random() for name in epoch_metrics(values)} for _ in range(_DIFFERENT_METRICS)]
    at_the_end = dict.fromkeys((*epoch_metrics(values), *reported_metrics(values)))
    ends = [{name: chance.random() for name in at_the_end} for _ in range(_DIFFERENT_METRICS)]
    return _Source(size, chance, epochs, ends)
