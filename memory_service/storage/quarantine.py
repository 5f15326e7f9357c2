"""Queries about chunks that cannot be encoded."""

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, case, delete, insert, select, update

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import QuarantinedChunk
from memory_service.storage.queries import PENDING, TABLES, Queries, batches, now
from memory_service.storage.tables import QuarantinedRow, SessionRow


class Quarantine(Queries):
    """A session's quarantined chunks are replaced whenever its chunks are computed."""

    async def quarantined(self, memory_id: MemoryId) -> list[QuarantinedChunk]:
        """Chunks that cannot be encoded, by session.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        return await self._quarantined(SessionRow.user_id == user_id)

    async def release_quarantined(self, memory_id: MemoryId) -> int:
        """Make the sessions of quarantined chunks pending, as if they were never tried; how many.

        Work that is under way, which knows them as quarantined, will be refused.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._lock(memory_id)
        of_user = QuarantinedRow.user_id == user_id
        await self._transaction.write(
            update(SessionRow)
            .where(SessionRow.id.in_(select(QuarantinedRow.session_id).where(of_user)))
            .values(
                revision=SessionRow.revision + 1,
                floor_revision=SessionRow.revision + 1,
                quarantined_turns=0,
                changed_at=case((PENDING, SessionRow.changed_at), else_=now()),
            )
        )
        return await self._transaction.write(delete(QuarantinedRow).where(of_user))

    async def _quarantined(self, *conditions: ColumnElement[bool]) -> list[QuarantinedChunk]:
        rows = await self._transaction.read(
            select(
                SessionRow.name,
                QuarantinedRow.digest,
                QuarantinedRow.turn_ids,
                QuarantinedRow.reason,
                QuarantinedRow.since,
            )
            .join(SessionRow, SessionRow.id == QuarantinedRow.session_id)
            .where(*conditions)
            .order_by(SessionRow.name, QuarantinedRow.since, QuarantinedRow.digest)
        )
        return [
            QuarantinedChunk(name, digest, tuple(turn_ids), reason, since)
            for name, digest, turn_ids, reason, since in rows
        ]

    async def _replace_quarantined(
        self,
        user_id: int,
        sessions: Collection[int],
        chunks: Sequence[tuple[int, QuarantinedChunk]],
    ) -> None:
        """Keep these chunks, each with its session's key, of those sessions, and no others."""
        for batch in batches(sessions):
            await self._transaction.write(
                delete(QuarantinedRow).where(QuarantinedRow.session_id.in_(batch))
            )
        if chunks:
            await self._transaction.write(
                insert(TABLES["quarantined_chunks"]),
                [
                    {
                        "user_id": user_id,
                        "session_id": session_id,
                        "digest": chunk.digest,
                        "turn_ids": list(chunk.turn_ids),
                        "reason": chunk.reason,
                        "since": chunk.since,
                    }
                    for session_id, chunk in chunks
                ],
            )
