"""Forgotten elsewhere: what another process took back is let go of here too.

A running server hears of what is forgotten through itself. The command line and other servers on
the same database are other processes: only the database tells.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from memory_service.domain.memory import MemoryId
from memory_service.errors import MemoryServiceError
from memory_service.services.adapter_cache import AdapterCache
from memory_service.services.ports import OpenUnit

log = structlog.get_logger()

LOOK_S = 0.2
"""How long an answer in the making may go on after its memory was taken back elsewhere."""

IDLE_LOOKS = 50
"""At every so manieth look the adapters that nobody uses are looked up too."""


class ForgottenElsewhere:
    """Compares the adapters in memory with the database. Belongs to one event loop."""

    def __init__(
        self, open_unit: OpenUnit, cache: AdapterCache, forgotten: Callable[[MemoryId], None]
    ) -> None:
        self._open_unit = open_unit
        self._cache = cache
        self._forgotten = forgotten
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look again and again."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def look(self, *, used_only: bool) -> None:
        """Let go of every memory of which an adapter is no longer what the database says.

        Forgetting blanks the digest of every version that held something of it, and deleting leaves
        no version. An append only adds one: it disturbs nobody.

        Raises:
            BackendError: the database cannot be asked now.
        """
        keys = self._cache.keys(used_only=used_only)
        if not keys:
            return
        async with self._open_unit() as unit:
            digests = await unit.memories.state_digests(
                {(key.memory_id, key.version) for key in keys}
            )
        changed = {
            key.memory_id
            for key in keys
            if digests.get((key.memory_id, key.version)) != key.state_digest
        }
        for memory_id in changed:
            self._forgotten(memory_id)

    async def _watch(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_S)
            looks += 1
            try:
                await self.look(used_only=looks % IDLE_LOOKS != 0)
            except MemoryServiceError as error:
                log.warning("look_for_forgotten_failed", code=error.code)
