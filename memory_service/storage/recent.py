"""What a running service asks all the time: some turns, sessions, and who has work pending."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func, or_, select, tuple_

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import SessionHead
from memory_service.domain.turns import Turn
from memory_service.storage.queries import PENDING, Queries, as_turn, batches, turns_where
from memory_service.storage.tables import (
    ChunkRow,
    SessionRow,
    TenantRow,
    TurnRow,
    UserRow,
    VersionRow,
)


class Recent(Queries):
    """Queries whose cost does not grow with a memory."""

    async def latest_turns(
        self,
        memory_id: MemoryId,
        *,
        session: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int,
    ) -> list[Turn]:
        """The newest turns of a user or of one session, in (time, id) order (keyset page).

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        owner = TurnRow.user_id == user_id
        if session is not None:
            found = await self._sessions(user_id, [session])
            if session not in found:
                return []
            owner = TurnRow.session_id == found[session][0]
        query = turns_where(owner)
        if before is not None:
            query = query.where(tuple_(TurnRow.time, TurnRow.turn_id) < before)
        rows = await self._transaction.read(
            query.order_by(None).order_by(TurnRow.time.desc(), TurnRow.turn_id.desc()).limit(limit)
        )
        return [as_turn(*row) for row in reversed(rows)]

    async def state_digests(
        self, versions: Collection[tuple[MemoryId, int]]
    ) -> dict[tuple[MemoryId, int], str]:
        """Digests of the states that versions were made from, empty where some was forgotten."""
        found = {}
        for batch in batches((one.tenant, one.user, version) for one, version in versions):
            rows = await self._transaction.read(
                select(TenantRow.name, UserRow.name, VersionRow.version, VersionRow.state_digest)
                .join(UserRow, UserRow.tenant_id == TenantRow.id)
                .join(VersionRow, VersionRow.user_id == UserRow.id)
                .where(tuple_(TenantRow.name, UserRow.name, VersionRow.version).in_(batch))
            )
            for tenant, user, version, digest in rows:
                found[MemoryId(user, tenant), version] = digest
        return found

    async def session_heads(
        self, memory_id: MemoryId, *, after: str = "", limit: int = 100
    ) -> list[SessionHead]:
        """A user's sessions by name, after the one named (keyset page).

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        first, last = (
            select(bound(TurnRow.time)).where(TurnRow.session_id == SessionRow.id).scalar_subquery()
            for bound in (func.min, func.max)
        )
        rows = await self._transaction.read(
            select(SessionRow.name, SessionRow.turns, PENDING, first, last)
            .where(SessionRow.user_id == user_id, SessionRow.name > after)
            .order_by(SessionRow.name)
            .limit(limit)
        )
        return [SessionHead(*row) for row in rows]

    async def pending_memories(self) -> list[MemoryId]:
        """Everybody with turns that are not encoded yet, of all tenants."""
        rows = await self._transaction.read(
            select(UserRow.name, TenantRow.name)
            .join(TenantRow, TenantRow.id == UserRow.tenant_id)
            .where(select(SessionRow.id).where(SessionRow.user_id == UserRow.id, PENDING).exists())
            .order_by(UserRow.id)
        )
        return [MemoryId(user, tenant) for user, tenant in rows]

    async def recipe_tokens(self, memory_id: MemoryId, version: int) -> int:
        """Tokens of all chunks of a version: what its history would take in a prompt.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        rows = await self._transaction.read(
            select(func.coalesce(func.sum(ChunkRow.tokens), 0)).where(
                ChunkRow.user_id == user_id,
                ChunkRow.added_version <= version,
                or_(ChunkRow.removed_version.is_(None), ChunkRow.removed_version > version),
            )
        )
        return int(rows[0][0])
