"""Recall: stored state -> the adapter that chat applies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter
from memory_service.errors import NotFound
from memory_service.services.adapter_cache import AdapterCache, AdapterKey
from memory_service.services.ports import Encoder, OpenUnit, StoredAdapter


class Recall:
    """Looks up adapters and checks that they belong to what is running."""

    def __init__(
        self, open_unit: OpenUnit, encoder: Encoder, cache: AdapterCache | None = None
    ) -> None:
        self._open_unit = open_unit
        self._encoder = encoder
        self.cache = cache or AdapterCache()

    async def adapter(self, memory_id: MemoryId, version: int | None = None) -> StoredAdapter:
        """The adapter of a version (default: the newest), with its read-outs.

        Raises:
            NotFound: no such user or version, or the version's read-outs are no longer kept.
            IncompatibleState: another generator or base model made it.
        """
        async with self._open_unit() as unit:
            adapter = await unit.memories.adapter(memory_id, version)
        self._encoder.fingerprint.require(
            adapter.fingerprint, f"adapter {memory_id.user}@{adapter.version}"
        )
        if adapter.readouts is None:
            raise NotFound(
                "read-out",
                f"{memory_id.user}@{adapter.version}",
                "only the newest versions keep theirs; use the newest"
                if version is not None
                else "turns it held were forgotten; the next append makes a new one, "
                "and so does `memory users rebuild`",
            )
        return adapter

    @asynccontextmanager
    async def applied(
        self, memory_id: MemoryId, version: int | None = None
    ) -> AsyncIterator[AppliedAdapter]:
        """The adapter for one answer, kept in memory between answers.

        What is newest is asked of the database every time, so a changed or deleted memory is never
        answered from the cache, whoever changed it.

        Raises:
            NotFound: no such user or version, or the version's read-outs are no longer kept.
            IncompatibleState: another generator or base model made it.
        """
        adapter = await self._cached(memory_id, version)
        if adapter is None:
            adapter = await self.adapter(memory_id, version)
        readouts = adapter.readouts
        if readouts is None:
            raise RuntimeError("an adapter is kept without its read-outs")
        with self.cache.held(AdapterKey.of(memory_id, adapter), adapter):
            yield AppliedAdapter(memory_id, adapter.version, readouts)

    async def _cached(self, memory_id: MemoryId, version: int | None) -> StoredAdapter | None:
        async with self._open_unit() as unit:
            before = None if version is None else version + 1
            newest = await unit.memories.adapters(memory_id, before=before, limit=1)
        if not newest or version not in {None, newest[0].version}:
            return None
        self._encoder.fingerprint.require(
            newest[0].fingerprint, f"adapter {memory_id.user}@{newest[0].version}"
        )
        return self.cache.find(AdapterKey.of(memory_id, newest[0]))
