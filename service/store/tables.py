"""The tables of the study store, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime, always in UTC; SQLite, which knows no time zones, keeps it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a stored time must be aware of its time zone, got {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ErrorText(TypeDecorator[str]):
    """Whatever an error says: PostgreSQL's text has no NUL, and a message may."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\x00", "\ufffd")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_BigSerial = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER primary key

studies = Table(
    "studies",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False, index=True),
    Column("description", Text, nullable=False),
    Column("owner", String(100), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("state", String(20), nullable=False, index=True),
    Column("intent", String(20), nullable=False),
    Column("reason", String(30)),
    Column("error", ErrorText),
    Column("waiting_reason", Text),
    Column("created_at", UTCDateTime, nullable=False, index=True),
    Column("started_at", UTCDateTime),
    Column("finished_at", UTCDateTime),
    Column("idempotency_key", String(255)),
    Column("request_digest", String(64), nullable=False),
    Column("driver_attempt", Integer, nullable=False),
    Column("driver_losses", Integer, nullable=False, comment="drivers lost in a row without a new result"),
    Column("lease_expires_at", UTCDateTime),
    Column("intent_at", UTCDateTime, comment="when the intent last changed"),
    Column("revision", Integer, nullable=False, comment="grows with every change to the study or its trials"),
    Column("exported_revision", Integer, nullable=False, comment="the revision that MLflow shows"),
    Column("mlflow_experiment_id", String(64)),
    Column("mlflow_run_id", String(64)),
    UniqueConstraint("owner", "idempotency_key"),
)

configurations = Table(
    "configurations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("study_id", String(32), ForeignKey("studies.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("point", JSON, nullable=False),
    Column("point_key", String(64), nullable=False, comment="digest of the point"),
    Column("created_at", UTCDateTime, nullable=False),
    UniqueConstraint("study_id", "number"),
    UniqueConstraint("study_id", "point_key"),
)

trials = Table(
    "trials",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("study_id", String(32), ForeignKey("studies.id", ondelete="CASCADE"), nullable=False),
    Column("configuration_id", String(64), ForeignKey("configurations.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("state", String(20), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epochs_done", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("objective", Float),
    Column("error", ErrorText),
    Column("created_at", UTCDateTime, nullable=False),
    Column("started_at", UTCDateTime),
    Column("finished_at", UTCDateTime),
    Column("revision", Integer, nullable=False, comment="grows with every change to the trial or its results"),
    Column("exported_revision", Integer, nullable=False, comment="the revision that MLflow shows"),
    Column("exported_epoch", Integer, nullable=False, comment="the last epoch that MLflow has"),
    Column("mlflow_run_id", String(64)),
    UniqueConstraint("study_id", "number"),
    UniqueConstraint("configuration_id", "seed"),
    Index("ix_trials_study_id_state", "study_id", "state"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("trial_id", String(80), ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("driver_attempt", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("node", String(255)),
    Column("error", ErrorText),
    Column("started_at", UTCDateTime, nullable=False),
    Column("finished_at", UTCDateTime),
)

results = Table(
    "results",
    metadata,
    Column("id", _BigSerial, primary_key=True, autoincrement=True),
    Column("trial_id", String(80), ForeignKey("trials.id", ondelete="CASCADE"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("recorded_at", UTCDateTime, nullable=False),
    UniqueConstraint("trial_id", "epoch"),
)

events = Table(
    "events",
    metadata,
    Column("id", _BigSerial, primary_key=True, autoincrement=True),
    Column("study_id", String(32), ForeignKey("studies.id", ondelete="CASCADE"), nullable=False),
    Column("trial_id", String(80)),
    Column("kind", String(40), nullable=False),
    Column("data", JSON, nullable=False),
    Column("at", UTCDateTime, nullable=False),
    Index("ix_events_study_id_id", "study_id", "id"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("holder", String(100), nullable=False),
    Column("expires_at", UTCDateTime, nullable=False),
)
