"""The tables. Everything but a tenant hangs below one user and goes with it.

A memory's parts belong to a user by a surrogate key, so no query can mix two tenants' users of the
same name. Names are compared byte by byte on every database: that is Python's order, and order
decides chunks.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from memory_service.domain.tombstones import KEY_BYTES
from memory_service.domain.turns import MAX_NAME_CHARS

NAMING_CONVENTION = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
"""Every constraint has a name, so that a migration can drop it."""


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware and in UTC on both databases (SQLite itself keeps no time zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store in UTC, so that text order is time order."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give an aware time back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Name = String(MAX_NAME_CHARS).with_variant(String(MAX_NAME_CHARS, collation="C"), "postgresql")
Digest = String(64)
RowId = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Parent of all tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class TenantRow(Base):
    """Who owns the data, and the most of it (`domain.quotas`); NULL is no limit.

    Turns without a date of their own are forgotten `expire_after_days` after they were said.
    """

    __tablename__ = "tenants"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    max_users: Mapped[int | None] = mapped_column(BigInteger)
    max_turns: Mapped[int | None] = mapped_column(BigInteger)
    max_text_bytes: Mapped[int | None] = mapped_column(BigInteger)
    expire_after_days: Mapped[int | None]


class ApiKeyRow(Base):
    """What a caller of the API shows; stored is the digest of its secret only."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(Digest)
    scopes: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class UserRow(Base):
    """Who is remembered. `version` is what two writers compare and swap.

    `kept_turns` and `kept_bytes` (of their texts) count all kept turns, also those set aside.
    """

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Name)
    version: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    kept_turns: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    kept_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class SessionRow(Base):
    """One sitting, and how far its turns are encoded.

    `revision` grows with each change of its turns; the session is pending while `encoded_revision`
    differs. It starts at the time of creation in microseconds, so that no two sessions of one name
    share a revision. Work computed from a revision below `floor_revision` is refused: the memory
    was restarted, or deleted and begun again, since. `turns` counts those not set aside;
    `encoded_turns` are in the state, `quarantined_turns` only in chunks that cannot be encoded.
    """

    __tablename__ = "sessions"
    __table_args__ = (UniqueConstraint("user_id", "name"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Name)
    revision: Mapped[int] = mapped_column(BigInteger)
    encoded_revision: Mapped[int] = mapped_column(BigInteger)
    floor_revision: Mapped[int] = mapped_column(BigInteger)
    turns: Mapped[int]
    encoded_turns: Mapped[int]
    quarantined_turns: Mapped[int] = mapped_column(server_default=text("0"))
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TurnRow(Base):
    """One message. The two indexes are the two ways turns are paged: by user and by session.

    What `is_aside` is kept, but no part of the memory since a rollback. SQLite's search index knows
    a turn by its `id`.
    """

    __tablename__ = "turns"
    __table_args__ = (
        UniqueConstraint("user_id", "turn_id"),
        Index(None, "user_id", "time", "turn_id"),
        Index(None, "session_id", "time", "turn_id"),
        Index(
            None,
            "expires_at",
            sqlite_where=text("expires_at IS NOT NULL"),
            postgresql_where=text("expires_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    turn_id: Mapped[str] = mapped_column(Name)
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Text)
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    is_aside: Mapped[bool] = mapped_column(server_default=false())
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class TombstoneRow(Base):
    """A forgotten turn, by the keyed hash of its id; memories that were merged bring their keys."""

    __tablename__ = "tombstones"

    user_id: Mapped[int] = mapped_column(
        RowId, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[bytes] = mapped_column(LargeBinary(KEY_BYTES), primary_key=True)
    hash: Mapped[str] = mapped_column(Digest, primary_key=True)


class ChunkRow(Base):
    """A chunk, part of every version from `added_version` until before `removed_version`.

    So a recipe costs what changed, not what is there. Digests are empty where a turn of a chunk of
    earlier versions was forgotten.
    """

    __tablename__ = "chunks"
    __table_args__ = (
        # A chunk is counted once: it cannot be part of the newest state twice.
        Index(
            "uq_chunks_current",
            "user_id",
            "digest",
            unique=True,
            sqlite_where=text("removed_version IS NULL"),
            postgresql_where=text("removed_version IS NULL"),
        ),
        Index(None, "user_id", "added_version"),
        Index(None, "session_id"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(Digest)
    update_digest: Mapped[str] = mapped_column(Digest)
    turn_ids: Mapped[list[str]] = mapped_column(JSON)
    tokens: Mapped[int]
    added_version: Mapped[int]
    removed_version: Mapped[int | None]


class QuarantinedRow(Base):
    """A chunk of a session's turns that cannot be encoded; so no version holds it."""

    __tablename__ = "quarantined_chunks"
    __table_args__ = (Index(None, "session_id"),)

    user_id: Mapped[int] = mapped_column(
        RowId, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(Digest, primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    turn_ids: Mapped[list[str]] = mapped_column(JSON)
    reason: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = mapped_column(UtcDateTime)


class VersionRow(Base):
    """What made a version; kept when its read-outs are not."""

    __tablename__ = "versions"

    user_id: Mapped[int] = mapped_column(
        RowId, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    fingerprint: Mapped[dict[str, Any]] = mapped_column(JSON)
    state_digest: Mapped[str] = mapped_column(Digest)
    chunks: Mapped[int]
    turns: Mapped[int]
    size_bytes: Mapped[int]


class StateRow(Base):
    """The state of the newest version: one row a user, a cache of its recipe."""

    __tablename__ = "states"

    user_id: Mapped[int] = mapped_column(
        RowId, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    fingerprint: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[str] = mapped_column(Digest)
    open_chunk: Mapped[str | None] = mapped_column(Digest)
    closed: Mapped[bytes] = mapped_column(LargeBinary)
    open_update: Mapped[bytes | None] = mapped_column(LargeBinary)


class AdapterRow(Base):
    """The read-outs of one of the newest versions: caches of recipes."""

    __tablename__ = "adapters"
    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "version"], ["versions.user_id", "versions.version"], ondelete="CASCADE"
        ),
    )

    user_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    readouts: Mapped[bytes] = mapped_column(LargeBinary)


def is_declared(name: str | None) -> bool:
    """Whether a table or index is one of those above; the search index only its migration knows."""
    return name is None or not name.startswith(("turn_words", "ix_turns_words"))
