"""Recall: stored state -> the adapter that chat applies."""

from memory_service.domain.memory import MemoryId
from memory_service.errors import NotFound
from memory_service.services.ports import Encoder, OpenUnit, StoredAdapter


class Recall:
    """Looks up adapters and checks that they belong to what is running."""

    def __init__(self, open_unit: OpenUnit, encoder: Encoder) -> None:
        self._open_unit = open_unit
        self._encoder = encoder

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
