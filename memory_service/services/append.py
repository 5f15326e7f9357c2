"""Append: turns -> durable rows. Needs no model, so a turn is safe before anything slow begins."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival
from memory_service.domain.turns import Turn
from memory_service.errors import NotFound, StateConflict
from memory_service.services.inspect import turn_pages
from memory_service.services.ports import OpenUnit


@dataclass(frozen=True)
class Stored:
    """How many turns of a call were new, and how many known before with the same content.

    `forgotten` ones were taken back earlier: they stay forgotten and were not stored again.
    """

    new: int = 0
    known: int = 0
    forgotten: int = 0

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(
            self.new + other.new, self.known + other.known, self.forgotten + other.forgotten
        )


class Append:
    """Stores turns; `Remember.encode_pending` brings the adapter up to date with them."""

    def __init__(self, open_unit: OpenUnit) -> None:
        self._open_unit = open_unit

    async def turns(
        self, memory_id: MemoryId, turns: Sequence[Turn], undated: Collection[str] = ()
    ) -> Stored:
        """Store all of the turns or none; they are durable when this returns.

        `undated` are ids of turns that came without a time: one that is known keeps its own, so
        that sending it again is no conflict.

        Raises:
            StateConflict: a turn id is known with other content.
            Unavailable: the database is locked, full or read-only.
        """
        try:
            return await self._store(memory_id, turns)
        except StateConflict:
            if not undated:
                raise
        known = await self._known(memory_id, undated)
        return await self._store(
            memory_id,
            [
                replace(turn, time=known[turn.id].time) if turn.id in known else turn
                for turn in turns
            ],
        )

    async def _store(self, memory_id: MemoryId, turns: Sequence[Turn]) -> Stored:
        async with self._open_unit() as unit:
            arrivals = await unit.memories.add_turns(memory_id, turns)
            await unit.commit()
        return Stored(
            new=arrivals.count(Arrival.NEW),
            known=arrivals.count(Arrival.KNOWN),
            forgotten=arrivals.count(Arrival.FORGOTTEN),
        )

    async def _known(self, memory_id: MemoryId, ids: Collection[str]) -> dict[str, Turn]:
        async with self._open_unit() as unit:
            try:
                pages = turn_pages(unit, memory_id)
                return {turn.id: turn async for turn in pages if turn.id in ids}
            except NotFound:  # the conflict is among the new turns of a new user
                return {}
