"""Tombstones of forgotten turns.

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


def downgrade() -> None:
    op.drop_table("tombstones")
