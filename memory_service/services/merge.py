"""Merge: one memory of what two were told. Order and repetition do not matter.

Turns are united by id. What one side forgot stays forgotten on both: tombstones win, and of two
dates of expiry the earlier. A turn that only one of them set aside is part of the merged memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival, Erased, PendingSession
from memory_service.domain.tombstones import Tombstones, buried
from memory_service.domain.turns import Turn
from memory_service.errors import InvalidInput, StateConflict
from memory_service.services.amend import Amend, Plan
from memory_service.services.ports import Memories, OpenUnit
from memory_service.services.reconcile import Report
from memory_service.services.remember import Remember

LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Merged:
    """What became of a merge: the other's turns, and turns erased because the other forgot them."""

    new: int
    known: int
    forgotten: int
    erased: int
    version: int


@dataclass(frozen=True)
class _Contents:
    turns: Mapping[str, Turn]
    aside: frozenset[str]
    tombstones: Tombstones


class Merge:
    """Brings what one memory holds into another of the same tenant."""

    def __init__(self, open_unit: OpenUnit, amend: Amend, remember: Remember) -> None:
        self._open_unit = open_unit
        self._amend = amend
        self._remember = remember

    async def users(self, into: MemoryId, other: MemoryId, report: Report | None = None) -> Merged:
        """Merge `other` into `into`; `other` stays as it is. Cut short, it can be run again.

        Raises:
            InvalidInput: both are the same, or of different tenants.
            NotFound: one of them is unknown.
            StateConflict: both know a turn with different content; nothing was changed.
        """
        if into == other:
            raise InvalidInput("user", other.user, "is both sides; name two users")
        if into.tenant != other.tenant:
            raise InvalidInput("tenant", other.tenant, f"must be {into.tenant}, as the other's")
        async with self._open_unit() as unit:
            theirs = await _contents(unit.memories, other)
            ours = await _contents(unit.memories, into)
        stones = [*ours.tombstones.items(), *theirs.tombstones.items()]
        _require_same(ours, theirs, buried(stones, {*ours.turns, *theirs.turns}))
        erased = await self._give_way(into, theirs, report)
        arrivals = await self._add(into, theirs, _earlier_dates(ours, theirs))
        version = await self._remember.encode_pending(into, report)
        return Merged(
            new=arrivals.count(Arrival.NEW),
            known=arrivals.count(Arrival.KNOWN),
            forgotten=arrivals.count(Arrival.FORGOTTEN),
            erased=erased,
            version=version,
        )

    async def _give_way(self, into: MemoryId, theirs: _Contents, report: Report | None) -> int:
        """Erase what the other forgot, and take back in what it has not set aside."""
        active = set(theirs.turns) - theirs.aside

        async def changes(memories: Memories) -> tuple[_Contents, set[str], frozenset[str]]:
            ours = await _contents(memories, into)
            gone = buried(theirs.tombstones.items(), ours.turns)
            return ours, gone, (ours.aside & active) - gone

        async def make_plan(memories: Memories) -> Plan:
            ours, gone, back = await changes(memories)
            sessions = await memories.sessions_of(into, gone | back)

            async def store(memories: Memories) -> Erased:
                await memories.set_aside(into, aside=(), back=back)
                if not gone:
                    return Erased(turns=0, sessions=0, rewritten_versions=0, adapters=0)
                return await memories.erase_turns(into, gone)

            returning = [ours.turns[turn_id] for turn_id in back]
            return Plan("merge", [_as_merged(one, gone, returning) for one in sessions], store)

        async with self._open_unit() as unit:
            _, gone, back = await changes(unit.memories)
        if not gone and not back:
            return 0
        return (await self._amend.carry_out(into, make_plan, report)).erased.turns

    async def _add(
        self, into: MemoryId, theirs: _Contents, dates: Mapping[str, datetime]
    ) -> list[Arrival]:
        turns = list(theirs.turns.values())
        async with self._open_unit() as unit:
            await unit.memories.bury(into, theirs.tombstones)
            arrivals = await unit.memories.add_turns(into, turns)
            await unit.memories.set_expiry(into, dates)
            is_new = zip(turns, arrivals, strict=True)
            added = {turn.id for turn, arrival in is_new if arrival is Arrival.NEW}
            if added & theirs.aside:
                await unit.memories.set_aside(into, aside=added & theirs.aside, back=())
            await unit.commit()
        return arrivals


async def _contents(memories: Memories, memory_id: MemoryId) -> _Contents:
    return _Contents(
        turns={turn.id: turn for turn in await memories.turns(memory_id)},
        aside=frozenset(await memories.turns_set_aside(memory_id)),
        tombstones=await memories.tombstones(memory_id),
    )


def _require_same(ours: _Contents, theirs: _Contents, forgotten: set[str]) -> None:
    """Check that turns of one id say the same; which of two texts is right nobody here knows."""
    for turn_id in sorted((set(ours.turns) & set(theirs.turns)) - forgotten):
        if ours.turns[turn_id] != theirs.turns[turn_id]:
            raise StateConflict(
                f"turn {turn_id}",
                "differs between the two memories; nothing was merged: forget or edit one of them",
            )


def _earlier_dates(ours: _Contents, theirs: _Contents) -> dict[str, datetime]:
    """Where the other forgets a turn of both earlier: when."""
    return {
        turn_id: turn.expires_at
        for turn_id, turn in theirs.turns.items()
        if turn_id in ours.turns and turn.expires_at is not None
        if turn.expires_at < (ours.turns[turn_id].expires_at or LATEST)
    }


def _as_merged(session: PendingSession, gone: set[str], returning: list[Turn]) -> PendingSession:
    here = [turn for turn in returning if turn.session == session.name]
    return replace(
        session,
        turns=tuple(
            sorted(
                (turn for turn in (*session.turns, *here) if turn.id not in gone),
                key=lambda turn: turn.order,
            )
        ),
        leaving=tuple(turn for turn in session.turns if turn.id in gone),
    )
