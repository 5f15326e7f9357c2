"""Quotas of tenants, and what users keep.

Revision: 0006
After: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

LIMITS = ("max_users", "max_turns", "max_text_bytes")
COUNTS = ("kept_turns", "kept_bytes")
USERS = sa.table("users", *(sa.column(name) for name in ("id", *COUNTS)))
TURNS = sa.table("turns", sa.column("user_id"), sa.column("text"))
TEXT_BYTES = {
    "sqlite": sa.func.length(sa.cast(TURNS.c.text, sa.LargeBinary)),
    "postgresql": sa.func.octet_length(TURNS.c.text),
}


def upgrade() -> None:
    for name in LIMITS:
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=True))
    for name in COUNTS:
        zero = sa.text("0")
        op.add_column(
            "users", sa.Column(name, sa.BigInteger(), nullable=False, server_default=zero)
        )
    text_bytes = sa.func.sum(TEXT_BYTES[op.get_bind().dialect.name])
    kept = (sa.func.count(), sa.func.coalesce(text_bytes, 0))
    mine = [
        sa.select(value).select_from(TURNS).where(TURNS.c.user_id == USERS.c.id).scalar_subquery()
        for value in kept
    ]
    op.execute(USERS.update().values(dict(zip(COUNTS, mine, strict=True))))


def downgrade() -> None:
    for name in COUNTS:
        op.drop_column("users", name)
    for name in LIMITS:
        op.drop_column("tenants", name)
