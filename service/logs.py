"""Logs of the service's processes: one line on stderr for each thing that happened, as text or as a JSON object.

A line says what it is about in fields: study_id, trial_id, driver_attempt, request_id and whatever else was given by
`about`, by `extra=` or for the whole process. Nothing that is logged can begin a line of its own: in JSON by its
nature, in text because control characters are escaped and the lines of a traceback are marked.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from service.settings import SECRET_PARAMETER, URL_PASSWORD, URL_TOKEN, LogFormat, LogLevel

_MARK = "  | "
_QUIET = {
    "httpx": logging.WARNING,  # a line for every request
    "httpcore": logging.WARNING,
    "alembic": logging.WARNING,
    "urllib3": logging.WARNING,
}
_SECRET = re.compile(r"(sam_[a-z0-9]{12}_)[0-9a-f]{64}|(whsec_)[A-Za-z0-9+/=]{16,}")
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}

_OWN = {*RESERVED_ATTRS, "asctime", "message", "color_message"}
"""Attributes of a record that are no fields; the last one is uvicorn's."""

_about: ContextVar[Mapping[str, object]] = ContextVar("about", default={})  # noqa: B039  # never changed in place

logger = logging.getLogger(__name__)


def configure(log_format: LogFormat, level: LogLevel = "info", **fields: object) -> None:
    """Makes this process log to stderr, what ends it or one of its threads unexpectedly and Python's warnings included.

    fields: what every line of the process has, such as the study of a driver.
    """
    handler = _ToStderr()
    handler.addFilter(Fields(fields))
    handler.setFormatter(_JsonLines() if log_format == "json" else _TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    for other in [found for found in root.manager.loggerDict.values() if isinstance(found, logging.Logger)]:
        other.handlers.clear()  # libraries that write lines of their own form, as Ray's do
        other.propagate = True
    logging.captureWarnings(True)
    sys.excepthook = _log_the_end
    threading.excepthook = _log_the_end_of_a_thread


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """Until the block ends, every line of this thread, or of this task, has these fields."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def redacted(text: str) -> str:
    """The text without the secrets of API keys and webhooks, the passwords of URLs and secrets among their parameters.

    Of a URL with a port or a password goes everything up to the last @: rather too much than a part of a password.
    """
    text = _SECRET.sub(r"\1\2***", text)
    text = URL_TOKEN.sub(r"\1***@", URL_PASSWORD.sub(r"\1:***@", text))
    return SECRET_PARAMETER.sub(r"\1***", text)


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to what stderr is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


class Fields(logging.Filter):
    """Gives every record the fields of its process and of what it is about; its own `extra` comes first."""

    def __init__(self, of_process: Mapping[str, object]) -> None:
        super().__init__()
        self._of_process = of_process

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in {**self._of_process, **_about.get()}.items():
            if name not in record.__dict__:
                setattr(record, name, value)
        return True


class _JsonLines(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"},
            reserved_attrs=[*_OWN],
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        return _time(record)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: _redacted(value) for name, value in log_data.items()}


class _TextLines(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        return _time(record)

    def format(self, record: logging.LogRecord) -> str:
        said = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        fields = [f"{name}={value}" for name, value in _fields_of(record).items() if value is not None]
        lines = [" ".join([said, *fields]).translate(_CONTROL)]
        if record.exc_info:
            lines += [_MARK + line.translate(_CONTROL) for line in self.formatException(record.exc_info).splitlines()]
        return redacted("\n".join(lines))


_ENCODER = JsonEncoder()


def _redacted(value: object) -> object:
    """The value of a field: once it is JSON, the end of a secret in it can no longer be told."""
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {str(key): _redacted(item) for key, item in value.items()}
        case list() | tuple():
            return [_redacted(item) for item in value]
        case str():
            return redacted(value)
        case _:
            return _redacted(_ENCODER.default(value))


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What a record has beside logging's own attributes."""
    return {name: value for name, value in vars(record).items() if name not in _OWN and not name.startswith("_")}


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _log_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("the process ends unexpectedly", exc_info=(kind, error, trace))


def _log_the_end_of_a_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None or issubclass(ended.exc_type, SystemExit):
        return
    name = ended.thread.name if ended.thread else "?"
    logger.critical(
        "thread %s ends unexpectedly", name, exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback)
    )
