"""The tables of the study store, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
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
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.expression import false
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


def storable_text(value: str) -> str:
    """The text without what no text on disk or on the wire can have: NUL (PostgreSQL) and lone surrogates (UTF-8)."""
    return value.replace("\x00", "\ufffd").encode(errors="replace").decode()


class ErrorText(TypeDecorator[str]):
    """Whatever an error says, as far as it can be stored."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable_text(value)


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
    Column("version", Integer, nullable=False, server_default="1", comment="grows with every change that a user makes"),
    Column("archived_at", UTCDateTime),
    Column("elapsed_s", Float, nullable=False, server_default="0", comment="spent by earlier drivers"),
    Column("running_since", UTCDateTime, comment="when the present driver was claimed"),
    Column("seen_at", UTCDateTime, comment="the last sign of life of the present driver"),
    Column("slots", Integer, comment="trials that may train at once; NULL: no share is set"),
    Column("cloned_from", String(32)),
    Column(
        "untidy",
        Boolean,
        nullable=False,
        server_default=false(),
        index=True,
        comment="it has ended, and checkpoints may be left that are not to stay",
    ),
    UniqueConstraint("owner", "idempotency_key"),
    Index("ix_studies_owner_created_at_id", "owner", "created_at", "id"),
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
    Column("origin", String(10), nullable=False, server_default="SEARCH"),
    Column("objective_mean", Float, comment="over the search trials that succeeded"),
    Column("objective_std", Float, comment="of the sample; NULL below two replicates"),
    Column("objective_n", Integer, nullable=False, server_default="0"),
    Column("confirmed_mean", Float, comment="the same over the confirming trials"),
    Column("confirmed_std", Float),
    Column("confirmed_n", Integer, nullable=False, server_default="0"),
    Column("complete", Boolean, nullable=False, server_default=false(), comment="every search trial has an objective"),
    UniqueConstraint("study_id", "number"),
    UniqueConstraint("study_id", "point_key"),
    Index("ix_configurations_study_id_complete_objective_mean", "study_id", "complete", "objective_mean"),
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
    Column("purpose", String(10), nullable=False, server_default="SEARCH"),
    Column("note", ErrorText),
    Column("retried_after", Integer, nullable=False, server_default="0", comment="its attempt when a user retried it"),
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
    Column("warning", ErrorText, comment="the last thing that went wrong without ending it"),
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
    # most are of trials, and what is asked for is the last of another kind
    Index("ix_events_study_id_kind_id", "study_id", "kind", "id"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("holder", String(100), nullable=False),
    Column("expires_at", UTCDateTime, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("owner", String(100), nullable=False),
    Column("role", String(10), nullable=False),
    Column("secret_hash", String(64), nullable=False, comment="SHA-256 of a secret of 256 random bits"),
    Column("created_at", UTCDateTime, nullable=False),
    Column("last_used_at", UTCDateTime),
    Column("revoked_at", UTCDateTime),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("owner", String(100), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("secret", String(100), nullable=False, comment="signs what is sent; shown once"),
    Column("states", JSON, nullable=False, comment="the study states that are told; empty: all"),
    Column("created_at", UTCDateTime, nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", _BigSerial, primary_key=True, autoincrement=True),
    Column("webhook_id", String(16), ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("study_id", String(32), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", UTCDateTime, comment="NULL: delivered, or given up"),
    Column("delivered_at", UTCDateTime),
    Column("error", ErrorText, comment="what went wrong the last time"),
    Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
    Index(
        "ix_webhook_deliveries_open",  # few of many: the sender looks at it several times a second
        "webhook_id",
        "id",
        sqlite_where=text("next_attempt_at IS NOT NULL"),
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
)

removals = Table(
    "removals",
    metadata,
    Column("study_id", String(32), primary_key=True),
    Column("mlflow_experiment_id", String(64)),
    Column("delete_runs", Boolean, nullable=False),
    Column("requested_at", UTCDateTime, nullable=False),
    Column("error", ErrorText, comment="what went wrong the last time"),
    comment="what is left of deleted studies outside the store: checkpoints, logs, runs in MLflow",
)
