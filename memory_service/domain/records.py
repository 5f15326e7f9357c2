"""What is stored of a memory: the records that services and storage hand to each other.

Tensors are named in annotations only: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.turns import Turn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Head:
    """One user's row: where the memory stands. `version` 0 means nothing was encoded yet."""

    memory_id: MemoryId
    version: int
    created_at: datetime
    turns: int
    pending_turns: int


@dataclass(frozen=True)
class StoredSizes:
    """How much is stored of one memory; `adapters_bytes` are those of all kept read-outs."""

    sessions: int
    chunks: int
    text_chars: int
    state_bytes: int
    adapters_bytes: int


@dataclass(frozen=True)
class PendingSession:
    """A session whose turns changed since its chunks were last computed.

    `revision` counts those changes; it is handed back when the work is stored, so that a turn that
    arrived meanwhile keeps the session pending.
    """

    name: str
    revision: int
    turns: tuple[Turn, ...]
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True)
class StoredChunk:
    """A chunk that is part of the state. The update is not kept, its digest is."""

    session: str
    digest: str
    update_digest: str
    turn_ids: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class StoredState:
    """The state of the newest version: sum of closed chunks + the update of one open chunk.

    Keeping the open chunk's update apart means that appending to it never subtracts: the next
    version replaces `open_update`. `open_chunk` is that chunk's digest. The digest is of the whole
    sum.
    """

    fingerprint: Fingerprint
    closed: Tensor  # int64 [layer key column]
    open_update: Tensor | None
    open_chunk: str | None
    digest: str


@dataclass(frozen=True)
class StoredAdapter:
    """The read-out of one version; `readouts` is None where only the newest ones are kept."""

    version: int
    fingerprint: Fingerprint
    reason: str
    created_at: datetime
    state_digest: str
    chunks: int
    turns: int
    size_bytes: int
    readouts: Tensor | None  # [layer key value]


@dataclass(frozen=True)
class NewVersion:
    """Everything one change of a memory writes, all or nothing."""

    expected_version: int
    reason: str
    state: StoredState
    readouts: Tensor
    appeared: Sequence[StoredChunk]
    vanished: Sequence[StoredChunk]
    sessions: Mapping[str, int]  # session name -> revision that these chunks were computed from
