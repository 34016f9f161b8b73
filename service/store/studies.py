"""What the API reads and writes: studies and everything in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError

from service.answers import StudySortOrder
from service.errors import IdempotencyConflictError
from service.ids import STUDY_ID_LENGTH, new_id
from service.store import records, tables
from service.store.contents import StudyContents
from service.store.filters import StudyFilter, in_scope
from service.study import Intent, Study, StudyState, TrialState

__all__ = ["NewStudy", "StudyFilter", "StudyPage", "StudyStore"]


@dataclass(frozen=True, slots=True)
class NewStudy:
    """What a study is created from; `spec` is an accepted StudySpec as JSON. cloned_from: where it was taken from."""

    name: str
    description: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    owner: str
    request_digest: str
    idempotency_key: str | None = None
    cloned_from: str | None = None


@dataclass(frozen=True, slots=True)
class StudyPage:
    """One page of a list; `next_page_token` is None on the last page."""

    studies: list[Study]
    next_page_token: str | None


class StudyStore(StudyContents):
    """Studies as their users see them."""

    def create(self, new: NewStudy) -> tuple[Study, bool]:
        """Records a study as QUEUED; with False where the Idempotency-Key had already made this very study.

        Raises IdempotencyConflictError where the key was used with another body.
        """
        try:
            return self._create(new)
        except IntegrityError:  # another request used the key at this very moment, so now it is known
            return self._create(new)

    def clone_made_by(self, owner: str, idempotency_key: str, *, of: str) -> Study | None:
        """The clone of this study that the owner's Idempotency-Key has made, if it has."""
        table = tables.studies
        query = records.selected(table, Study).where(
            table.c.owner == owner, table.c.idempotency_key == idempotency_key, table.c.cloned_from == of
        )
        with self._database.asking() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else records.as_record(Study, row)

    def page(
        self,
        wanted: StudyFilter,
        *,
        order_by: StudySortOrder = "-created_at",
        page_size: int,
        page_token: str | None = None,
    ) -> StudyPage:
        """Some studies. Pages stay stable while studies are added. Raises PageTokenError."""
        query = records.selected(tables.studies, Study).where(
            in_scope(self._scope), *wanted.conditions(is_sqlite=self._database.is_sqlite)
        )
        keyset = wanted.keyset(order_by)
        with self._database.asking() as connection:
            return StudyPage(*keyset.read(connection, query, Study, page_size=page_size, page_token=page_token))

    def trial_counts(self, study_ids: Sequence[str]) -> dict[str, dict[TrialState, int]]:
        """How many trials each study has in each state; states without one are left out. None of another's study."""
        table = tables.trials
        query = (
            select(table.c.study_id, table.c.state, func.count())
            .join(tables.studies, tables.studies.c.id == table.c.study_id)
            .where(table.c.study_id.in_(study_ids), in_scope(self._scope))
            .group_by(table.c.study_id, table.c.state)
        )
        counts: dict[str, dict[TrialState, int]] = {study_id: {} for study_id in study_ids}
        with self._database.asking() as connection:
            for study_id, state, count in connection.execute(query):
                counts[study_id][TrialState(state)] = count
        return counts

    def _create(self, new: NewStudy) -> tuple[Study, bool]:
        with self._database.writing() as connection:
            known = self._by_idempotency_key(connection, new)
            if known:
                return known, False
            now = self._database.now(connection)
            study_id = new_id(STUDY_ID_LENGTH)
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
                    cloned_from=new.cloned_from,
                    driver_attempt=0,
                    driver_losses=0,
                    revision=1,
                    exported_revision=0,
                )
            )
            records.add_event(connection, study_id, "study.state", {"state": StudyState.QUEUED}, at=now)
            return self._study(connection, study_id), True

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
