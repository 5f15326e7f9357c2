"""What every query about memories begins with: whose, and which rows."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, select

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import StoredChunk
from memory_service.domain.turns import Role, Turn
from memory_service.errors import NotFound, StateConflict
from memory_service.storage.tables import Base, ChunkRow, SessionRow, TenantRow, TurnRow, UserRow
from memory_service.storage.transaction import Transaction

TABLES = Base.metadata.tables
"""Plain tables, for inserts and updates of many rows in one call."""

CURRENT = ChunkRow.removed_version.is_(None)
"""The chunk is part of the newest state."""

PENDING = SessionRow.revision != SessionRow.encoded_revision
"""The session's turns changed since they were last encoded."""

ACTIVE = ~TurnRow.is_aside
"""The turn is part of the memory."""

_BATCH = 500

_Item = TypeVar("_Item")


class Queries:
    """The steps that several queries share, inside one transaction.

    A writer first locks the user's row (on SQLite: the database), so two writers on one user queue
    and what one reads after its lock stays true until it commits.
    """

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def _find(self, memory_id: MemoryId) -> tuple[int, int]:
        """A user's key and newest version."""
        rows = await self._transaction.read(user_row(memory_id))
        if not rows:
            raise NotFound("user", memory_id.user)
        return rows[0].id, rows[0].version

    async def _lock(self, memory_id: MemoryId) -> tuple[int, int]:
        """Begin to write to a user: its key and newest version."""
        row = await self._transaction.lock(
            user_row(memory_id).with_for_update(of=UserRow, key_share=True)
        )
        if row is None:
            raise NotFound("user", memory_id.user)
        return row.id, row.version

    async def _sessions(self, user_id: int, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Key and floor revision of the sessions of those names."""
        found = {}
        for batch in batches(names):
            for id_, name, floor in await self._transaction.read(
                select(SessionRow.id, SessionRow.name, SessionRow.floor_revision).where(
                    SessionRow.user_id == user_id, SessionRow.name.in_(batch)
                )
            ):
                found[name] = (id_, floor)
        return found

    async def _chunks(self, user_id: int, *conditions: ColumnElement[bool]) -> list[StoredChunk]:
        rows = await self._transaction.read(
            select(
                SessionRow.name,
                ChunkRow.digest,
                ChunkRow.update_digest,
                ChunkRow.turn_ids,
                ChunkRow.tokens,
            )
            .join(SessionRow, SessionRow.id == ChunkRow.session_id)
            .where(ChunkRow.user_id == user_id, *conditions)
            .order_by(SessionRow.name, ChunkRow.id)
        )
        return [
            StoredChunk(name, digest, update_digest, tuple(turn_ids), tokens)
            for name, digest, update_digest, turn_ids, tokens in rows
        ]


def is_user(memory_id: MemoryId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Conditions on tenant and user: a user is never looked up by one of them alone."""
    return TenantRow.name == memory_id.tenant, UserRow.name == memory_id.user


def user_row(memory_id: MemoryId) -> Select[int, int]:
    """The query for a user's key and newest version."""
    return (
        select(UserRow.id, UserRow.version)
        .join(TenantRow, TenantRow.id == UserRow.tenant_id)
        .where(*is_user(memory_id))
    )


def turns_where(
    *conditions: ColumnElement[bool],
) -> Select[str, str, str, datetime, str, datetime | None]:
    """The query for turns in (time, id) order; `as_turn` reads its rows."""
    return (
        select(
            SessionRow.name,
            TurnRow.role,
            TurnRow.text,
            TurnRow.time,
            TurnRow.turn_id,
            TurnRow.expires_at,
        )
        .join(SessionRow, SessionRow.id == TurnRow.session_id)
        .where(*conditions)
        .order_by(TurnRow.time, TurnRow.turn_id)
    )


def as_turn(  # a column each
    session: str, role: str, text: str, time: datetime, turn_id: str, expires_at: datetime | None
) -> Turn:
    """A row of `turns_where`."""
    return Turn(session, Role(role), text, time, turn_id, expires_at)


def total(column: Any) -> Select[int]:
    """The query for the sum of a column over sessions, 0 over none."""
    return select(func.coalesce(func.sum(column), 0)).select_from(SessionRow)


def lost(memory_id: MemoryId) -> StateConflict:
    """The error of a writer whose work no longer fits what is stored."""
    return StateConflict(
        f"memory of user {memory_id.user}", "another writer came first; read it and retry"
    )


def batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """Cut into lists short enough for the bound parameters of one statement."""
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
