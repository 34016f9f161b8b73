"""What is in a study, as its users read it: configurations, trials, attempts, results, events."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, func, select, true

from search_spaces import Point
from service.analysis.aggregation import ConfigurationSummary, summary_of
from service.analysis.trial_tables import TrialRow
from service.analysis.waiting import Care
from service.answers import ConfigurationSortOrder, TrialSortOrder
from service.errors import ConfigurationNotFoundError, StudyNotFoundError, TrialNotFoundError
from service.store import records, tables
from service.store.database import Database
from service.store.filters import ConfigurationFilter, TrialFilter, in_scope
from service.store.paging import Keyset, SortKey
from service.store.ranking import best_configuration
from service.store.records import Record
from service.store.watching import controller_lease
from service.study import Attempt, Configuration, Event, Purpose, Result, Study, StudyState, Trial, TrialState

_ROWS_AT_A_TIME = 2_000


@dataclass(frozen=True, slots=True)
class Best:
    """A study's best configuration with its trials."""

    configuration: Configuration
    trials: list[Trial]


@dataclass(frozen=True, slots=True)
class StudyStanding:
    """A study, and what its trials say together; counts leave out states without a trial.

    has_begun: whether one of the trials that wait has had an attempt.
    """

    study: Study
    trial_counts: dict[TrialState, int]
    epochs_done: int
    best: Best | None
    care: Care
    has_begun: bool


@dataclass(frozen=True, slots=True)
class TrialPage:
    """One page of a study's trials; next_page_token is None on the last. points: by configuration id."""

    study: Study
    trials: list[Trial]
    points: dict[str, Point]
    care: Care
    next_page_token: str | None


@dataclass(frozen=True, slots=True)
class TrialStanding:
    """A trial, its configuration's point and its study."""

    study: Study
    trial: Trial
    point: Point
    care: Care


@dataclass(frozen=True, slots=True)
class ConfigurationPage:
    """One page of a study's configurations and all trials of these; next_page_token is None on the last."""

    configurations: list[Configuration]
    trials: list[Trial]
    next_page_token: str | None


