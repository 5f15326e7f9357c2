"""Adapters kept in memory between requests: least recently used first out, never one in use."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import StoredAdapter

MOST_BYTES = 256_000_000
"""Room for about 250 users of the default generator."""


@dataclass(frozen=True)
class AdapterKey:
    """What an adapter is: whose, which version, and the state it was read out of.

    The digest is in it because a user who is deleted and comes again has a version 1 again.
    """

    memory_id: MemoryId
    version: int
    state_digest: str
    fingerprint_digest: str

    @classmethod
    def of(cls, memory_id: MemoryId, adapter: StoredAdapter) -> "AdapterKey":
        """The key of a stored adapter, with or without its read-outs."""
        return cls(memory_id, adapter.version, adapter.state_digest, adapter.fingerprint.digest)


@dataclass
class _Kept:
    adapter: StoredAdapter
    users: int = 0


class AdapterCache:
    """Keeps adapters up to a number of bytes; what is held may go beyond it meanwhile."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[AdapterKey, _Kept] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def find(self, key: AdapterKey) -> StoredAdapter | None:
        """The adapter if it is here."""
        kept = self._kept.get(key)
        if kept is None:
            self.misses += 1
            return None
        self.hits += 1
        return kept.adapter

    @contextmanager
    def held(self, key: AdapterKey, adapter: StoredAdapter) -> Iterator[None]:
        """Keep an adapter, and do not let it go inside the block."""
        if key not in self._kept:
            self._kept[key] = _Kept(adapter)
            self.size_bytes += adapter.size_bytes
        kept = self._kept[key]
        self._kept.move_to_end(key)
        kept.users += 1
        self._make_room()
        try:
            yield
        finally:
            kept.users -= 1
            self._make_room()

    def keys(self, *, used_only: bool) -> list[AdapterKey]:
        """What is kept; or what of it is in use."""
        return [key for key, kept in self._kept.items() if kept.users or not used_only]

    def forget(self, memory_id: MemoryId) -> None:
        """Let go of everything of a user, whoever holds it: deleted means deleted."""
        for key in [key for key in self._kept if key.memory_id == memory_id]:
            self._drop(key)

    def _make_room(self) -> None:
        unused = [key for key, kept in self._kept.items() if kept.users == 0]
        for key in unused:
            if self.size_bytes <= self._most_bytes:
                return
            self._drop(key)

    def _drop(self, key: AdapterKey) -> None:
        self.size_bytes -= self._kept.pop(key).adapter.size_bytes
