"""Pausing, shares, confirmation, retries, keys, webhooks, deletions; results by configuration kept ready."""

import math
from collections import defaultdict
from statistics import fmean, stdev

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column(
            "secret_hash", sa.String(length=64), nullable=False, comment="SHA-256 of a secret of 256 random bits"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "removals",
        sa.Column("study_id", sa.String(length=32), nullable=False),
        sa.Column("mlflow_experiment_id", sa.String(length=64), nullable=True),
        sa.Column("delete_runs", sa.Boolean(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True, comment="what went wrong the last time"),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_removals")),
        comment="what is left of deleted studies outside the store: checkpoints, logs, runs in MLflow",
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=100), nullable=False, comment="signs what is sent; shown once"),
        sa.Column("states", sa.JSON(), nullable=False, comment="the study states that are told; empty: all"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_owner"), "webhooks", ["owner"], unique=False)

    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("webhook_id", sa.String(length=16), nullable=False),
        sa.Column("study_id", sa.String(length=32), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True, comment="NULL: delivered, or given up"),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True, comment="what went wrong the last time"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("fk_webhook_deliveries_webhook_id_webhooks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(
        "ix_webhook_deliveries_open",
        "webhook_deliveries",
        ["webhook_id", "id"],
        unique=False,
        sqlite_where=sa.text("next_attempt_at IS NOT NULL"),
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_index("ix_webhook_deliveries_webhook_id_id", "webhook_deliveries", ["webhook_id", "id"], unique=False)

    op.add_column("configurations", sa.Column("origin", sa.String(length=10), server_default="SEARCH", nullable=False))
    op.add_column(
        "configurations",
        sa.Column("objective_mean", sa.Float(), nullable=True, comment="over the search trials that succeeded"),
    )
    op.add_column(
        "configurations",
        sa.Column("objective_std", sa.Float(), nullable=True, comment="of the sample; NULL below two replicates"),
    )
    op.add_column("configurations", sa.Column("objective_n", sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "configurations",
        sa.Column("confirmed_mean", sa.Float(), nullable=True, comment="the same over the confirming trials"),
    )
    op.add_column("configurations", sa.Column("confirmed_std", sa.Float(), nullable=True))
    op.add_column("configurations", sa.Column("confirmed_n", sa.Integer(), server_default="0", nullable=False))
    op.add_column(
        "configurations",
        sa.Column(
            "complete",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="every search trial has an objective",
        ),
    )
    op.create_index(
        "ix_configurations_study_id_complete_objective_mean",
        "configurations",
        ["study_id", "complete", "objective_mean"],
        unique=False,
    )

    op.add_column(
        "studies",
        sa.Column(
            "version",
            sa.Integer(),
            server_default="1",
            nullable=False,
            comment="grows with every change that a user makes",
        ),
    )
    op.add_column("studies", sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "studies",
        sa.Column("elapsed_s", sa.Float(), server_default="0", nullable=False, comment="spent by earlier drivers"),
    )
    op.add_column(
        "studies",
        sa.Column(
            "running_since", sa.DateTime(timezone=True), nullable=True, comment="when the present driver was claimed"
        ),
    )
    op.add_column(
        "studies",
        sa.Column("slots", sa.Integer(), nullable=True, comment="trials that may train at once; NULL: no share is set"),
    )
    op.add_column("studies", sa.Column("cloned_from", sa.String(length=32), nullable=True))
    op.add_column(
        "studies",
        sa.Column(
            "untidy",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="it has ended, and checkpoints may be left that are not to stay",
        ),
    )
    op.create_index("ix_studies_untidy", "studies", ["untidy"], unique=False)
    op.create_index("ix_studies_owner_created_at_id", "studies", ["owner", "created_at", "id"], unique=False)

    op.add_column(
        "attempts",
        sa.Column("warning", sa.Text(), nullable=True, comment="the last thing that went wrong without ending it"),
    )

    op.add_column("trials", sa.Column("purpose", sa.String(length=10), server_default="SEARCH", nullable=False))
    op.add_column("trials", sa.Column("note", sa.Text(), nullable=True))
    op.add_column(
        "trials",
        sa.Column(
            "retried_after",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="its attempt when a user retried it",
        ),
    )

    _summarise_configurations(op.get_bind())


def _summarise_configurations(connection: sa.Connection) -> None:
    """Fills the new columns of the configurations that are there, as the store does from now on."""
    objectives: defaultdict[str, list[float]] = defaultdict(list)
    trials: defaultdict[str, int] = defaultdict(int)
    for configuration_id, state, objective in connection.execute(
        sa.text("SELECT configuration_id, state, objective FROM trials ORDER BY configuration_id, seed")
    ):
        trials[configuration_id] += 1
        if state == "SUCCEEDED" and objective is not None and math.isfinite(objective):
            objectives[configuration_id].append(objective)
    for configuration_id, values in objectives.items():
        connection.execute(
            sa.text(
                "UPDATE configurations SET objective_mean = :mean, objective_std = :std, objective_n = :n,"
                " complete = :complete WHERE id = :id"
            ).bindparams(sa.bindparam("complete", type_=sa.Boolean)),
            {
                "id": configuration_id,
                "mean": fmean(values),
                "std": stdev(values) if len(values) > 1 else None,
                "n": len(values),
                "complete": len(values) == trials[configuration_id],
            },
        )


def downgrade() -> None:
    for table in ("removals", "webhook_deliveries", "webhooks", "api_keys"):
        op.drop_table(table)
    op.drop_index("ix_configurations_study_id_complete_objective_mean", "configurations")
    op.drop_index("ix_studies_owner_created_at_id", "studies")
    op.drop_index("ix_studies_untidy", "studies")
    for table, columns in (
        ("attempts", ("warning",)),
        ("trials", ("purpose", "note", "retried_after")),
        ("studies", ("version", "archived_at", "elapsed_s", "running_since", "slots", "cloned_from", "untidy")),
        (
            "configurations",
            (
                "origin",
                "objective_mean",
                "objective_std",
                "objective_n",
                "confirmed_mean",
                "confirmed_std",
                "confirmed_n",
                "complete",
            ),
        ),
    ):
        for column in columns:
            op.drop_column(table, column)
