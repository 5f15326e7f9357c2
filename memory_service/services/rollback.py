"""Roll back: make a memory of an earlier subset of its turns. The other turns are set aside.

What is set aside is kept but no part of the memory, and comes back by rolling back (forward) to a
version that holds it. Nothing is lost by a rollback, and nothing forgotten comes back by one.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Erased, PendingSession, Receipt
from memory_service.domain.turns import Turn
from memory_service.services.amend import Amend, Plan
from memory_service.services.ports import Memories
from memory_service.services.reconcile import Report


class Rollback:
    """Chooses which kept turns a memory is made of."""

    def __init__(self, amend: Amend) -> None:
        self._amend = amend

    async def version(
        self, memory_id: MemoryId, version: int, report: Report | None = None
    ) -> Receipt:
        """Make the memory hold the turns of an earlier version, but those forgotten since.

        Raises:
            NotFound: there is no such user or version.
            StateConflict: others kept writing first; nothing was changed.
        """

        async def make_plan(memories: Memories) -> Plan:
            recipe = await memories.chunks(memory_id, version)
            wanted = {turn_id for chunk in recipe for turn_id in chunk.turn_ids}
            return await _plan(memories, memory_id, wanted, f"rollback to {version}")

        return await self._amend.carry_out(memory_id, make_plan, report)

    async def as_of(
        self, memory_id: MemoryId, time: datetime, report: Report | None = None
    ) -> Receipt:
        """Make the memory hold what was said until a time, that moment included.

        Raises:
            NotFound: there is no such user.
            StateConflict: others kept writing first; nothing was changed.
        """

        async def make_plan(memories: Memories) -> Plan:
            kept = await memories.turns(memory_id)
            wanted = {turn.id for turn in kept if turn.time <= time}
            return await _plan(memories, memory_id, wanted, f"as of {time:%Y-%m-%d %H:%M:%S}")

        return await self._amend.carry_out(memory_id, make_plan, report)


async def _plan(
    memories: Memories, memory_id: MemoryId, wanted: Collection[str], reason: str
) -> Plan:
    kept = await memories.turns(memory_id)
    was_aside = await memories.turns_set_aside(memory_id)
    aside = {turn.id for turn in kept if turn.id not in wanted} - was_aside
    back = was_aside & set(wanted)
    by_session: dict[str, list[Turn]] = defaultdict(list)
    for turn in kept:
        if turn.id in wanted:
            by_session[turn.session].append(turn)
    sessions = await memories.sessions_of(memory_id, aside | back)

    async def store(memories: Memories) -> Erased:
        await memories.set_aside(memory_id, aside=aside, back=back)
        return Erased(turns=0, sessions=0, rewritten_versions=0, adapters=0)

    return Plan(reason, [_with(one, by_session[one.name]) for one in sessions], store)


def _with(session: PendingSession, turns: Collection[Turn]) -> PendingSession:
    leaving = tuple(turn for turn in session.turns if turn not in turns)
    return replace(session, turns=tuple(turns), leaving=leaving)
