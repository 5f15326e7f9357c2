"""Forget turns: the state that remains is bit-equal to one that never saw them.

All in one transaction: the turns' text goes, tombstones come, earlier versions lose what they held,
and the state is reconciled with what is kept. Where the old updates cannot be reproduced to the
last bit, nothing approximate is subtracted: the adapter is withdrawn in the same transaction as the
text, and made anew from the remaining turns after it.
"""

from collections.abc import Collection
from dataclasses import replace

import structlog

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import PendingSession, Receipt, Removal
from memory_service.errors import IncompatibleState, MemoryServiceError, NotFound, NumericalError
from memory_service.services.compute import Compute
from memory_service.services.contention import retried
from memory_service.services.forget import Forget
from memory_service.services.ports import Encoder, OpenUnit
from memory_service.services.reconcile import CannotSubtractError, Reconcile, Report
from memory_service.services.remember import Remember

log = structlog.get_logger()


class ForgetTurns:
    """Takes turns back and keeps the adapter in step with what remains."""

    def __init__(
        self, open_unit: OpenUnit, encoder: Encoder, compute: Compute, remember: Remember
    ) -> None:
        self._open_unit = open_unit
        self._reconcile = Reconcile(encoder, compute)
        self._remember = remember
        self._forget = Forget(open_unit)

    async def turns(
        self, memory_id: MemoryId, turn_ids: Collection[str], report: Report | None = None
    ) -> Receipt:
        """Forget turns; the receipt says what went, how, and which state remains.

        Raises:
            NotFound: there is no such user, or none of the turns is kept.
            StateConflict: others kept writing first; nothing was forgotten.
        """
        try:
            return await retried(memory_id, lambda: self._subtract(memory_id, turn_ids, report))
        except (CannotSubtractError, IncompatibleState, NumericalError) as error:
            reason = str(error)
        log.warning("state_withdrawn", user=memory_id.user, reason=reason)
        withdrawn = await self._forget.withdraw(memory_id, turn_ids, reason)
        return await self._rebuild(memory_id, withdrawn, report)

    async def _subtract(
        self, memory_id: MemoryId, turn_ids: Collection[str], report: Report | None
    ) -> Receipt:
        async with self._open_unit() as unit:
            head = await unit.memories.head(memory_id)
            sessions = await unit.memories.sessions_of(memory_id, turn_ids)
            stored = await unit.memories.state(memory_id)
        if not sessions:
            raise NotFound("turn", ", ".join(sorted(turn_ids)))
        if self._reconcile.is_sequential:
            raise CannotSubtractError(
                "under sequential encoding later chunks were read with the earlier ones applied"
            )
        if stored is not None:
            self._reconcile.fingerprint.require(stored.fingerprint, f"state of {memory_id.user}")
        rest = [_without(session, set(turn_ids)) for session in sessions]
        change = await self._reconcile.change(head.version, stored, rest, "forget", report)
        async with self._open_unit() as unit:
            version = await unit.memories.write_version(memory_id, change)
            erased = await unit.memories.erase_turns(memory_id, turn_ids)
            await unit.commit()
        return Receipt(erased, Removal.SUBTRACTED, "", version, change.state.digest)

    async def _rebuild(
        self, memory_id: MemoryId, withdrawn: Receipt, report: Report | None
    ) -> Receipt:
        """Encode what remains. Whatever goes wrong now, the turns are forgotten: say so."""
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


def _without(session: PendingSession, turn_ids: Collection[str]) -> PendingSession:
    """The session as it will be, and the turns that leave it."""
    return replace(
        session,
        turns=tuple(turn for turn in session.turns if turn.id not in turn_ids),
        leaving=tuple(turn for turn in session.turns if turn.id in turn_ids),
    )
