"""Migrate: encode the kept turns for another generator; the old version serves until done."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import NewVersion, PendingSession, StoredChunk
from memory_service.domain.turns import Turn
from memory_service.errors import NumericalError, StateConflict
from memory_service.services.compute import Compute
from memory_service.services.contention import ATTEMPTS
from memory_service.services.ports import Encoder, Memories, OpenUnit
from memory_service.services.reconcile import CannotSubtractError, Reconcile, Report
from memory_service.services.remember import Remember


@dataclass(frozen=True)
class Migrated:
    """The version that the running generator made; `was_done` where it had made it before."""

    version: int
    was_done: bool


@dataclass(frozen=True)
class _Kept:
    """What one attempt begins with: everything that the memory is made of."""

    version: int
    sessions: Sequence[PendingSession]
    chunks: Sequence[StoredChunk]


class Migrate:
    """Encodes memories that another generator or base model made."""

    def __init__(
        self, open_unit: OpenUnit, encoder: Encoder, compute: Compute, remember: Remember
    ) -> None:
        self._open_unit = open_unit
        self._reconcile = Reconcile(encoder, compute)
        self._remember = remember

    async def user(self, memory_id: MemoryId, report: Report | None = None) -> Migrated:
        """Encode a user's kept turns for the running generator, unless it made the newest version.

        Until the last step, which is one transaction, everything else stays as it is. What others
        store meanwhile is not read from the beginning again: what they changed is reconciled.

        Raises:
            NotFound: there is no such user.
            StateConflict: others kept writing first; nothing was changed.
            NumericalError: a chunk that was encoded before cannot be now; nothing was changed.
        """
        if await self._is_done(memory_id):
            return Migrated(await self._remember.encode_pending(memory_id, report), was_done=True)
        made: NewVersion | None = None
        known: dict[str, Turn] = {}
        for _ in range(ATTEMPTS):
            kept = await self._kept(memory_id)
            known |= {turn.id: turn for session in kept.sessions for turn in session.turns}
            made = await self._encode(kept, made, known, report)
            _require_no_worse(kept, made)
            try:
                return Migrated(await self._replace(memory_id, kept, made), was_done=False)
            except StateConflict:
                continue
        raise StateConflict(memory_id.user, f"others wrote first {ATTEMPTS} times; try again")

    async def _is_done(self, memory_id: MemoryId) -> bool:
        async with self._open_unit() as unit:
            newest = await unit.memories.adapters(memory_id, limit=1)
            recipe = await unit.memories.chunks(memory_id)
            has_chunks = bool(recipe) or not await unit.memories.turns(memory_id)
        return bool(newest) and newest[0].fingerprint == self._reconcile.fingerprint and has_chunks

    async def _kept(self, memory_id: MemoryId) -> _Kept:
        async with self._open_unit() as unit:
            head = await unit.memories.head(memory_id)
            turns = await unit.memories.turns(memory_id)
            return _Kept(
                version=head.version,
                sessions=await _sessions(unit.memories, memory_id, turns),
                chunks=await unit.memories.chunks(memory_id),
            )

    async def _encode(
        self,
        kept: _Kept,
        made: NewVersion | None,
        known: dict[str, Turn],
        report: Report | None,
    ) -> NewVersion:
        """A version of all kept turns, from the one made by an earlier attempt where there is."""
        if made is not None:
            try:
                return await self._reconcile_again(kept, made, known, report)
            except CannotSubtractError:
                pass  # sequential encoding, or this machine does not compute alike: from the start
        sessions = [replace(session, chunks=(), quarantined=()) for session in kept.sessions]
        return await self._reconcile.change(kept.version, None, sessions, "migrate", report)

    async def _reconcile_again(
        self, kept: _Kept, made: NewVersion, known: dict[str, Turn], report: Report | None
    ) -> NewVersion:
        chunks = defaultdict(list)
        for chunk in made.appeared:
            chunks[chunk.session].append(chunk)
        names = {session.name for session in kept.sessions}
        gone = [PendingSession(name, 0, (), ()) for name in chunks if name not in names]
        sessions = [
            replace(
                session,
                chunks=tuple(chunks[session.name]),
                quarantined=tuple(one for one in made.quarantined if one.session == session.name),
                leaving=tuple(
                    turn
                    for turn in known.values()
                    if turn.session == session.name and turn not in session.turns
                ),
            )
            for session in (*kept.sessions, *gone)
        ]
        change = await self._reconcile.change(kept.version, made.state, sessions, "migrate", report)
        vanished = {chunk.digest for chunk in change.vanished}
        still = [chunk for chunk in made.appeared if chunk.digest not in vanished]
        return replace(
            change,
            appeared=[*still, *change.appeared],
            sessions={session.name: session.revision for session in kept.sessions},
        )

    async def _replace(self, memory_id: MemoryId, kept: _Kept, made: NewVersion) -> int:
        async with self._open_unit() as unit:
            change = replace(made, vanished=kept.chunks)
            version = await unit.memories.write_version(memory_id, change)
            await unit.commit()
        return version


def _require_no_worse(kept: _Kept, made: NewVersion) -> None:
    """What the old generator could encode, the new one must: else the old version stays."""
    lacked = {
        turn_id
        for session in kept.sessions
        for chunk in session.quarantined
        for turn_id in chunk.turn_ids
    }
    for chunk in made.quarantined:
        if not lacked.issuperset(chunk.turn_ids):
            raise NumericalError(f"chunk {chunk.digest[:12]}", chunk.reason)


async def _sessions(
    memories: Memories, memory_id: MemoryId, turns: Sequence[Turn]
) -> list[PendingSession]:
    """Every session; they come without the turns that are set aside."""
    first = {turn.session: turn.id for turn in turns}
    return await memories.sessions_of(memory_id, first.values())
