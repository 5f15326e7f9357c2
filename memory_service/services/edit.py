"""Edit: forget a turn and append its new text, in one transaction."""

from dataclasses import replace

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival, Erased, Receipt
from memory_service.domain.turns import Turn
from memory_service.errors import InvalidInput, NotFound
from memory_service.services.amend import Amend, Plan
from memory_service.services.forget_turns import without
from memory_service.services.ports import Memories
from memory_service.services.reconcile import Report


class Edit:
    """Replaces what a turn said.

    The new text has an id of its own: the old one stays forgotten, so that an older copy of the
    memory brings the old text back neither by a retry nor by a merge.
    """

    def __init__(self, amend: Amend) -> None:
        self._amend = amend

    async def turn(
        self,
        memory_id: MemoryId,
        turn_id: str,
        text: str,
        new_id: str,
        report: Report | None = None,
    ) -> Receipt:
        """Replace a turn's text; session, role and time stay.

        Raises:
            NotFound: there is no such user or turn.
            InvalidInput: the text cannot be stored, or the new id was used before.
            StateConflict: others kept writing first; nothing was changed.
        """

        async def make_plan(memories: Memories) -> Plan:
            sessions = await memories.sessions_of(memory_id, [turn_id])
            old = next((turn for one in sessions for turn in one.turns if turn.id == turn_id), None)
            if old is None:
                raise NotFound("turn", turn_id, f"`memory turns list {memory_id.user}` tells ids")
            if await memories.sessions_of(memory_id, [new_id]):
                raise InvalidInput("id", new_id, "is the id of another turn; choose a new one")
            new = replace(old, text=text, id=new_id)
            (rest,) = (without(session, [turn_id]) for session in sessions)
            # Storing the new turn counts the session's revision up by one.
            edited = replace(rest, turns=(*rest.turns, new), revision=rest.revision + 1)
            return Plan("edit", [edited], lambda memories: _store(memories, memory_id, old, new))

        return await self._amend.carry_out(memory_id, make_plan, report)


async def _store(memories: Memories, memory_id: MemoryId, old: Turn, new: Turn) -> Erased:
    if await memories.add_turns(memory_id, [new]) != [Arrival.NEW]:
        raise InvalidInput("id", new.id, "is the id of a turn that was forgotten; choose a new one")
    return await memories.erase_turns(memory_id, [old.id])
