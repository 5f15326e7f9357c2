"""One user's memory as it is carried from one database to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import StoredChunk, StoredState
from memory_service.domain.tombstones import Tombstones
from memory_service.domain.turns import Turn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """The newest version: its state, its adapter's read-outs, and the chunks they were made of."""

    version: int
    state: StoredState
    readouts: Tensor
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True)
class Archive:
    """What there is of a memory: kept turns, tombstones of the others, and the newest version.

    `aside` are ids of kept turns that a rollback took out of the memory. `encoded` is None where
    nothing was encoded.
    """

    memory_id: MemoryId
    turns: tuple[Turn, ...]
    aside: frozenset[str]
    tombstones: Tombstones
    encoded: Encoded | None
