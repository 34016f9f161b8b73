"""What the API reads and writes: studies and everything in them."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, or_, select
from sqlalchemy.exc import IntegrityError

from service.errors import (
    ConfigurationNotFoundError,
    FieldProblem,
    IdempotencyConflictError,
    InvalidRequestError,
    InvalidTransitionError,
    StudyNotFoundError,
    TrialNotFoundError,
)
from service.store import records, tables
from service.store.database import Database
from service.study import (
    Attempt,
    Configuration,
    Event,
    Intent,
    Reason,
    Result,
    Study,
    StudyState,
    Trial,
    TrialState,
)

_ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # without letters that are read as another


@dataclass(frozen=True, slots=True)
class NewStudy:
    """What a study is created from; `spec` is an accepted StudySpec as JSON."""

    name: str
    description: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    owner: str
    request_digest: str
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class StudyFilter:
    """Which studies a list shows; every given field must match."""

    states: Collection[StudyState] = field(default_factory=tuple)
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True, slots=True)
class StudyPage:
    """One page of a list, newest first; `next_page_token` is None on the last page."""

    studies: list[Study]
    next_page_token: str | None


class StudyStore:
    """Studies as their users see them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, new: NewStudy) -> tuple[Study, bool]:
        """Records a study as QUEUED; with False where the Idempotency-Key had already made this very study.

        Raises IdempotencyConflictError where the key was used with another body.
        """
        try:
            return self._create(new)
        except IntegrityError:  # another request used the key at this very moment, so now it is known
            return self._create(new)

    def get(self, study_id: str) -> Study:
        """Raises StudyNotFoundError."""
        with self._database.reading() as connection:
            return self._study(connection, study_id)

    def page(self, wanted: StudyFilter, *, page_size: int, page_token: str | None = None) -> StudyPage:
        """Studies, newest first. Pages stay stable while studies are added. Raises InvalidRequestError."""
        table = tables.studies
        query = select(*records.columns_of(table, Study))
        if wanted.states:
            query = query.where(table.c.state.in_(wanted.states))
        if wanted.name is not None:
            query = query.where(table.c.name == wanted.name)
        for key, value in wanted.labels.items():
            query = query.where(self._has_label(key, value))
        if page_token is not None:
            created_at, study_id = _read_page_token(page_token)
            older = and_(table.c.created_at == created_at, table.c.id < study_id)
            query = query.where(or_(table.c.created_at < created_at, older))
        query = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(page_size + 1)
        with self._database.reading() as connection:
            studies = [records.as_record(Study, row) for row in connection.execute(query)]
        more = len(studies) > page_size
        return StudyPage(studies[:page_size], _page_token(studies[page_size - 1]) if more else None)

    def request_cancel(self, study_id: str) -> Study:
        """Asks for the end of a study now: CANCELLED at once where nothing runs yet, STOPPING otherwise.

        A study that is being cancelled stays as it is. Raises StudyNotFoundError, and InvalidTransitionError where the
        study has ended.
        """
        with self._database.writing() as connection:
            study = records.locked_study(connection, study_id)
            state = StudyState(study.state)
            if state.is_final and state is not StudyState.CANCELLED:
                raise InvalidTransitionError(
                    f"study {study_id!r} has already ended as {state}; there is nothing to cancel"
                )
            now = self._database.now(connection)
            if state is StudyState.QUEUED:
                records.end_open_trials(connection, study_id, at=now)
                records.set_study_state(
                    connection,
                    study,
                    StudyState.CANCELLED,
                    at=now,
                    reason=Reason.USER,
                    intent=Intent.CANCEL,
                    intent_at=now,
                )
            elif state is StudyState.RUNNING:
                records.set_study_state(
                    connection, study, StudyState.STOPPING, at=now, intent=Intent.CANCEL, intent_at=now
                )
            return self._study(connection, study_id)

    def trial_counts(self, study_ids: Sequence[str]) -> dict[str, dict[TrialState, int]]:
        """How many trials each study has in each state; states without one are left out."""
        table = tables.trials
        query = (
            select(table.c.study_id, table.c.state, func.count())
            .where(table.c.study_id.in_(study_ids))
            .group_by(table.c.study_id, table.c.state)
        )
        counts: dict[str, dict[TrialState, int]] = {study_id: {} for study_id in study_ids}
        with self._database.reading() as connection:
            for study_id, state, count in connection.execute(query):
                counts[study_id][TrialState(state)] = count
        return counts

    def counts_by_state(self) -> dict[StudyState, int]:
        """How many studies there are in each state; states without one are left out."""
        table = tables.studies
        with self._database.reading() as connection:
            rows = connection.execute(select(table.c.state, func.count()).group_by(table.c.state))
            return {StudyState(state): count for state, count in rows}

    def configurations(self, study_id: str) -> list[Configuration]:
        """In the order in which the algorithm proposed them. Raises StudyNotFoundError."""
        table = tables.configurations
        query = select(*records.columns_of(table, Configuration)).where(table.c.study_id == study_id)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            rows = connection.execute(query.order_by(table.c.number))
            return [records.as_record(Configuration, row) for row in rows]

    def configuration(self, study_id: str, configuration_id: str) -> Configuration:
        """Raises StudyNotFoundError, ConfigurationNotFoundError."""
        table = tables.configurations
        query = select(*records.columns_of(table, Configuration)).where(
            table.c.study_id == study_id, table.c.id == configuration_id
        )
        with self._database.reading() as connection:
            self._study(connection, study_id)
            row = connection.execute(query).one_or_none()
        if row is None:
            raise ConfigurationNotFoundError(study_id, configuration_id)
        return records.as_record(Configuration, row)

    def trials(self, study_id: str, *, configuration_id: str | None = None) -> list[Trial]:
        """In the order of their numbers. Raises StudyNotFoundError."""
        table = tables.trials
        query = select(*records.columns_of(table, Trial)).where(table.c.study_id == study_id)
        if configuration_id is not None:
            query = query.where(table.c.configuration_id == configuration_id)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            rows = connection.execute(query.order_by(table.c.number))
            return [records.as_record(Trial, row) for row in rows]

    def trial(self, study_id: str, trial_id: str) -> Trial:
        """Raises StudyNotFoundError, TrialNotFoundError."""
        with self._database.reading() as connection:
            self._study(connection, study_id)
            return _trial(connection, study_id, trial_id)

    def attempts(self, study_id: str, trial_id: str) -> list[Attempt]:
        """Every execution of a trial, the first one first. Raises TrialNotFoundError."""
        table = tables.attempts
        query = select(*records.columns_of(table, Attempt)).where(table.c.trial_id == trial_id)
        with self._database.reading() as connection:
            _trial(connection, study_id, trial_id)
            rows = connection.execute(query.order_by(table.c.number))
            return [records.as_record(Attempt, row) for row in rows]

    def results(self, study_id: str, trial_id: str) -> list[Result]:
        """One per reported epoch, in order. Raises TrialNotFoundError."""
        table = tables.results
        query = select(*records.columns_of(table, Result)).where(table.c.trial_id == trial_id)
        with self._database.reading() as connection:
            _trial(connection, study_id, trial_id)
            rows = connection.execute(query.order_by(table.c.epoch))
            return [records.as_record(Result, row) for row in rows]

    def events(self, study_id: str, *, after: int = 0, limit: int = 500) -> list[Event]:
        """What happened after the event with this id, oldest first. Raises StudyNotFoundError."""
        table = tables.events
        query = select(table).where(table.c.study_id == study_id, table.c.id > after).order_by(table.c.id).limit(limit)
        with self._database.reading() as connection:
            self._study(connection, study_id)
            return [records.as_record(Event, row) for row in connection.execute(query)]

    def _create(self, new: NewStudy) -> tuple[Study, bool]:
        with self._database.writing() as connection:
            known = self._by_idempotency_key(connection, new)
            if known:
                return known, False
            now = self._database.now(connection)
            study_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(10))
            connection.execute(
                insert(tables.studies).values(
                    id=study_id,
                    name=new.name,
                    description=new.description,
                    owner=new.owner,
                    labels=dict(new.labels),
                    spec=dict(new.spec),
                    state=StudyState.QUEUED,
                    intent=Intent.RUN,
                    created_at=now,
                    idempotency_key=new.idempotency_key,
                    request_digest=new.request_digest,
                    driver_attempt=0,
                    driver_losses=0,
                    revision=1,
                    exported_revision=0,
                )
            )
            records.add_event(connection, study_id, "study.state", {"state": StudyState.QUEUED}, at=now)
            return self._study(connection, study_id), True

    def _has_label(self, key: str, value: str) -> ColumnElement[bool]:
        labels = tables.studies.c.labels
        if not self._database.is_sqlite:
            has: ColumnElement[bool] = labels[key].as_string() == value
            return has
        pairs = func.json_each(labels).table_valued("key", "value")  # any key; a JSON path cannot quote every one
        return exists().where(pairs.c.key == key, pairs.c.value == value)

    def _by_idempotency_key(self, connection: Connection, new: NewStudy) -> Study | None:
        if new.idempotency_key is None:
            return None
        table = tables.studies
        row = connection.execute(
            select(table).where(table.c.owner == new.owner, table.c.idempotency_key == new.idempotency_key)
        ).one_or_none()
        if row is None:
            return None
        if row.request_digest != new.request_digest:
            raise IdempotencyConflictError(
                f"the Idempotency-Key {new.idempotency_key!r} was used for study {row.id!r} with another body"
            )
        return records.as_record(Study, row)

    @staticmethod
    def _study(connection: Connection, study_id: str) -> Study:
        table = tables.studies
        row = connection.execute(select(*records.columns_of(table, Study)).where(table.c.id == study_id)).one_or_none()
        if row is None:
            raise StudyNotFoundError(study_id)
        return records.as_record(Study, row)


def _trial(connection: Connection, study_id: str, trial_id: str) -> Trial:
    table = tables.trials
    row = connection.execute(
        select(*records.columns_of(table, Trial)).where(table.c.study_id == study_id, table.c.id == trial_id)
    ).one_or_none()
    if row is None:
        raise TrialNotFoundError(study_id, trial_id)
    return records.as_record(Trial, row)


def _page_token(last: Study) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.created_at.isoformat(), last.id]).encode()).decode()


def _read_page_token(token: str) -> tuple[datetime, str]:
    try:
        text, study_id = json.loads(base64.urlsafe_b64decode(token.encode()))
        created_at = datetime.fromisoformat(text)
        if created_at.tzinfo is not None and study_id and set(study_id) <= set(_ID_ALPHABET):
            return created_at.astimezone(UTC), study_id
    except (binascii.Error, ValueError, TypeError, OverflowError):
        pass
    message = "page_token must be the next_page_token of an earlier answer"
    raise InvalidRequestError(message, problems=[FieldProblem("page_token", message)])
