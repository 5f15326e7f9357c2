"""Encode queue: turns that were stored during a chat are encoded in the background.

The database knows what is pending; the queue only remembers whom to look at next. So nothing is
lost with it: a new process begins with everybody who has pending turns.
"""

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress

import structlog

from memory_service.domain.memory import MemoryId
from memory_service.errors import MemoryServiceError, NotFound
from memory_service.services.ports import OpenUnit
from memory_service.services.remember import Remember

log = structlog.get_logger()


class EncodeQueue:
    """Encodes one user after another. Belongs to one event loop."""

    def __init__(self, open_unit: OpenUnit, remember: Remember) -> None:
        self._open_unit = open_unit
        self._remember = remember
        self._waiting: OrderedDict[MemoryId, float] = OrderedDict()  # since when
        self._current: MemoryId | None = None
        self._changed = asyncio.Condition()
        self._worker: asyncio.Task[None] | None = None
        self.lag_s = 0.0
        """How long the turns that were encoded last had waited."""

    @property
    def depth(self) -> int:
        """Users whose turns wait to be encoded."""
        return len(self._waiting) + (self._current is not None)

    async def start(self) -> None:
        """Begin, with what an earlier process left."""
        async with self._open_unit() as unit:
            pending = await unit.memories.pending_memories()
        for memory_id in pending:
            self._waiting.setdefault(memory_id, time.monotonic())
        self._worker = asyncio.create_task(self._work())

    async def add(self, memory_id: MemoryId) -> None:
        """A user's turns have changed."""
        async with self._changed:
            self._waiting.setdefault(memory_id, time.monotonic())
            self._changed.notify_all()

    async def settled(self, memory_id: MemoryId, timeout_s: float) -> bool:
        """Wait until a user's turns are encoded, but not for ever; whether they are."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: not self._is_pending(memory_id))
        return not self._is_pending(memory_id)

    async def stop(self) -> None:
        """End; what is not encoded yet stays pending in the database."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker

    def _is_pending(self, memory_id: MemoryId) -> bool:
        return memory_id in self._waiting or memory_id == self._current

    async def _work(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting)
                self._current, since = self._waiting.popitem(last=False)
            try:
                await self._encode(self._current)
                self.lag_s = time.monotonic() - since
            finally:
                async with self._changed:
                    self._current = None
                    self._changed.notify_all()

    async def _encode(self, memory_id: MemoryId) -> None:
        try:
            await self._remember.encode_pending(memory_id)
        except NotFound:
            return  # deleted meanwhile
        except MemoryServiceError as error:
            # The next turn of this user tries again, and so does the next start.
            log.error("encoding_failed", code=error.code, user=memory_id.user)
        except Exception as error:  # noqa: BLE001  # one user's failure must not end the queue
            log.error("encoding_failed", error=type(error).__name__, user=memory_id.user)
