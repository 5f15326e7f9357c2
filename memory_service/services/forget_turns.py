"""Forget turns: the state that remains is bit-equal to one that never saw them."""

from collections.abc import Collection
from dataclasses import replace

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import PendingSession, Receipt
from memory_service.errors import NotFound
from memory_service.services.amend import Amend, Plan
from memory_service.services.ports import Memories
from memory_service.services.reconcile import Report


class ForgetTurns:
    """Takes turns back and keeps the adapter in step with what remains."""

    def __init__(self, amend: Amend) -> None:
        self._amend = amend

    async def turns(
        self,
        memory_id: MemoryId,
        turn_ids: Collection[str],
        report: Report | None = None,
        reason: str = "forget",
    ) -> Receipt:
        """Forget turns; the receipt says what went, how, and which state remains.

        `reason` is what the history tells of the version that remains.

        Raises:
            NotFound: there is no such user, or none of the turns is kept.
            StateConflict: others kept writing first; nothing was forgotten.
        """

        async def make_plan(memories: Memories) -> Plan:
            sessions = await memories.sessions_of(memory_id, turn_ids)
            if not sessions:
                raise NotFound("turn", ", ".join(sorted(turn_ids)))
            return Plan(
                reason=reason,
                sessions=[without(session, set(turn_ids)) for session in sessions],
                store=lambda memories: memories.erase_turns(memory_id, turn_ids),
            )

        return await self._amend.carry_out(memory_id, make_plan, report)


def without(session: PendingSession, turn_ids: Collection[str]) -> PendingSession:
    """The session as it will be, and the turns that leave it."""
    return replace(
        session,
        turns=tuple(turn for turn in session.turns if turn.id not in turn_ids),
        leaving=tuple(turn for turn in session.turns if turn.id in turn_ids),
    )
