"""Versions of a memory: recipes, states and adapters."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.records import (
    NewVersion,
    StoredAdapter,
    StoredChunk,
    StoredSizes,
    StoredState,
)
from memory_service.errors import IncompatibleState, NotFound
from memory_service.storage.failures import REBUILD
from memory_service.storage.quarantine import Quarantine
from memory_service.storage.queries import (
    CURRENT,
    PENDING,
    TABLES,
    batches,
    lost,
    now,
    total,
)
from memory_service.storage.tables import (
    AdapterRow,
    ChunkRow,
    QuarantinedRow,
    SessionRow,
    StateRow,
    TurnRow,
    UserRow,
    VersionRow,
)

KEPT_READOUTS = 3
"""Newest versions whose read-outs are kept; older ones can be made again from their recipes."""


class Versions(Quarantine):
    """Queries about what was made from turns."""

    async def chunks(self, memory_id: MemoryId, version: int | None = None) -> list[StoredChunk]:
        """The recipe of a version (default: the newest; nothing before the first).

        Raises:
            NotFound: the user or the version is unknown.
        """
        user_id, newest = await self._find(memory_id)
        wanted = newest if version is None else _known(memory_id, version, newest)
        return await self._chunks(
            user_id,
            ChunkRow.added_version <= wanted,
            or_(CURRENT, ChunkRow.removed_version > wanted),
        )

    async def sizes(self, memory_id: MemoryId) -> StoredSizes:
        """How much is stored of a user, in one round trip.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)

        def of_user(value: ColumnElement[int], table: Any, *conditions: Any) -> Any:
            query = select(func.coalesce(value, 0)).select_from(table)
            return query.where(table.user_id == user_id, *conditions).scalar_subquery()

        state_bytes = func.length(StateRow.closed) + func.coalesce(
            func.length(StateRow.open_update), 0
        )
        rows = await self._transaction.read(
            select(
                of_user(func.count(), SessionRow),
                of_user(func.count(), ChunkRow, CURRENT),
                of_user(func.sum(func.length(TurnRow.text)), TurnRow),
                of_user(func.sum(state_bytes), StateRow),
                of_user(func.sum(func.length(AdapterRow.readouts)), AdapterRow),
            )
        )
        return StoredSizes(*(int(value) for value in rows[0]))

    async def state(self, memory_id: MemoryId) -> StoredState | None:
        """The newest state, None before the first version.

        Raises:
            NotFound: the user is unknown.
            IncompatibleState: the stored bytes are damaged.
        """
        user_id, _ = await self._find(memory_id)
        rows = await self._transaction.read(
            select(
                StateRow.closed,
                StateRow.open_update,
                StateRow.open_chunk,
                StateRow.fingerprint,
                StateRow.digest,
            ).where(StateRow.user_id == user_id)
        )
        if not rows:
            return None
        closed, open_update, open_chunk, fingerprint, digest = rows[0]
        subject = f"state of user {memory_id.user}"
        maker = _fingerprint(fingerprint, subject)
        codec = await asyncio.to_thread(_codec)
        return await asyncio.to_thread(
            codec.unpack_state, closed, open_update, open_chunk, maker, digest, subject
        )

    async def adapter(self, memory_id: MemoryId, version: int | None = None) -> StoredAdapter:
        """One version's adapter (default: the newest).

        Raises:
            NotFound: the user or the version is unknown, or nothing was encoded yet.
            IncompatibleState: the stored bytes are damaged.
        """
        user_id, newest = await self._find(memory_id)
        if version is None and newest == 0:
            raise NotFound("adapter", memory_id.user, "none of its turns was encoded yet")
        wanted = newest if version is None else _known(memory_id, version, newest)
        rows = await self._transaction.read(
            select(VersionRow, AdapterRow.readouts)
            .outerjoin(
                AdapterRow,
                and_(
                    AdapterRow.user_id == VersionRow.user_id,
                    AdapterRow.version == VersionRow.version,
                ),
            )
            .where(VersionRow.user_id == user_id, VersionRow.version == wanted)
        )
        row, data = rows[0]
        kept = _adapter(memory_id, row)
        if data is None:
            return kept
        subject = f"adapter {memory_id.user}@{wanted}"
        codec = await asyncio.to_thread(_codec)
        readouts = await asyncio.to_thread(codec.unpack_readouts, data, kept.fingerprint, subject)
        return replace(kept, readouts=readouts)

    async def adapters(
        self, memory_id: MemoryId, *, before: int | None = None, limit: int = 100
    ) -> list[StoredAdapter]:
        """Versions newest first, without their read-outs.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, newest = await self._find(memory_id)
        query = select(VersionRow).where(VersionRow.user_id == user_id)
        if before is not None:
            query = query.where(VersionRow.version < min(before, newest + 1))
        rows = await self._transaction.read(query.order_by(VersionRow.version.desc()).limit(limit))
        return [_adapter(memory_id, row) for (row,) in rows]

    async def write_version(self, memory_id: MemoryId, change: NewVersion) -> int:
        """Store one change and return its version number, `expected_version + 1`.

        Raises:
            NotFound: the user is unknown.
            StateConflict: someone else wrote a version first; read again and retry.
        """
        codec = await asyncio.to_thread(_codec)
        closed, open_update = await asyncio.to_thread(codec.pack_state, change.state)
        fingerprint = change.state.fingerprint
        readouts = await asyncio.to_thread(codec.pack_readouts, change.readouts, fingerprint)
        version = change.expected_version + 1
        self._transaction.expect_megabytes()
        user_id = await self._advance(memory_id, change.expected_version)
        await self._replace_chunks(memory_id, user_id, version, change)
        await self._settle_sessions(memory_id, user_id, change)
        made_by = asdict(fingerprint)
        made = {
            "user_id": user_id,
            "version": version,
            "reason": change.reason,
            "created_at": now(),
            "fingerprint": made_by,
            "state_digest": change.state.digest,
            "chunks": select(func.count())
            .where(ChunkRow.user_id == user_id, CURRENT)
            .scalar_subquery(),
            "turns": total(SessionRow.encoded_turns)
            .where(SessionRow.user_id == user_id)
            .scalar_subquery(),
            "size_bytes": len(readouts),
        }
        await self._transaction.write(insert(TABLES["versions"]).values(made))
        await self._transaction.write(
            insert(TABLES["adapters"]).values(user_id=user_id, version=version, readouts=readouts)
        )
        await self._transaction.write(
            delete(AdapterRow).where(
                AdapterRow.user_id == user_id, AdapterRow.version <= version - KEPT_READOUTS
            )
        )
        await self._store_state(
            user_id,
            {
                "fingerprint": made_by,
                "digest": change.state.digest,
                "open_chunk": change.state.open_chunk,
                "closed": closed,
                "open_update": open_update,
            },
        )
        return version

    async def mark_all_pending(self, memory_id: MemoryId) -> None:
        """Forget state and chunks (not turns), so that everything is encoded anew.

        Recipes and adapters of earlier versions stay. Work that is under way, computed from the
        state forgotten here, will be refused.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, newest = await self._lock(memory_id)
        await self._transaction.write(
            update(ChunkRow)
            .where(ChunkRow.user_id == user_id, CURRENT)
            .values(removed_version=newest + 1)
        )
        await self._transaction.write(delete(StateRow).where(StateRow.user_id == user_id))
        await self._transaction.write(
            delete(QuarantinedRow).where(QuarantinedRow.user_id == user_id)
        )
        await self._transaction.write(
            update(SessionRow)
            .where(SessionRow.user_id == user_id)
            .values(
                revision=SessionRow.revision + 1,
                floor_revision=SessionRow.revision + 1,
                encoded_turns=0,
                quarantined_turns=0,
                changed_at=case((PENDING, SessionRow.changed_at), else_=now()),
            )
        )

    async def _advance(self, memory_id: MemoryId, expected_version: int) -> int:
        """Compare and swap the version; the row stays locked until the commit."""
        user_id, _ = await self._lock(memory_id)
        swapped = await self._transaction.write(
            update(UserRow)
            .where(UserRow.id == user_id, UserRow.version == expected_version)
            .values(version=expected_version + 1)
        )
        if swapped != 1:
            raise lost(memory_id)
        return user_id

    async def _replace_chunks(
        self, memory_id: MemoryId, user_id: int, version: int, change: NewVersion
    ) -> None:
        for batch in batches(chunk.digest for chunk in change.vanished):
            removed = await self._transaction.write(
                update(ChunkRow)
                .where(ChunkRow.user_id == user_id, ChunkRow.digest.in_(batch), CURRENT)
                .values(removed_version=version)
            )
            if removed != len(batch):
                raise lost(memory_id)
        if not change.appeared:
            return
        sessions = await self._sessions(user_id, {chunk.session for chunk in change.appeared})
        if any(chunk.session not in sessions for chunk in change.appeared):
            raise lost(memory_id)
        await self._transaction.write(
            insert(TABLES["chunks"]),
            [
                {
                    "user_id": user_id,
                    "session_id": sessions[chunk.session][0],
                    "digest": chunk.digest,
                    "update_digest": chunk.update_digest,
                    "turn_ids": list(chunk.turn_ids),
                    "tokens": chunk.tokens,
                    "added_version": version,
                    "removed_version": None,
                }
                for chunk in change.appeared
            ],
        )

    async def _settle_sessions(self, memory_id: MemoryId, user_id: int, change: NewVersion) -> None:
        """Note up to which revision sessions are encoded; turns that came later stay pending."""
        revisions = change.sessions
        if not revisions:
            return
        sessions = await self._sessions(user_id, revisions)
        for name, revision in revisions.items():
            if name not in sessions or revision < sessions[name][1]:
                raise lost(memory_id)
        encoded: dict[str, set[str]] = defaultdict(set)
        for batch in batches(revisions):
            for chunk in await self._chunks(user_id, CURRENT, SessionRow.name.in_(batch)):
                encoded[chunk.session].update(chunk.turn_ids)
        failed: dict[str, set[str]] = defaultdict(set)
        for bad in change.quarantined:
            failed[bad.session].update(bad.turn_ids)
        await self._replace_quarantined(
            user_id,
            [sessions[name][0] for name in revisions],
            [(sessions[chunk.session][0], chunk) for chunk in change.quarantined],
        )
        table = TABLES["sessions"]
        await self._transaction.write(
            update(table)
            .where(table.c.id == bindparam("session_id"))
            .values(
                encoded_revision=bindparam("encoded"),
                encoded_turns=bindparam("count"),
                quarantined_turns=bindparam("failed"),
            ),
            [
                {
                    "session_id": sessions[name][0],
                    "encoded": revision,
                    "count": len(encoded[name]),
                    "failed": len(failed[name] - encoded[name]),
                }
                for name, revision in revisions.items()
            ],
        )

    async def _store_state(self, user_id: int, values: Mapping[str, Any]) -> None:
        """Replace the one state; in place, so that SQLite rewrites only the pages that differ."""
        replaced = await self._transaction.write(
            update(TABLES["states"]).where(StateRow.user_id == user_id).values(values)
        )
        if not replaced:
            await self._transaction.write(
                insert(TABLES["states"]).values(user_id=user_id, **values)
            )


def _codec() -> ModuleType:
    """Import the codec late: it needs torch, and listing turns must not wait for that."""
    from memory_service.storage import codec  # noqa: PLC0415

    return codec


def _fingerprint(record: object, subject: str) -> Fingerprint:
    """Read a stored fingerprint; its fields may be those of another program version."""
    try:
        return Fingerprint(**record)  # type: ignore[arg-type]  # any mismatch is a TypeError
    except TypeError as error:
        raise IncompatibleState(subject, "its fingerprint has unknown fields", REBUILD) from error


def _known(memory_id: MemoryId, version: int, newest: int) -> int:
    if not 1 <= version <= newest:
        raise NotFound("version", f"{memory_id.user}@{version}", f"the newest is {newest}")
    return version


def _adapter(memory_id: MemoryId, row: VersionRow) -> StoredAdapter:
    return StoredAdapter(
        version=row.version,
        fingerprint=_fingerprint(row.fingerprint, f"adapter {memory_id.user}@{row.version}"),
        reason=row.reason,
        created_at=row.created_at,
        state_digest=row.state_digest,
        chunks=row.chunks,
        turns=row.turns,
        size_bytes=row.size_bytes,
        readouts=None,
    )
