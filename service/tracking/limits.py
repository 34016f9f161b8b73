"""What MLflow accepts as keys and values, and how text of any kind gets there."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_KEY = 250
MAX_TAG = 5_000  # characters; 8,000 in newer versions of MLflow
MAX_PARAM = 6_000
MAX_RUN_NAME = 250

MAX_METRICS = 1_000
MAX_ENTITIES = 1_000
MAX_PARAMS = MAX_TAGS = 100
MAX_BATCH_BYTES = 900_000  # MLflow refuses requests of 1 MB

_ILLEGAL = re.compile(r"[^/\w.\- ]")  # colons are legal except on Windows


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a metric; MLflow merges points that are the same in everything."""

    key: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class RunContent:
    """What is written into one run, or the part of it that fits into one call."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[MetricPoint] = field(default_factory=list)


def key(name: str) -> str:
    """A legal key of a metric, parameter or tag.

    A name that has to be changed gets a digest of what it was, so that two names never become one key.
    """
    parts = [part.strip() for part in _ILLEGAL.sub("_", name).split("/")]
    legal = "/".join(part for part in parts if part not in ("", ".", ".."))
    if legal == name and 1 <= len(name) <= MAX_KEY:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{legal[: MAX_KEY - 9]}-{digest}".lstrip("-")


def text(value: str, limit: int = MAX_TAG) -> str:
    """Text that databases and HTTP take, its end cut off where it is too long."""
    legal = value.replace("\x00", "�").encode("utf-8", "replace").decode()
    return legal if len(legal) <= limit else legal[: limit - 1] + "…"


def last_lines(value: str, limit: int = MAX_TAG) -> str:
    """Like `text`, but the beginning is cut off: what a traceback says is at its end."""
    legal = text(value, len(value) + 1)
    return legal if len(legal) <= limit else "…" + legal[-(limit - 1) :]


def batches(content: RunContent) -> Iterator[RunContent]:
    """The content in as few calls as MLflow's limits allow; none where there is nothing. NaN and ±inf are left out."""
    batch, size = RunContent(), 0
    for entity in _entities(content):
        cost = _bytes(entity)
        if size + cost > MAX_BATCH_BYTES or not _has_room(batch, entity):
            yield batch
            batch, size = RunContent(), 0
        size += cost
        match entity:
            case _Param(name, value):
                batch.params[name] = value
            case _Tag(name, value):
                batch.tags[name] = value
            case MetricPoint():
                batch.metrics.append(entity)
    if size:
        yield batch


class _Param(NamedTuple):
    key: str
    value: str


class _Tag(NamedTuple):
    key: str
    value: str


def _entities(content: RunContent) -> Iterator[_Param | _Tag | MetricPoint]:
    yield from (_Param(*pair) for pair in content.params.items())
    yield from (_Tag(*pair) for pair in content.tags.items())
    yield from (point for point in content.metrics if math.isfinite(point.value))


def _bytes(entity: _Param | _Tag | MetricPoint) -> int:
    """At least the length of the entity in a request, where a letter may be escaped as six bytes of ASCII."""
    value = 40 if isinstance(entity, MetricPoint) else 6 * len(entity.value)
    return 100 + 6 * len(entity.key) + value


def _has_room(batch: RunContent, entity: _Param | _Tag | MetricPoint) -> bool:
    if len(batch.params) + len(batch.tags) + len(batch.metrics) >= MAX_ENTITIES:
        return False
    match entity:
        case _Param():
            return len(batch.params) < MAX_PARAMS
        case _Tag():
            return len(batch.tags) < MAX_TAGS
        case MetricPoint():
            return len(batch.metrics) < MAX_METRICS
