"""First tables: tenants, users, sessions, turns, chunks, versions, states, adapters.

Revision: 0001
After: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Types are written out, not imported: a migration says what the tables were on its day.
NAME = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DIGEST = sa.String(64)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
    )
    op.create_table(
        "users",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("tenant_id", ROW_ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_users_tenant_id_name"),
        _belongs_to("users", "tenant_id", "tenants"),
    )
    _create_conversations()
    _create_memories()
    _store_tensors_as_they_are()


def _create_conversations() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("encoded_revision", sa.BigInteger(), nullable=False),
        sa.Column("floor_revision", sa.BigInteger(), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("encoded_turns", sa.Integer(), nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.UniqueConstraint("user_id", "name", name="uq_sessions_user_id_name"),
        _belongs_to("sessions", "user_id", "users"),
    )
    op.create_table(
        "turns",
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("turn_id", NAME, nullable=False),
        sa.Column("session_id", ROW_ID, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "turn_id", name="pk_turns"),
        _belongs_to("turns", "user_id", "users"),
        _belongs_to("turns", "session_id", "sessions"),
    )
    op.create_index("ix_turns_user_id_time_turn_id", "turns", ["user_id", "time", "turn_id"])
    op.create_index("ix_turns_session_id_time_turn_id", "turns", ["session_id", "time", "turn_id"])


def _create_memories() -> None:
    op.create_table(
        "chunks",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("session_id", ROW_ID, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("update_digest", DIGEST, nullable=False),
        sa.Column("turn_ids", sa.JSON(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("added_version", sa.Integer(), nullable=False),
        sa.Column("removed_version", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_chunks"),
        _belongs_to("chunks", "user_id", "users"),
        _belongs_to("chunks", "session_id", "sessions"),
    )
    op.create_index(
        "uq_chunks_current",
        "chunks",
        ["user_id", "digest"],
        unique=True,
        sqlite_where=sa.text("removed_version IS NULL"),
        postgresql_where=sa.text("removed_version IS NULL"),
    )
    op.create_index("ix_chunks_user_id_added_version", "chunks", ["user_id", "added_version"])
    op.create_index("ix_chunks_session_id", "chunks", ["session_id"])
    op.create_table(
        "versions",
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("fingerprint", sa.JSON(), nullable=False),
        sa.Column("state_digest", DIGEST, nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "version", name="pk_versions"),
        _belongs_to("versions", "user_id", "users"),
    )
    op.create_table(
        "states",
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("fingerprint", sa.JSON(), nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("open_chunk", DIGEST, nullable=True),
        sa.Column("closed", sa.LargeBinary(), nullable=False),
        sa.Column("open_update", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("user_id", name="pk_states"),
        _belongs_to("states", "user_id", "users"),
    )
    op.create_table(
        "adapters",
        sa.Column("user_id", ROW_ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("readouts", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "version", name="pk_adapters"),
        sa.ForeignKeyConstraint(
            ["user_id", "version"],
            ["versions.user_id", "versions.version"],
            name="fk_adapters_user_id_version",
            ondelete="CASCADE",
        ),
    )


def _store_tensors_as_they_are() -> None:
    """Trying to compress tensors doubles the time of a write on PostgreSQL, and gains little."""
    if op.get_bind().dialect.name == "postgresql":
        for table, column in (
            ("states", "closed"),
            ("states", "open_update"),
            ("adapters", "readouts"),
        ):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def _belongs_to(table: str, column: str, parent: str) -> sa.ForeignKeyConstraint:
    """What goes when its parent goes."""
    return sa.ForeignKeyConstraint(
        [column], [f"{parent}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE"
    )


def downgrade() -> None:
    for table in (
        "adapters",
        "states",
        "versions",
        "chunks",
        "turns",
        "sessions",
        "users",
        "tenants",
    ):
        op.drop_table(table)
