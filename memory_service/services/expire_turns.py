"""Expire turns: what is over is forgotten, by the way of everything that is forgotten."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import structlog

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Receipt
from memory_service.errors import MemoryServiceError, NotFound
from memory_service.services.expiry import Expiry

log = structlog.get_logger()

LOOK_S = 30.0
"""How long a turn may outlive its date while a server runs."""

Forget = Callable[[MemoryId, Collection[str]], Awaitable[Receipt]]
"""Takes turns of one memory back."""

Tell = Callable[[MemoryId, Receipt], Awaitable[None]]
"""Is told what was taken back."""


@dataclass(frozen=True)
class Expired:
    """Whose turns were over, and what went."""

    memory_id: MemoryId
    receipt: Receipt


class ExpireTurns:
    """Forgets what is over, once or again and again. Belongs to one event loop."""

    def __init__(self, expiry: Expiry, forget: Forget, tell: Tell | None = None) -> None:
        self._expiry = expiry
        self._forget = forget
        self._tell = tell
        self._task: asyncio.Task[None] | None = None

    async def all(self) -> AsyncIterator[Expired]:
        """Forget everything that is over now, user by user.

        Where one memory cannot be changed now the others go on; the next look tries it again.
        """
        for memory_id in await self._expiry.due():
            try:
                turn_ids = await self._expiry.expired(memory_id)
                if not turn_ids:
                    continue
                receipt = await self._forget(memory_id, turn_ids)
                if self._tell is not None:
                    await self._tell(memory_id, receipt)
            except NotFound:
                continue  # forgotten by somebody else meanwhile
            except MemoryServiceError as error:
                log.error("expiry_failed", code=error.code, user=memory_id.user)
            else:
                yield Expired(memory_id, receipt)

    def start(self) -> None:
        """Begin to look again and again."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End; a forgetting that has begun is done whole or not at all."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            try:
                async for one in self.all():
                    log.info("expired", user=one.memory_id.user, turns=one.receipt.erased.turns)
            except MemoryServiceError as error:
                log.warning("look_for_expired_failed", code=error.code)
            except Exception as error:  # noqa: BLE001  # one failure must not end the watch
                log.error("look_for_expired_failed", error=type(error).__name__)
            await asyncio.sleep(LOOK_S)
