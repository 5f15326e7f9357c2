"""Erasing what people take back, and everything that was made of it."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from sqlalchemy import delete, exists, insert, select, update

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Erased
from memory_service.domain.tombstones import Tombstones, new_key, tombstone
from memory_service.errors import NotFound
from memory_service.storage.queries import TABLES, batches, lost
from memory_service.storage.quotas import Quotas
from memory_service.storage.tables import (
    AdapterRow,
    ChunkRow,
    QuarantinedRow,
    SessionRow,
    StateRow,
    TenantRow,
    TombstoneRow,
    TurnRow,
    UserRow,
    VersionRow,
)

Range = tuple[int, int]
"""Versions from the first until before the second."""


class Erasure(Quotas):
    """Queries that delete. What they deleted is also wiped from SQLite's write-ahead log."""

    async def erase_turns(self, memory_id: MemoryId, turn_ids: Collection[str]) -> Erased:
        """Delete turns, rewrite the recipes that name them, and leave tombstones.

        The newest state must have been freed of them before, in the same transaction, by
        `write_version` or `mark_all_pending`. Ids that are not kept are passed over.

        Raises:
            NotFound: the user is unknown, or none of the turns is kept.
            StateConflict: the newest state holds one of them.
        """
        user_id, _ = await self._lock(memory_id)
        homes: dict[str, int] = {}
        active: Counter[int] = Counter()
        text_bytes = 0
        for batch in batches(sorted(set(turn_ids))):
            for turn_id, session_id, is_aside, said in await self._transaction.read(
                select(TurnRow.turn_id, TurnRow.session_id, TurnRow.is_aside, TurnRow.text).where(
                    TurnRow.user_id == user_id, TurnRow.turn_id.in_(batch)
                )
            ):
                homes[turn_id] = session_id
                active[session_id] += not is_aside
                text_bytes += len(said.encode())
        if not homes:
            raise NotFound("turn", ", ".join(sorted(turn_ids)))
        held = await self._rewrite_chunks(memory_id, user_id, homes)
        adapters = await self._rewrite_versions(user_id, held)
        await self._bury(user_id, homes)
        for batch in batches(homes):
            await self._transaction.write(
                delete(TurnRow).where(TurnRow.user_id == user_id, TurnRow.turn_id.in_(batch))
            )
        await self._keep_count(user_id, -len(homes), -text_bytes)
        sessions = await self._shrink_sessions(active)
        self._transaction.erase_at_commit()
        return Erased(len(homes), sessions, len(held), adapters)

    async def tombstones(self, memory_id: MemoryId) -> Tombstones:
        """What stands for the forgotten turns.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        return await self._tombstones(user_id)

    async def delete_user(self, memory_id: MemoryId) -> Mapping[str, int]:
        """Delete everything of a user; returns how many rows of each kind went.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._lock(memory_id)
        counts = {}
        for table in (
            *(AdapterRow, StateRow, ChunkRow, QuarantinedRow, VersionRow),
            *(TurnRow, SessionRow, TombstoneRow),
        ):
            counts[table.__tablename__] = await self._transaction.write(
                delete(table).where(table.user_id == user_id)
            )
        await self._transaction.write(delete(UserRow).where(UserRow.id == user_id))
        self._transaction.erase_at_commit()
        kinds = ("turns", "sessions", "chunks", "versions", "states", "adapters", "tombstones")
        return {kind: counts[kind] for kind in kinds}

    async def delete_tenant(self, tenant: str) -> None:
        """Delete a tenant, and with it what is left below it."""
        await self._transaction.write(delete(TenantRow).where(TenantRow.name == tenant))
        self._transaction.erase_at_commit()

    async def _forgotten(self, user_id: int, turn_ids: Collection[str]) -> set[str]:
        """Those of the ids that have a tombstone."""
        keys = await self._transaction.read(
            select(TombstoneRow.key).where(TombstoneRow.user_id == user_id).distinct()
        )
        found: set[str] = set()
        for (key,) in keys:
            ids = {tombstone(key, turn_id): turn_id for turn_id in turn_ids}
            for batch in batches(ids):
                rows = await self._transaction.read(
                    select(TombstoneRow.hash).where(
                        TombstoneRow.user_id == user_id,
                        TombstoneRow.key == key,
                        TombstoneRow.hash.in_(batch),
                    )
                )
                found |= {ids[row.hash] for row in rows}
        return found

    async def _tombstones(self, user_id: int) -> dict[bytes, set[str]]:
        rows = await self._transaction.read(
            select(TombstoneRow.key, TombstoneRow.hash).where(TombstoneRow.user_id == user_id)
        )
        found: dict[bytes, set[str]] = defaultdict(set)
        for key, hash_ in rows:
            found[key].add(hash_)
        return dict(found)

    async def _bury(self, user_id: int, turn_ids: Iterable[str]) -> None:
        """Leave tombstones, under the key that the memory has already, if any."""
        keys = await self._transaction.read(
            select(TombstoneRow.key).where(TombstoneRow.user_id == user_id).limit(1)
        )
        key = keys[0].key if keys else new_key()
        await self._transaction.write(
            insert(TABLES["tombstones"]),
            [
                {"user_id": user_id, "key": key, "hash": tombstone(key, turn_id)}
                for turn_id in turn_ids
            ],
        )

    async def _rewrite_chunks(
        self, memory_id: MemoryId, user_id: int, homes: Mapping[str, int]
    ) -> dict[int, "_Held"]:
        """Take turns out of all recipes; which versions named how many of them."""
        turns: dict[str, list[Range]] = defaultdict(list)
        emptied: list[tuple[int, Range]] = []
        rest: dict[int, list[str]] = {}
        for batch in batches(sorted(set(homes.values()))):
            rows = await self._transaction.read(
                select(
                    ChunkRow.id, ChunkRow.turn_ids, ChunkRow.added_version, ChunkRow.removed_version
                ).where(ChunkRow.user_id == user_id, ChunkRow.session_id.in_(batch))
            )
            for row_id, turn_ids, added, removed in rows:
                kept = [turn_id for turn_id in turn_ids if turn_id not in homes]
                if len(kept) == len(turn_ids):
                    continue
                if removed is None:
                    raise lost(memory_id)
                for turn_id in set(turn_ids) - set(kept):
                    turns[turn_id].append((added, removed))
                if kept:
                    rest[row_id] = kept
                else:
                    emptied.append((row_id, (added, removed)))
        for row_id, kept in rest.items():
            await self._transaction.write(
                update(TABLES["chunks"])
                .where(ChunkRow.id == row_id)
                .values(turn_ids=kept, digest="", update_digest="", tokens=0)
            )
        for ids in batches(row_id for row_id, _ in emptied):
            await self._transaction.write(delete(ChunkRow).where(ChunkRow.id.in_(ids)))
        return _held(turns.values(), [span for _, span in emptied])

    async def _rewrite_versions(self, user_id: int, held: Mapping[int, "_Held"]) -> int:
        """Correct what versions say of themselves and drop their adapters; how many went."""
        adapters = 0
        for (turns, chunks), first, last in _runs(held):
            here = (VersionRow.user_id == user_id, VersionRow.version.between(first, last))
            await self._transaction.write(
                update(VersionRow)
                .where(*here)
                .values(
                    state_digest="",
                    turns=VersionRow.turns - turns,
                    chunks=VersionRow.chunks - chunks,
                )
            )
            adapters += await self._transaction.write(
                delete(AdapterRow).where(
                    AdapterRow.user_id == user_id, AdapterRow.version.between(first, last)
                )
            )
        return adapters

    async def _shrink_sessions(self, counts: Mapping[int, int]) -> int:
        """Note how many turns went; sessions without any are deleted, and counted."""
        gone = 0
        for session_id, count in counts.items():
            session = SessionRow.id == session_id
            await self._transaction.write(
                update(SessionRow).where(session).values(turns=SessionRow.turns - count)
            )
            is_empty = ~exists().where(TurnRow.session_id == SessionRow.id)
            gone += await self._transaction.write(delete(SessionRow).where(session, is_empty))
        return gone


_Held = tuple[int, int]
"""How many forgotten turns a version named, and how many chunks of nothing else."""


def _held(turns: Iterable[Sequence[Range]], chunks: Iterable[Range]) -> dict[int, _Held]:
    """For each version the numbers of turns and chunks it named.

    A turn longer than a chunk is in several, so its ranges may overlap: it counts once.
    """
    of_turns = Counter(
        version
        for ranges in turns
        for version in {version for first, end in ranges for version in range(first, end)}
    )
    of_chunks = Counter(version for first, end in chunks for version in range(first, end))
    return {version: (of_turns[version], of_chunks[version]) for version in sorted(of_turns)}


def _runs(held: Mapping[int, _Held]) -> Iterator[tuple[_Held, int, int]]:
    """Neighbouring versions with the same numbers: one statement for each."""
    numbered = enumerate(sorted(held.items()))
    for (numbers, _), run in groupby(numbered, lambda item: (item[1][1], item[1][0] - item[0])):
        versions = [version for _, (version, _) in run]
        yield numbers, versions[0], versions[-1]
