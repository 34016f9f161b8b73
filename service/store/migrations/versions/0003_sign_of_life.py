"""A driver's last sign of life, up to which its time and that of its attempts count."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "studies",
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the last sign of life of the present driver",
        ),
    )
    # A lease ends shortly after the last heartbeat, unless it was given up, which 1970 stands for.
    op.execute(
        "UPDATE studies SET seen_at = CASE WHEN lease_expires_at > '1971-01-01' THEN lease_expires_at"
        " ELSE (SELECT MAX(at) FROM events WHERE events.study_id = studies.id) END"
        " WHERE state IN ('RUNNING', 'STOPPING')"
    )


def downgrade() -> None:
    op.drop_column("studies", "seen_at")