class StudyContents:
    """The contents of studies. Every method raises StudyNotFoundError.

    scope: the owner whose studies there are, any other being StudyNotFoundError; None: every study, for admins and
    the service itself.
    """

    def __init__(self, database: Database, scope: str | None = None) -> None:
        self._database = database
        self._scope = scope

    def get(self, study_id: str) -> Study:
        """The study itself."""
        with self._database.reading() as connection:
            return self._study(connection, study_id)

    def standing(self, study_id: str) -> StudyStanding:
        """The study as a whole, without a look at each of its trials."""
        table = tables.trials
        counted = (
            select(table.c.state, func.count(), func.sum(table.c.epochs_done), func.max(table.c.attempt))
            .where(table.c.study_id == study_id)
            .group_by(table.c.state)
        )
        with self._database.reading() as connection:
            row = self._study_row(connection, study_id)
            study = records.as_record(Study, row)
            rows = connection.execute(counted).all()
            best = _best(connection, study)
            counts = {TrialState(state): count for state, count, _, _ in rows}
            has_begun = any(attempt > 0 for state, _, _, attempt in rows if state in _WAITING)
            care = self._care(connection, row, running=counts.get(TrialState.RUNNING, 0))
        return StudyStanding(study, counts, sum(int(epochs) for _, _, epochs, _ in rows), best, care, has_begun)

    def best(self, study_id: str) -> tuple[Study, Best | None]:
        """The study and its best configuration; None while there is none."""
        with self._database.reading() as connection:
            study = self._study(connection, study_id)
            return study, _best(connection, study)

    def configurations(self, study_id: str) -> list[Configuration]:
        """In the order in which they were proposed or enqueued."""
        table = tables.configurations
        query = records.selected(table, Configuration).where(table.c.study_id == study_id)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            rows = connection.execute(query.order_by(table.c.number))
            return [records.as_record(Configuration, row) for row in rows]

    def configuration(self, study_id: str, configuration_id: str) -> Configuration:
        """Raises ConfigurationNotFoundError."""
        table = tables.configurations
        query = records.selected(table, Configuration).where(
            table.c.study_id == study_id, table.c.id == configuration_id
        )
        with self._database.reading() as connection:
            self._study(connection, study_id)
            row = connection.execute(query).one_or_none()
        if row is None:
            raise ConfigurationNotFoundError(study_id, configuration_id)
        return records.as_record(Configuration, row)

    def configuration_page(
        self,
        study_id: str,
        wanted: ConfigurationFilter,
        *,
        order_by: ConfigurationSortOrder = "number",
        page_size: int,
        page_token: str | None = None,
    ) -> ConfigurationPage:
        """Configurations with their trials. Raises PageTokenError."""
        table, trials = tables.configurations, tables.trials
        query = records.selected(table, Configuration).where(table.c.study_id == study_id, *wanted.conditions())
        with self._database.reading() as connection:
            mode = self._study(connection, study_id).spec["objective"]["mode"]
            keyset = wanted.keyset(study_id, order_by, mode)
            found, token = keyset.read(connection, query, Configuration, page_size=page_size, page_token=page_token)
            of_them = _trials(trials.c.configuration_id.in_([configuration.id for configuration in found]))
            rows = connection.execute(of_them).all() if found else []
        return ConfigurationPage(found, [records.as_record(Trial, row) for row in rows], token)

    def summaries(self, study_id: str) -> list[ConfigurationSummary]:
        """What each configuration has come to, in order, from the sums that the store keeps."""
        table = tables.configurations
        with self._database.reading() as connection:
            self._study(connection, study_id)
            rows = connection.execute(select(table).where(table.c.study_id == study_id).order_by(table.c.number)).all()
        return [
            ConfigurationSummary(
                configuration=records.as_record(Configuration, row),
                objective=summary_of(row.objective_mean, row.objective_std, row.objective_n),
                confirmed=summary_of(row.confirmed_mean, row.confirmed_std, row.confirmed_n),
                complete=row.complete,
            )
            for row in rows
        ]

    def trials(self, study_id: str, *, configuration_id: str | None = None) -> list[Trial]:
        """Every trial in the order of their numbers."""
        query = _trials(tables.trials.c.study_id == study_id)
        if configuration_id is not None:
            query = query.where(tables.trials.c.configuration_id == configuration_id)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            return [records.as_record(Trial, row) for row in connection.execute(query)]

    def trial_page(
        self,
        study_id: str,
        wanted: TrialFilter,
        *,
        order_by: TrialSortOrder = "number",
        page_size: int,
        page_token: str | None = None,
    ) -> TrialPage:
        """Some of the study's trials. Raises PageTokenError."""
        table = tables.trials
        query = records.selected(table, Trial).where(table.c.study_id == study_id, *wanted.conditions())
        keyset = wanted.keyset(study_id, order_by)
        with self._database.reading() as connection:
            row = self._study_row(connection, study_id)
            found, token = keyset.read(connection, query, Trial, page_size=page_size, page_token=page_token)
            care = self._care(connection, row, running=_running(connection, study_id))
            points = _points(connection, found)
            return TrialPage(records.as_record(Study, row), found, points, care, token)

    def trial(self, study_id: str, trial_id: str) -> Trial:
        """Raises TrialNotFoundError."""
        with self._database.reading() as connection:
            self._study(connection, study_id)
            return _trial(connection, study_id, trial_id)

    def trial_standing(self, study_id: str, trial_id: str) -> TrialStanding:
        """The trial with what decides whether it trains. Raises TrialNotFoundError."""
        with self._database.reading() as connection:
            row = self._study_row(connection, study_id)
            trial = _trial(connection, study_id, trial_id)
            care = self._care(connection, row, running=_running(connection, study_id))
            (point,) = _points(connection, [trial]).values()
            return TrialStanding(records.as_record(Study, row), trial, point, care)

    def attempts(self, study_id: str, trial_id: str) -> list[Attempt]:
        """Every execution of a trial, the first one first. Raises TrialNotFoundError."""
        return self._of_trial(study_id, trial_id, tables.attempts, Attempt, order_by=tables.attempts.c.number)

    def results(self, study_id: str, trial_id: str) -> list[Result]:
        """One per reported epoch, in order. Raises TrialNotFoundError."""
        return self._of_trial(study_id, trial_id, tables.results, Result, order_by=tables.results.c.epoch)

    def result_page(
        self, study_id: str, trial_id: str, *, page_size: int, page_token: str | None = None
    ) -> tuple[list[Result], str | None]:
        """Some of them, and the token of the next page. Raises TrialNotFoundError, PageTokenError."""
        table = tables.results
        keyset = Keyset([SortKey(table.c.epoch, int)], ["results", study_id, trial_id])
        query = records.selected(table, Result).where(table.c.trial_id == trial_id)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            _trial(connection, study_id, trial_id)
            return keyset.read(connection, query, Result, page_size=page_size, page_token=page_token)

    def events(self, study_id: str, *, after: int = 0, limit: int = 500) -> list[Event]:
        """What happened after the event with this id, oldest first."""
        table = tables.events
        query = select(table).where(table.c.study_id == study_id, table.c.id > after).order_by(table.c.id).limit(limit)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            return [records.as_record(Event, row) for row in connection.execute(query)]

    def trial_rows(self, study_id: str) -> Iterator[TrialRow]:
        """Every trial in the order of their numbers, some thousand read at a time, so that any study fits."""
        trials, configurations = tables.trials, tables.configurations
        tables_of = {name: configurations if name in _OF_CONFIGURATION else trials for name in TrialRow._fields}
        columns = [table.c[_SOURCE.get(name, name)].label(name) for name, table in tables_of.items()]
        query = (
            select(*columns)
            .join(configurations, configurations.c.id == trials.c.configuration_id)
            .where(trials.c.study_id == study_id)
            .order_by(trials.c.number)
            .limit(_ROWS_AT_A_TIME)
        )
        after = 0
        while True:
            with self._database.reading() as connection:
                self._study(connection, study_id)
                rows = connection.execute(query.where(trials.c.number > after)).all()
            yield from (TrialRow(*row) for row in rows)
            if len(rows) < _ROWS_AT_A_TIME:
                return
            after = rows[-1].number

    def metric_names(self, study_id: str) -> list[str]:
        """Names of the metrics that its trials have reported, sorted."""
        trials = tables.trials
        if self._database.is_sqlite:
            pairs = func.json_each(trials.c.metrics).table_valued("key")
            query = select(pairs.c.key).select_from(trials).join(pairs, true())
        else:
            query = select(func.json_object_keys(trials.c.metrics))
        query = query.where(trials.c.study_id == study_id).distinct()
        with self._database.reading() as connection:
            self._study(connection, study_id)
            return sorted(connection.execute(query).scalars())

    def values_by_seed(self, configuration: Configuration, metric: str, purpose: Purpose) -> dict[int, float]:
        """The metric's last value of each trial of the configuration that succeeded, by seed."""
        table = tables.trials
        query = select(table.c.seed, table.c.metrics).where(
            table.c.configuration_id == configuration.id,
            table.c.purpose == purpose,
            table.c.state == TrialState.SUCCEEDED,
        )
        with self._database.reading() as connection:
            self._study(connection, configuration.study_id)
            rows = connection.execute(query.order_by(table.c.seed)).all()
        values = {seed: metrics[metric] for seed, metrics in rows if metric in metrics}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    def metric_values(self, study_id: str, metric: str) -> dict[Purpose, dict[str, list[float]]]:
        """The metric's last values of all trials that succeeded, by purpose and by the id of their configuration."""
        table = tables.trials
        query = select(table.c.purpose, table.c.configuration_id, table.c.metrics).where(
            table.c.study_id == study_id, table.c.state == TrialState.SUCCEEDED
        )
        values: dict[Purpose, dict[str, list[float]]] = {purpose: defaultdict(list) for purpose in Purpose}
        with self._database.reading() as connection:
            self._study(connection, study_id)
            for purpose, configuration_id, metrics in connection.execute(query.order_by(table.c.number)):
                if math.isfinite(metrics.get(metric, math.nan)):
                    values[purpose][configuration_id].append(metrics[metric])
        return values

    def _of_trial(
        self, study_id: str, trial_id: str, table: Table, record_type: type[Record], *, order_by: ColumnElement[Any]
    ) -> list[Record]:
        """What a table has of one trial."""
        query = records.selected(table, record_type).where(table.c.trial_id == trial_id)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            _trial(connection, study_id, trial_id)
            return [records.as_record(record_type, row) for row in connection.execute(query.order_by(order_by))]

    def _study(self, connection: Connection, study_id: str) -> Study:
        return records.as_record(Study, self._study_row(connection, study_id))

    def _study_row(self, connection: Connection, study_id: str) -> Row[Any]:
        """What a Study has, and its driver's lease."""
        table = tables.studies
        query = records.selected(table, Study).add_columns(table.c.lease_expires_at)
        row = connection.execute(query.where(table.c.id == study_id, in_scope(self._scope))).one_or_none()
        if row is None:
            raise StudyNotFoundError(study_id)
        return row

    def _care(self, connection: Connection, study: Row[Any], *, running: int) -> Care:
        now = self._database.now(connection)
        lease, driver_until = controller_lease(connection, now), study.lease_expires_at
        has_driver = StudyState(study.state).has_driver and driver_until is not None
        return Care(
            running=running,
            has_controller=lease is not None and lease.seconds_left >= 0,
            driver_is_silent=has_driver and driver_until < now,
        )


