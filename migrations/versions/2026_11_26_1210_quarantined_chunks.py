"""Chunks that cannot be encoded are quarantined.

Revision: 0005
After: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column(
        "sessions",
        sa.Column("quarantined_turns", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )
    op.create_table(
        "quarantined_chunks",
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("session_id", ROW_ID, nullable=False),
        sa.Column("turn_ids", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "digest", name="pk_quarantined_chunks"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_quarantined_chunks_user_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name="fk_quarantined_chunks_session_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_quarantined_chunks_session_id", "quarantined_chunks", ["session_id"])


def downgrade() -> None:
    """Their sessions become pending: an older program tries those chunks with every append."""
    op.execute("UPDATE sessions SET revision = revision + 1 WHERE quarantined_turns > 0")
    op.drop_table("quarantined_chunks")
    op.drop_column("sessions", "quarantined_turns")
