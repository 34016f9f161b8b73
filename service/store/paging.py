"""Pages of a list by keyset: each begins after the last row of the page before, so that rows added move nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Connection, Select, and_, or_

from search_spaces.checking import shown
from service.errors import FieldProblem, InvalidRequestError
from service.store import records

Record = TypeVar("Record", bound=BaseModel)

MAX_TOKEN_LENGTH = 1_000
"""Of any token: the longest has a name of 100 characters, each of 6 bytes at most, and an id, in base64."""

_FINGERPRINT_LENGTH = 16
_MAX_TEXT = 300
_MAX_INT = 2**31 - 1  # numbers and flags, which PostgreSQL holds in 4 bytes


class PageTokenError(InvalidRequestError):
    """What was given as page_token does not belong here."""

    def __init__(self, message: str) -> None:
        super().__init__(message, problems=[FieldProblem("page_token", message)])


@dataclass(frozen=True, slots=True)
class SortKey:
    """One thing that a list is ordered by; never NULL. kind: what its values are."""

    expression: ColumnElement[Any]
    kind: type[datetime] | type[str] | type[int] | type[float]
    descending: bool = False


class Keyset:
    """The order of one list, and tokens that say how far a reader has come in it.

    keys: what it is ordered by; together they tell every two rows apart. listing: which list this is, its filters and
    its order, as plain data; a token of another one is refused, because it would skip rows here.
    """

    def __init__(self, keys: Sequence[SortKey], listing: object) -> None:
        self._keys = keys
        canonical = json.dumps(listing, sort_keys=True, ensure_ascii=True, default=str)
        self._fingerprint = hashlib.sha256(canonical.encode()).hexdigest()[:_FINGERPRINT_LENGTH]

    def read(
        self,
        connection: Connection,
        query: Select[Any],
        record_type: type[Record],
        *,
        page_size: int,
        page_token: str | None,
    ) -> tuple[list[Record], str | None]:
        """The next rows of the query, and the token of the page after them; None on the last page.

        Raises PageTokenError.
        """
        if page_token is not None:
            query = query.where(self._after(self._values(page_token)))
        ordered = [key.expression.desc() if key.descending else key.expression.asc() for key in self._keys]
        told = [key.expression.label(f"sort_key_{index}") for index, key in enumerate(self._keys)]
        rows = connection.execute(query.add_columns(*told).order_by(*ordered).limit(page_size + 1)).all()
        token = None
        if len(rows) > page_size:
            last = rows[page_size - 1]._mapping
            token = self._token([last[label.name] for label in told])
        return [records.as_record(record_type, row) for row in rows[:page_size]], token

    def _after(self, values: Sequence[Any]) -> ColumnElement[bool]:
        """Rows behind the one with these values: by the first key, or by the next one where the first is the same, …"""
        alternatives = []
        for index, key in enumerate(self._keys):
            same = [other.expression == value for other, value in zip(self._keys[:index], values, strict=False)]
            behind = key.expression < values[index] if key.descending else key.expression > values[index]
            alternatives.append(and_(*same, behind))
        first = self._keys[0]
        bound = first.expression <= values[0] if first.descending else first.expression >= values[0]
        return and_(bound, or_(*alternatives))  # the bound says nothing new, and lets an index begin there

    def _token(self, values: Sequence[Any]) -> str:
        plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
        text = json.dumps([self._fingerprint, *plain], ensure_ascii=False, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode()

    def _values(self, token: str) -> list[Any]:
        try:
            fingerprint, *plain = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
            if not isinstance(fingerprint, str) or len(fingerprint) != _FINGERPRINT_LENGTH:
                raise _unreadable()
            values = list(zip(self._keys, plain, strict=True))
            if fingerprint != self._fingerprint:
                raise PageTokenError(
                    "page_token is that of a list with other filters or another order: begin again without it"
                )
            return [_READERS[key.kind](value) for key, value in values]
        except (ValueError, TypeError, RecursionError):
            message = f"page_token must be the next_page_token of an earlier answer, got {shown(token)}"
            raise PageTokenError(message) from None


def _unreadable() -> ValueError:
    return ValueError("no value of a page token")


def _moment(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _unreadable()


def _text(value: object) -> str:
    if isinstance(value, str) and len(value) <= _MAX_TEXT and "\x00" not in value:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _unreadable() from None
        return value
    raise _unreadable()


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INT:
        return value
    raise _unreadable()


def _number(value: object) -> float:
    try:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise _unreadable()


_READERS: dict[type, Callable[[object], Any]] = {datetime: _moment, str: _text, int: _integer, float: _number}