_WAITING = (TrialState.PENDING, TrialState.PAUSED)
_OF_CONFIGURATION = ("configuration_number", "origin", "point")
_SOURCE = {"trial_id": "id", "configuration_number": "number", "attempts": "attempt"}


def _trials(condition: ColumnElement[bool]) -> Select[Any]:
    table = tables.trials
    return records.selected(table, Trial).where(condition).order_by(table.c.number)


def _points(connection: Connection, trials: Iterable[Trial]) -> dict[str, Point]:
    """The points of these trials, by the ids of their configurations."""
    table = tables.configurations
    points: dict[str, Point] = {}
    for ids in records.in_parts(list(dict.fromkeys(trial.configuration_id for trial in trials))):
        found = connection.execute(select(table.c.id, table.c.point).where(table.c.id.in_(ids)))
        points.update({row.id: row.point for row in found})
    return points


def _trial(connection: Connection, study_id: str, trial_id: str) -> Trial:
    table = tables.trials
    row = connection.execute(
        records.selected(table, Trial).where(table.c.study_id == study_id, table.c.id == trial_id)
    ).one_or_none()
    if row is None:
        raise TrialNotFoundError(study_id, trial_id)
    return records.as_record(Trial, row)


def _best(connection: Connection, study: Study) -> Best | None:
    configuration = best_configuration(connection, study)
    if configuration is None:
        return None
    rows = connection.execute(_trials(tables.trials.c.configuration_id == configuration.id))
    return Best(configuration, [records.as_record(Trial, row) for row in rows])


def _running(connection: Connection, study_id: str) -> int:
    table = tables.trials
    query = select(func.count()).where(table.c.study_id == study_id, table.c.state == TrialState.RUNNING)
    return int(connection.execute(query).scalar_one())
