"""Remember: turns -> stored state.

A turn is durable before anything is encoded. Encoding then does one thing, whatever happened: it
reconciles the state with the turns of the sessions that changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import structlog

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import PendingSession, QuarantinedChunk
from memory_service.domain.turns import Turn
from memory_service.services.append import Append
from memory_service.services.compute import Compute
from memory_service.services.contention import retried
from memory_service.services.ports import Encoder, Memories, OpenUnit
from memory_service.services.reconcile import CannotSubtractError, Reconcile, Report

log = structlog.get_logger()

TURNS_AT_ONCE = 500
"""Sessions of about so many turns are encoded, then stored as a version; then the next."""


@dataclass(frozen=True)
class Retried:
    """What trying quarantined chunks again did: how many, those that failed again, the version."""

    tried: int
    quarantined: Sequence[QuarantinedChunk]
    version: int


@dataclass(frozen=True)
class Appended:
    """What an append did: turns stored now, turns known before, and the version that holds them.

    `forgotten` turns were taken back earlier, so they were not stored again.
    """

    new: int
    known: int
    version: int
    forgotten: int = 0


class Remember:
    """Appends turns and keeps the state up to date with them."""

    def __init__(self, open_unit: OpenUnit, encoder: Encoder, compute: Compute) -> None:
        self._open_unit = open_unit
        self._reconcile = Reconcile(encoder, compute)

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
        return Appended(stored.new, stored.known, version, stored.forgotten)

    async def rebuild(self, memory_id: MemoryId, report: Report | None = None) -> int:
        """Encode all kept turns anew, for another generator or base model; the new version.

        Raises:
            NotFound: there is no such user.
        """
        await self._withdraw_state(memory_id)
        return await self.encode_pending(memory_id, report)

    async def retry(self, memory_id: MemoryId, report: Report | None = None) -> Retried:
        """Try a user's quarantined chunks again.

        Raises:
            NotFound: there is no such user.
            IncompatibleState: the stored state was made by another generator or base model.
        """
        async with self._open_unit() as unit:
            tried = await unit.memories.release_quarantined(memory_id)
            await unit.commit()
        version = await self.encode_pending(memory_id, report)
        async with self._open_unit() as unit:
            quarantined = await unit.memories.quarantined(memory_id)
        return Retried(tried, quarantined, version)

    async def encode_pending(self, memory_id: MemoryId, report: Report | None = None) -> int:
        """Bring the state up to date with the turns; the version that now holds them.

        Raises:
            NotFound: there is no such user.
            IncompatibleState: the stored state was made by another generator or base model.
            StateConflict: others kept writing first, twenty times over.
        """
        steps = _Steps(report)
        while True:
            version = await retried(memory_id, lambda: self._encode(memory_id, steps))
            if not steps.is_more:
                return version

    async def _encode(self, memory_id: MemoryId, steps: "_Steps") -> int:
        try:
            return await self._encode_once(memory_id, steps)
        except CannotSubtractError as error:
            log.warning("state_withdrawn", user=memory_id.user, reason=str(error))
        await self._withdraw_state(memory_id)
        return await self._encode_once(memory_id, steps)

    async def _encode_once(self, memory_id: MemoryId, steps: "_Steps") -> int:
        async with self._open_unit() as unit:
            head = await unit.memories.head(memory_id)
            pending = await unit.memories.pending_sessions(memory_id)
            stored = await unit.memories.state(memory_id)
            is_late = self._reconcile.is_sequential and await _has_late_turns(
                unit.memories, memory_id
            )
        if not pending:
            steps.is_more = False
            return head.version
        if stored is not None:
            self._reconcile.fingerprint.require(stored.fingerprint, f"state of {memory_id.user}")
            if is_late:
                raise CannotSubtractError("a turn was said before others that were read already")
        is_rebuilt = stored is None and head.version > 0
        # A part of a memory never replaces the whole; sequential encoding reads in the order said.
        is_whole = is_rebuilt or self._reconcile.is_sequential
        step = pending if is_whole else steps.first(pending)
        change = await self._reconcile.change(
            head.version,
            stored,
            step,
            "rebuild" if is_rebuilt else "append",
            steps.report_of(step, pending),
        )
        async with self._open_unit() as unit:
            version = await unit.memories.write_version(memory_id, change)
            await unit.commit()
        steps.finish(step, pending, len(change.appeared))
        return version

    async def _withdraw_state(self, memory_id: MemoryId) -> None:
        async with self._open_unit() as unit:
            await unit.memories.mark_all_pending(memory_id)
            await unit.commit()


class _Steps:
    """Cuts what is pending into steps: an interruption costs one step, not the whole history."""

    def __init__(self, report: Report | None) -> None:
        self.is_more = True
        self._report = report
        self._chunks = 0

    def first(self, pending: Sequence[PendingSession]) -> Sequence[PendingSession]:
        """The sessions of the next step: at least one, then as many as fit."""
        turns = accumulate(len(session.turns) for session in pending)
        return pending[: max(1, sum(sum_ <= TURNS_AT_ONCE for sum_ in turns))]

    def report_of(
        self, step: Sequence[PendingSession], pending: Sequence[PendingSession]
    ) -> Report | None:
        """Report of one step as one of the whole; chunks of later steps are estimated by turns."""
        report, before = self._report, self._chunks
        if report is None:
            return None
        share = _turns(pending) / max(1, _turns(step))
        return lambda done, total: report(before + done, before + round(total * share))

    def finish(
        self, step: Sequence[PendingSession], pending: Sequence[PendingSession], chunks: int
    ) -> None:
        """Note what a step did."""
        self._chunks += chunks
        self.is_more = len(step) < len(pending)


def _turns(sessions: Sequence[PendingSession]) -> int:
    return sum(len(session.turns) for session in sessions)


async def _has_late_turns(memories: Memories, memory_id: MemoryId) -> bool:
    """Tell whether a turn to encode was said before one that the state holds already."""
    pending = await memories.pending_turn_ids(memory_id)
    aside = await memories.turns_set_aside(memory_id)
    turns = await memories.turns(memory_id)
    is_pending = [turn.id in pending for turn in turns if turn.id not in aside]
    return is_pending != sorted(is_pending)
