"""Amend: change which turns a memory is made of, and its state with them, in one transaction.

The new state is computed first. Then one transaction writes it and changes the turns. Where the
state cannot follow to the last bit, nothing approximate is stored: the transaction withdraws the
state instead, and it is made anew from the turns after it.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Erased, PendingSession, Receipt, Removal
from memory_service.errors import IncompatibleState, MemoryServiceError, NumericalError
from memory_service.services.compute import Compute
from memory_service.services.contention import retried
from memory_service.services.ports import Encoder, Memories, OpenUnit
from memory_service.services.reconcile import CannotSubtractError, Reconcile, Report
from memory_service.services.remember import Remember

log = structlog.get_logger()


@dataclass(frozen=True)
class Plan:
    """What is to change: sessions as they will be, and the rows that make them so.

    `store` runs in the transaction of the change, after the state was written or withdrawn.
    """

    reason: str
    sessions: Sequence[PendingSession]
    store: Callable[[Memories], Awaitable[Erased]]


MakePlan = Callable[[Memories], Awaitable[Plan]]
"""Reads what is stored and plans; called again where another writer came first."""


class Amend:
    """Carries plans out: exactly, or by withdrawing and rebuilding."""

    def __init__(
        self, open_unit: OpenUnit, encoder: Encoder, compute: Compute, remember: Remember
    ) -> None:
        self._open_unit = open_unit
        self._reconcile = Reconcile(encoder, compute)
        self._remember = remember

    async def carry_out(
        self, memory_id: MemoryId, make_plan: MakePlan, report: Report | None = None
    ) -> Receipt:
        """Change a memory; the receipt says what went, how, and which state remains.

        Raises:
            StateConflict: others kept writing first; nothing was changed.
        """
        try:
            return await retried(memory_id, lambda: self._exactly(memory_id, make_plan, report))
        except (CannotSubtractError, IncompatibleState, NumericalError) as error:
            reason = str(error)
        log.warning("state_withdrawn", user=memory_id.user, reason=reason)
        erased = await retried(memory_id, lambda: self._withdrawing(memory_id, make_plan))
        withdrawn = Receipt(erased, Removal.WITHDRAWN, reason, version=None, state_digest=None)
        return await self._rebuild(memory_id, withdrawn, report)

    async def _exactly(
        self, memory_id: MemoryId, make_plan: MakePlan, report: Report | None
    ) -> Receipt:
        async with self._open_unit() as unit:
            head = await unit.memories.head(memory_id)
            plan = await make_plan(unit.memories)
            stored = await unit.memories.state(memory_id)
        if self._reconcile.is_sequential:
            raise CannotSubtractError(
                "under sequential encoding later chunks were read with the earlier ones applied"
            )
        if stored is not None:
            self._reconcile.fingerprint.require(stored.fingerprint, f"state of {memory_id.user}")
        change = await self._reconcile.change(
            head.version, stored, plan.sessions, plan.reason, report
        )
        async with self._open_unit() as unit:
            version = await unit.memories.write_version(memory_id, change)
            erased = await plan.store(unit.memories)
            await unit.commit()
        return Receipt(erased, Removal.SUBTRACTED, "", version, change.state.digest)

    async def _withdrawing(self, memory_id: MemoryId, make_plan: MakePlan) -> Erased:
        async with self._open_unit() as unit:
            plan = await make_plan(unit.memories)
            await unit.memories.mark_all_pending(memory_id)
            erased = await plan.store(unit.memories)
            await unit.commit()
        return erased

    async def _rebuild(
        self, memory_id: MemoryId, withdrawn: Receipt, report: Report | None
    ) -> Receipt:
        """Encode what remains. Whatever goes wrong now, the turns are changed: say so."""
        try:
            await self._remember.encode_pending(memory_id, report)
            async with self._open_unit() as unit:
                adapter = await unit.memories.adapter(memory_id)
        except MemoryServiceError as error:
            log.warning("rebuild_failed", user=memory_id.user, code=error.code)
            return withdrawn
        return replace(
            withdrawn,
            removal=Removal.REBUILT,
            version=adapter.version,
            state_digest=adapter.state_digest,
        )
