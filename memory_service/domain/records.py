"""What is stored of a memory: the records that services and storage hand to each other.

Tensors are named in annotations only: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.turns import Turn

if TYPE_CHECKING:
    from torch import Tensor


class Arrival(StrEnum):
    """What became of a turn that was handed over to be stored."""

    NEW = "new"
    KNOWN = "known"
    FORGOTTEN = "forgotten"


class Removal(StrEnum):
    """How forgotten turns left the state.

    `SUBTRACTED`: the updates of their chunks were reproduced to the last bit and taken out.
    `REBUILT`: they could not be, so the adapter was withdrawn and made anew from the kept turns.
    `WITHDRAWN`: the same, but the kept turns are not encoded yet; until then there is no adapter.
    """

    SUBTRACTED = "subtracted"
    REBUILT = "rebuilt"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Erased:
    """What forgetting turns took from the database: turns, and what was made of them."""

    turns: int
    sessions: int
    rewritten_versions: int
    adapters: int


@dataclass(frozen=True)
class Receipt:
    """What was forgotten, and the version and state that remain.

    `reason` says why the state was not subtracted from; empty where it was. Version and digest are
    None while nothing of the rest is encoded.
    """

    erased: Erased
    removal: Removal
    reason: str
    version: int | None
    state_digest: str | None


@dataclass(frozen=True)
class Head:
    """One user's row: where the memory stands. `version` 0 means nothing was encoded yet.

    `quarantined_turns` are those that no encoded chunk holds and a quarantined one does.
    """

    memory_id: MemoryId
    version: int
    created_at: datetime
    turns: int
    pending_turns: int
    quarantined_turns: int = 0


@dataclass(frozen=True)
class SessionHead:
    """One session's row. `turns` counts those not set aside; the times are of all kept ones."""

    name: str
    turns: int
    is_pending: bool
    first_at: datetime
    last_at: datetime


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
    arrived meanwhile keeps the session pending. `leaving` are turns about to be forgotten: they are
    no part of the new chunks, but needed once more to reproduce the old ones.
    """

    name: str
    revision: int
    turns: tuple[Turn, ...]
    chunks: tuple[StoredChunk, ...]
    leaving: tuple[Turn, ...] = ()
    quarantined: tuple[QuarantinedChunk, ...] = ()


@dataclass(frozen=True)
class StoredChunk:
    """A chunk that is part of a state. The update is not kept, its digest is.

    In recipes of earlier versions both digests are empty, and `tokens` is 0, where a turn of the
    chunk was forgotten: nothing that was computed from its text stays.
    """

    session: str
    digest: str
    update_digest: str
    turn_ids: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class QuarantinedChunk:
    """A chunk that cannot be encoded: no part of any state until it is tried again."""

    session: str
    digest: str
    turn_ids: tuple[str, ...]
    reason: str
    since: datetime


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

    def total(self) -> Tensor:
        """The sum; both parts are far from where int64 ends (`generator.state`)."""
        return self.closed if self.open_update is None else self.closed + self.open_update


@dataclass(frozen=True)
class StoredAdapter:
    """The read-out of one version; `readouts` is None where only the newest ones are kept.

    `state_digest` is empty where forgetting rewrote the version's recipe since.
    """

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
    quarantined: Sequence[QuarantinedChunk] = ()  # all of those sessions
