"""Remember: turns -> stored state.

A turn is durable before anything is encoded. Encoding then does one thing, whatever happened:
recompute the chunks of the sessions that changed, add what appeared, subtract what vanished.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from torch import Tensor

from memory_service.domain.chunks import Chunk, in_order_said
from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn
from memory_service.errors import StateConflict
from memory_service.generator.config import Encoding
from memory_service.generator.state import add, digest, subtract
from memory_service.services.append import Append
from memory_service.services.compute import Compute
from memory_service.services.ports import (
    Encoder,
    Memories,
    NewVersion,
    OpenUnit,
    PendingSession,
    StoredChunk,
    StoredState,
)

ATTEMPTS = 20
"""How often a writer retries when others write the same user first."""

Report = Callable[[int, int], None]
"""Called with chunks encoded so far and chunks to encode."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Appended:
    """What an append did: turns stored now, turns known before, and the version that holds them."""

    new: int
    known: int
    version: int


class _CannotSubtractError(Exception):
    """This machine does not reproduce a chunk's stored update: rebuild from the text instead."""


@dataclass
class _Sum:
    """A state in the making; see `StoredState` for why one update is kept apart."""

    closed: Tensor
    open_update: Tensor | None
    open_chunk: str | None

    def append(self, update: Tensor, chunk: str) -> None:
        """Fold the open update into the sum and open the new one."""
        if self.open_update is not None:
            self.closed = add(self.closed, self.open_update)
        self.open_update, self.open_chunk = update, chunk

    def total(self) -> Tensor:
        """The state."""
        return self.closed if self.open_update is None else add(self.closed, self.open_update)


