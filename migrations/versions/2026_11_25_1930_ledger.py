"""Tombstones of forgotten turns, and turns that a rollback set aside.

Revision: 0002
After: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("key", sa.LargeBinary(32), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key", "hash", name="pk_tombstones"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_tombstones_user_id", ondelete="CASCADE"
        ),
    )
    op.add_column(
        "turns", sa.Column("is_aside", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    """What was set aside becomes part of the memory again, with the next encoding."""
    op.execute(
        "UPDATE sessions SET revision = revision + 1, turns = turns + "
        "(SELECT count(*) FROM turns WHERE session_id = sessions.id AND is_aside) "
        "WHERE id IN (SELECT session_id FROM turns WHERE is_aside)"
    )
    with op.batch_alter_table("turns") as batch:
        batch.drop_column("is_aside")
    op.drop_table("tombstones")
