"""Which studies, configurations and trials a list shows, and the orders in which it can show them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, exists, func, true

from service.answers import ConfigurationSortOrder, StudySortOrder, TrialSortOrder
from service.spec_sections import Mode
from service.store import tables
from service.store.paging import Keyset, SortKey
from service.store.ranking import by_objective
from service.study import Origin, Purpose, StudyState, TrialState


@dataclass(frozen=True, slots=True)
class StudyFilter:
    """Which studies a list shows; every given field must match.

    labels: pairs of key and value, all of which a study must have; so two values of one key match none.
    name_contains: whatever the case of ASCII letters. archived: None for both. created_after, created_before: neither
    included.
    """

    states: Collection[StudyState] = field(default_factory=tuple)
    labels: Collection[tuple[str, str]] = field(default_factory=tuple)
    name: str | None = None
    owner: str | None = None
    name_contains: str | None = None
    archived: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def conditions(self, *, is_sqlite: bool) -> Iterator[ColumnElement[bool]]:
        """What a study must fulfil, in SQL."""
        column = tables.studies.c
        if self.states:
            yield column.state.in_(self.states)
        for key, value in self.labels:
            yield _has_label(key, value, is_sqlite=is_sqlite)
        if self.name is not None:
            yield column.name == self.name
        if self.owner is not None:
            yield column.owner == self.owner
        if self.name_contains is not None:
            yield column.name.icontains(self.name_contains, autoescape=True)
        if self.archived is not None:
            yield column.archived_at.is_not(None) if self.archived else column.archived_at.is_(None)
        if self.created_after is not None:
            yield column.created_at > self.created_after
        if self.created_before is not None:
            yield column.created_at < self.created_before

    def keyset(self, order_by: StudySortOrder) -> Keyset:
        """The order of a list with this filter."""
        column, descending = tables.studies.c, order_by.startswith("-")
        by_name = order_by.removeprefix("-") == "name"
        first = (
            SortKey(column.name, str, descending=descending)
            if by_name
            else SortKey(column.created_at, datetime, descending=descending)
        )
        return Keyset([first, SortKey(column.id, str, descending=descending)], _listing("studies", order_by, self))


@dataclass(frozen=True, slots=True)
class ConfigurationFilter:
    """Which configurations of a study a list shows; every given field must match."""

    origin: Origin | None = None
    complete: bool | None = None

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """What a configuration must fulfil, in SQL."""
        column = tables.configurations.c
        if self.origin is not None:
            yield column.origin == self.origin
        if self.complete is not None:
            yield column.complete.is_(self.complete)

    def keyset(self, study_id: str, order_by: ConfigurationSortOrder, mode: Mode) -> Keyset:
        """The order of a list with this filter; mode: of the study's objective."""
        number = SortKey(tables.configurations.c.number, int, descending=order_by == "-number")
        keys = by_objective(mode) if order_by == "objective" else [number]
        return Keyset(keys, _listing(study_id, "configurations", order_by, self))


@dataclass(frozen=True, slots=True)
class TrialFilter:
    """Which trials of a study a list shows; every given field must match."""

    states: Collection[TrialState] = field(default_factory=tuple)
    purpose: Purpose | None = None
    configuration_id: str | None = None

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """What a trial must fulfil, in SQL."""
        column = tables.trials.c
        if self.states:
            yield column.state.in_(self.states)
        if self.purpose is not None:
            yield column.purpose == self.purpose
        if self.configuration_id is not None:
            yield column.configuration_id == self.configuration_id

    def keyset(self, study_id: str, order_by: TrialSortOrder) -> Keyset:
        """The order of a list with this filter."""
        number = SortKey(tables.trials.c.number, int, descending=order_by == "-number")
        return Keyset([number], _listing(study_id, "trials", order_by, self))


def _listing(*what: object) -> list[object]:
    """Plain data by which one list is told from another; the order of states and of labels says nothing."""
    return [_plain(part) for part in what]


def _plain(part: object) -> object:
    if not isinstance(part, (StudyFilter, ConfigurationFilter, TrialFilter)):
        return part
    fields: dict[str, Any] = asdict(part)
    return {name: sorted(set(value)) if name in ("states", "labels") else value for name, value in fields.items()}


def _has_label(key: str, value: str, *, is_sqlite: bool) -> ColumnElement[bool]:
    labels = tables.studies.c.labels
    if not is_sqlite:
        has: ColumnElement[bool] = labels[key].as_string() == value
        return has
    pairs = func.json_each(labels).table_valued("key", "value")  # any key; a JSON path cannot quote every one
    return exists().where(pairs.c.key == key, pairs.c.value == value)


def in_scope(scope: str | None) -> ColumnElement[bool]:
    """The studies that a caller may see: those of this owner; None: all."""
    return true() if scope is None else tables.studies.c.owner == scope