class Remember:
    """Appends turns and keeps the state up to date with them."""

    def __init__(self, open_unit: OpenUnit, encoder: Encoder, compute: Compute) -> None:
        self._open_unit = open_unit
        self._encoder = encoder
        self._compute = compute
        self._is_sequential = encoder.fingerprint.encoding == Encoding.SEQUENTIAL

    async def append(
        self, memory_id: MemoryId, turns: Sequence[Turn], report: Report | None = None
    ) -> Appended:
        """Store turns, then encode what is pending.

        Raises:
            StateConflict: a turn id is known with other content; no turn of the call is stored.
            IncompatibleState: the user's state was made by another generator or base model; the
                turns are stored and pending.
        """
        stored = await Append(self._open_unit).turns(memory_id, turns)
        version = await self.encode_pending(memory_id, report)
        return Appended(new=stored.new, known=stored.known, version=version)

    async def rebuild(self, memory_id: MemoryId, report: Report | None = None) -> int:
        """Encode all kept turns anew, for another generator or base model; the new version.

        Raises:
            NotFound: there is no such user.
        """
        async with self._open_unit() as unit:
            await unit.memories.mark_all_pending(memory_id)
            await unit.commit()
        return await self.encode_pending(memory_id, report, reason="rebuild")

    async def encode_pending(
        self, memory_id: MemoryId, report: Report | None = None, reason: str = "append"
    ) -> int:
        """Bring the state up to date with the turns; the version that now holds them.

        Raises:
            NotFound: there is no such user.
            IncompatibleState: the stored state was made by another generator or base model.
            StateConflict: others kept writing first, twenty times over.
        """
        for attempt in range(ATTEMPTS):
            try:
                return await self._encode_once(memory_id, report, reason)
            except _CannotSubtractError:
                log.warning("update_not_reproduced", user=memory_id.user, action="rebuild")
                async with self._open_unit() as unit:
                    await unit.memories.mark_all_pending(memory_id)
                    await unit.commit()
                reason = "rebuild"
            except StateConflict:
                await asyncio.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, 6)))  # noqa: S311
        raise StateConflict(memory_id.user, f"others wrote first {ATTEMPTS} times; try again")

    async def _encode_once(self, memory_id: MemoryId, report: Report | None, reason: str) -> int:
        async with self._open_unit() as unit:
            head = await unit.memories.head(memory_id)
            pending = await unit.memories.pending_sessions(memory_id)
            stored = await unit.memories.state(memory_id)
            is_late = self._is_sequential and await _has_late_turns(unit.memories, memory_id)
        if not pending:
            return head.version
        if stored is not None:
            self._encoder.fingerprint.require(stored.fingerprint, f"state of {memory_id.user}")
            if is_late:
                raise _CannotSubtractError
        change = await self._change(head.version, stored, pending, report, reason)
        async with self._open_unit() as unit:
            version = await unit.memories.write_version(memory_id, change)
            await unit.commit()
        return version

    async def _change(
        self,
        version: int,
        stored: StoredState | None,
        pending: Sequence[PendingSession],
        report: Report | None,
        reason: str,
    ) -> NewVersion:
        """Compute a new version: add the chunks that appeared, subtract those that vanished."""
        total = _Sum(await self._compute.run(self._encoder.empty_state), None, None)
        if stored is not None:
            total = _Sum(stored.closed, stored.open_update, stored.open_chunk)
        vanished: list[StoredChunk] = []
        appeared: list[Chunk] = []
        for session in pending:
            chunks = await self._compute.run(self._encoder.chunk, session.turns)
            kept = {chunk.digest for chunk in chunks}
            known = {chunk.digest for chunk in session.chunks}
            for lost in session.chunks:
                if lost.digest not in kept:
                    await self._compute.run(self._remove, total, lost, session.turns)
                    vanished.append(lost)
            appeared += [chunk for chunk in chunks if chunk.digest not in known]
        added: list[StoredChunk] = []
        for chunk in in_order_said(appeared, [turn for s in pending for turn in s.turns]):
            added.append(await self._compute.run(self._add, total, chunk))
            if report is not None:
                report(len(added), len(appeared))
        state, readouts = await self._compute.run(self._read_out, total)
        return NewVersion(
            expected_version=version,
            reason=reason,
            state=state,
            readouts=readouts,
            appeared=added,
            vanished=vanished,
            sessions={session.name: session.revision for session in pending},
        )

    # The following run on the worker of `compute`.

    def _add(self, total: _Sum, chunk: Chunk) -> StoredChunk:
        """Encode a chunk and add its update; it becomes the open one."""
        update = self._encoder.encode(chunk, total.total() if self._is_sequential else None)
        total.append(update, chunk.digest)
        return StoredChunk(
            session=chunk.session,
            digest=chunk.digest,
            update_digest=digest(update),
            turn_ids=chunk.turn_ids,
            tokens=sum(self._encoder.count_tokens(text) for text in chunk.texts),
        )

    def _remove(self, total: _Sum, gone: StoredChunk, turns: Sequence[Turn]) -> None:
        """Take a chunk's update out of the sum: the open one is dropped, a closed one subtracted.

        Raises:
            _CannotSubtractError: the update cannot be reproduced to the last bit here.
        """
        if gone.digest == total.open_chunk:
            total.open_update = total.open_chunk = None
            return
        if self._is_sequential:
            raise _CannotSubtractError  # later chunks were read with this one's adapter
        members = [turn for turn in turns if turn.id in gone.turn_ids]
        candidates = self._encoder.chunk(members)
        chunk = next((chunk for chunk in candidates if chunk.digest == gone.digest), None)
        if chunk is None:
            raise _CannotSubtractError
        update = self._encoder.encode(chunk)
        if digest(update) != gone.update_digest:
            raise _CannotSubtractError
        total.closed = subtract(total.closed, update)

    def _read_out(self, total: _Sum) -> tuple[StoredState, Tensor]:
        """The state as it is stored, and its adapter."""
        state = total.total()
        stored = StoredState(
            fingerprint=self._encoder.fingerprint,
            closed=total.closed,
            open_update=total.open_update,
            open_chunk=total.open_chunk,
            digest=digest(state),
        )
        return stored, self._encoder.read_out(state)


async def _has_late_turns(memories: Memories, memory_id: MemoryId) -> bool:
    """Tell whether a turn to encode was said before one that the state holds already."""
    pending = await memories.pending_turn_ids(memory_id)
    is_pending = [turn.id in pending for turn in await memories.turns(memory_id)]
    return is_pending != sorted(is_pending)
