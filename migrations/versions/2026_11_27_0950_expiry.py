"""Dates on which turns are forgotten, and rules of tenants.

Revision: 0007
After: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

DATED = sa.text("expires_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("tenants", sa.Column("expire_after_days", sa.Integer(), nullable=True))
    op.add_column("turns", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_turns_expires_at",
        "turns",
        ["expires_at"],
        sqlite_where=DATED,
        postgresql_where=DATED,
    )


def downgrade() -> None:
    op.drop_index("ix_turns_expires_at", "turns")
    op.drop_column("turns", "expires_at")
    op.drop_column("tenants", "expire_after_days")
