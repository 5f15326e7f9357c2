"""Archives go out: all of a user's memory in one file; needs the database only."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from memory_service.domain.archive import Archive, Encoded
from memory_service.domain.memory import MemoryId
from memory_service.services.ports import Memories, OpenUnit


class ExportMemory:
    """Makes archives of memories; needs no model."""

    def __init__(self, open_unit: OpenUnit, write: Callable[[Archive, Path], int]) -> None:
        self._open_unit = open_unit
        self._write = write

    async def archive(self, memory_id: MemoryId, file: Path) -> int:
        """Write all of a memory to a new file; its size in bytes.

        Earlier versions are not in it: they are recipes of the same turns.

        Raises:
            NotFound: there is no such user.
            IncompatibleState: the stored state or adapter is damaged.
            InvalidInput: the file exists already.
            Unavailable: it cannot be written.
        """
        async with self._open_unit() as unit:
            memories = unit.memories
            turns = await memories.turns(memory_id)
            archive = Archive(
                memory_id=memory_id,
                turns=tuple(turns),
                aside=frozenset(await memories.turns_set_aside(memory_id)),
                tombstones=await memories.tombstones(memory_id),
                encoded=await _newest(memories, memory_id),
            )
        return await asyncio.to_thread(self._write, archive, file)


async def _newest(memories: Memories, memory_id: MemoryId) -> Encoded | None:
    state = await memories.state(memory_id)
    if state is None:
        return None
    adapter = await memories.adapter(memory_id)
    if adapter.readouts is None:
        return None
    chunks = await memories.chunks(memory_id)
    return Encoded(adapter.version, state, adapter.readouts, tuple(chunks))
