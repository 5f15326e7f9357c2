"""Full-text search over turns, which therefore get a key of one number.

Revision: 0004
After: 0003

SQLite's index hangs on the table by triggers: a later migration that rebuilds `turns` there makes
them again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
COLUMNS = "user_id, turn_id, session_id, role, text, time, is_aside"

FOR_SQLITE = (
    # No diacritics are taken away, so that both databases find the same.
    "CREATE VIRTUAL TABLE turn_words USING fts5(user_id, text, content='turns', "
    "content_rowid='id', tokenize='unicode61 remove_diacritics 0')",
    "CREATE TRIGGER turn_words_of_new AFTER INSERT ON turns BEGIN "
    "INSERT INTO turn_words(rowid, user_id, text) VALUES (new.id, new.user_id, new.text); END",
    "CREATE TRIGGER turn_words_of_old AFTER DELETE ON turns BEGIN "
    "INSERT INTO turn_words(turn_words, rowid, user_id, text) "
    "VALUES ('delete', old.id, old.user_id, old.text); END",
    "CREATE TRIGGER turn_words_of_changed AFTER UPDATE OF user_id, text ON turns BEGIN "
    "INSERT INTO turn_words(turn_words, rowid, user_id, text) "
    "VALUES ('delete', old.id, old.user_id, old.text); "
    "INSERT INTO turn_words(rowid, user_id, text) VALUES (new.id, new.user_id, new.text); END",
    "INSERT INTO turn_words(turn_words) VALUES ('rebuild')",
)

FOR_POSTGRESQL = (
    "CREATE INDEX ix_turns_words ON turns USING gin (to_tsvector('simple'::regconfig, "
    'translate("left"(turns.text, 100000), '
    r"""'!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32))))"""
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("pk_turns", "turns")
        op.execute("ALTER TABLE turns ADD COLUMN id BIGSERIAL NOT NULL")
        op.create_primary_key("pk_turns", "turns", ["id"])
        op.create_unique_constraint("uq_turns_user_id_turn_id", "turns", ["user_id", "turn_id"])
        op.execute(FOR_POSTGRESQL)
        return
    _rebuild(
        sa.Column("id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_turns"),
        sa.UniqueConstraint("user_id", "turn_id", name="uq_turns_user_id_turn_id"),
    )
    for statement in FOR_SQLITE:
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("ix_turns_words", "turns")
        op.drop_constraint("uq_turns_user_id_turn_id", "turns")
        op.drop_constraint("pk_turns", "turns")
        op.drop_column("turns", "id")
        op.create_primary_key("pk_turns", "turns", ["user_id", "turn_id"])
        return
    for trigger in ("new", "old", "changed"):
        op.execute(f"DROP TRIGGER turn_words_of_{trigger}")
    op.execute("DROP TABLE turn_words")
    _rebuild(sa.PrimaryKeyConstraint("user_id", "turn_id", name="pk_turns"))


def _rebuild(*keys: sa.schema.SchemaItem) -> None:
    """Copy SQLite's table into one with other keys."""
    op.rename_table("turns", "turns_before")
    op.create_table(
        "turns",
        *(key for key in keys if isinstance(key, sa.Column)),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("turn_id", NAME, nullable=False),
        sa.Column("session_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_aside", sa.Boolean(), nullable=False, server_default=sa.false()),
        *(key for key in keys if not isinstance(key, sa.Column)),
        *(
            sa.ForeignKeyConstraint(
                [column], [parent], name=f"fk_turns_{column}", ondelete="CASCADE"
            )
            for column, parent in (("user_id", "users.id"), ("session_id", "sessions.id"))
        ),
    )
    op.execute(
        f"INSERT INTO turns ({COLUMNS}) "  # noqa: S608  # constants only
        f"SELECT {COLUMNS} FROM turns_before ORDER BY user_id, time, turn_id"
    )
    op.drop_table("turns_before")
    for owner in ("user_id", "session_id"):
        op.create_index(f"ix_turns_{owner}_time_turn_id", "turns", [owner, "time", "turn_id"])
