"""The events of one kind are found without a look at all others of their study."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_events_study_id_kind_id", "events", ["study_id", "kind", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_events_study_id_kind_id", "events")
