"""What the services need from storage and inference, as Protocols.

The implementers (`storage.unit_of_work`, `inference.encoder`, `inference.engine`) satisfy these
without importing them; `bootstrap` joins them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from memory_service.domain.chunks import Chunk
from memory_service.domain.keys import ApiKey
from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.messages import AppliedAdapter, Generation, Message, Sampling
from memory_service.domain.quotas import Quota, Usage
from memory_service.domain.records import (
    Arrival,
    Erased,
    Head,
    NewVersion,
    PendingSession,
    QuarantinedChunk,
    SessionHead,
    StoredAdapter,
    StoredChunk,
    StoredSizes,
    StoredState,
)
from memory_service.domain.search import Term
from memory_service.domain.tombstones import Tombstones
from memory_service.domain.turns import Turn

if TYPE_CHECKING:  # listing turns must not wait for torch
    from torch import Tensor

__all__ = [
    "Arrival",
    "Backend",
    "Encoder",
    "Erased",
    "Generation",
    "Head",
    "Memories",
    "Message",
    "NewVersion",
    "OpenUnit",
    "PendingSession",
    "Sampling",
    "SessionHead",
    "StoredAdapter",
    "StoredChunk",
    "StoredSizes",
    "StoredState",
    "UnitOfWork",
]

# --- what storage keeps --------------------------------------------------------------------------


class Memories(Protocol):
    """Every query about memories. Nothing is visible to others before `UnitOfWork.commit`."""

    async def add_turns(self, memory_id: MemoryId, turns: Sequence[Turn]) -> list[Arrival]:
        """Store turns, creating tenant, user and sessions; what became of each.

        The same id with the same content is a no-op, and so is an id that was forgotten. Sessions
        with new turns become pending.

        Raises:
            StateConflict: an id is known with another text, role, time or session.
            QuotaExceeded: the tenant would keep more than it may.
        """
        ...

    async def quota(self, tenant: str) -> tuple[Quota, Usage]:
        """What a tenant may keep and what it keeps. Raises NotFound for an unknown tenant."""
        ...

    async def set_quota(self, tenant: str, quota: Quota) -> None:
        """Limit what a tenant may keep, from its next turn on; the tenant may be new."""
        ...

    async def expiry_rule(self, tenant: str) -> int | None:
        """Days that a tenant's turns are kept. Raises NotFound for an unknown tenant."""
        ...

    async def set_expiry_rule(self, tenant: str, days: int | None) -> None:
        """Say how many days a tenant's turns are kept; the tenant may be new."""
        ...

    async def set_expiry(self, memory_id: MemoryId, dates: Mapping[str, datetime | None]) -> None:
        """Give turns that are kept another date, or none. Raises NotFound."""
        ...

    async def memories_with_expired(self, at: datetime) -> list[MemoryId]:
        """Everybody with turns that are to be forgotten at a time, of all tenants."""
        ...

    async def expired_turn_ids(self, memory_id: MemoryId, at: datetime) -> set[str]:
        """A user's turns that are to be forgotten at a time. Raises NotFound."""
        ...

    async def head(self, memory_id: MemoryId) -> Head:
        """Raises NotFound for an unknown user."""
        ...

    async def heads(self, tenant: str, *, after: str = "", limit: int = 100) -> list[Head]:
        """Users of a tenant by name, after the one named (keyset page)."""
        ...

    async def sizes(self, memory_id: MemoryId) -> StoredSizes:
        """How much is stored of a user. Raises NotFound for an unknown user."""
        ...

    async def turns(
        self,
        memory_id: MemoryId,
        *,
        session: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> list[Turn]:
        """A user's turns in (time, id) order. Raises NotFound for an unknown user."""
        ...

    async def turns_by_id(self, memory_id: MemoryId, turn_ids: Iterable[str]) -> dict[str, Turn]:
        """Those of the turns that are kept. Raises NotFound for an unknown user."""
        ...

    async def latest_turns(
        self,
        memory_id: MemoryId,
        *,
        session: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int,
    ) -> list[Turn]:
        """The newest turns of a user or session, in (time, id) order. Raises NotFound."""
        ...

    async def search(
        self,
        memory_id: MemoryId,
        terms: Sequence[Term],
        *,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> list[Turn]:
        """Turns that hold all terms, newest first. Raises NotFound for an unknown user."""
        ...

    async def session_heads(
        self, memory_id: MemoryId, *, after: str = "", limit: int = 100
    ) -> list[SessionHead]:
        """A user's sessions by name, after the one named (keyset page). Raises NotFound."""
        ...

    async def pending_memories(self) -> list[MemoryId]:
        """Everybody with turns that are not encoded yet, of all tenants."""
        ...

    async def recipe_tokens(self, memory_id: MemoryId, version: int) -> int:
        """Tokens of all chunks of a version. Raises NotFound for an unknown user."""
        ...

    async def state_digests(
        self, versions: Collection[tuple[MemoryId, int]]
    ) -> dict[tuple[MemoryId, int], str]:
        """Digests of the states that versions were made from; those that are gone are not in it."""
        ...

    async def pending_turn_ids(self, memory_id: MemoryId) -> set[str]:
        """Turns that the state does not hold yet. Raises NotFound for an unknown user."""
        ...

    async def pending_sessions(self, memory_id: MemoryId) -> list[PendingSession]:
        """Sessions to encode, oldest change first. Raises NotFound for an unknown user."""
        ...

    async def sessions_of(
        self, memory_id: MemoryId, turn_ids: Collection[str]
    ) -> list[PendingSession]:
        """Sessions of those of the turns that are kept, pending or not. Raises NotFound.

        Like `pending_sessions` they come without the turns that are set aside.
        """
        ...

    async def turns_set_aside(self, memory_id: MemoryId) -> set[str]:
        """Kept turns that are no part of the memory since a rollback. Raises NotFound."""
        ...

    async def set_aside(
        self, memory_id: MemoryId, *, aside: Collection[str], back: Collection[str]
    ) -> None:
        """Take kept turns out of the memory, and put others back into it. Raises NotFound.

        The state must follow in the same transaction, by `write_version` or `mark_all_pending`.
        """
        ...

    async def quarantined(self, memory_id: MemoryId) -> list[QuarantinedChunk]:
        """Chunks that cannot be encoded, by session. Raises NotFound for an unknown user."""
        ...

    async def release_quarantined(self, memory_id: MemoryId) -> int:
        """Make the sessions of quarantined chunks pending, as if they were never tried; how many.

        Raises:
            NotFound: the user is unknown.
        """
        ...

    async def chunks(self, memory_id: MemoryId, version: int | None = None) -> list[StoredChunk]:
        """The recipe of a version (default: the newest). Raises NotFound."""
        ...

    async def mark_all_pending(self, memory_id: MemoryId) -> None:
        """Forget state and chunks (not turns), so that everything is encoded anew."""
        ...

    async def state(self, memory_id: MemoryId) -> StoredState | None:
        """The newest state, None before the first version.

        Raises:
            IncompatibleState: the stored bytes are damaged (digest, dtype or shape differ).
        """
        ...

    async def adapter(self, memory_id: MemoryId, version: int | None = None) -> StoredAdapter:
        """One version's adapter (default: the newest). Raises NotFound, IncompatibleState."""
        ...

    async def adapters(
        self, memory_id: MemoryId, *, before: int | None = None, limit: int = 100
    ) -> list[StoredAdapter]:
        """Versions newest first, without their read-outs. Raises NotFound."""
        ...

    async def write_version(self, memory_id: MemoryId, change: NewVersion) -> int:
        """Store one change and return its version number, `expected_version + 1`.

        Older read-outs beyond the newest few are dropped: they are caches of recipes.

        Raises:
            StateConflict: someone else wrote a version first; read again and retry.
        """
        ...

    async def erase_turns(self, memory_id: MemoryId, turn_ids: Collection[str]) -> Erased:
        """Delete turns, rewrite the recipes that name them, and leave tombstones.

        The newest state must have been freed of them before, in the same transaction, by
        `write_version` or `mark_all_pending`. Ids that are not kept are passed over.

        Raises:
            NotFound: the user is unknown, or none of the turns is kept.
            StateConflict: the newest state holds one of them.
        """
        ...

    async def tombstones(self, memory_id: MemoryId) -> Tombstones:
        """What stands for the forgotten turns. Raises NotFound for an unknown user."""
        ...

    async def bury(self, memory_id: MemoryId, tombstones: Tombstones) -> None:
        """Take over another memory's tombstones, creating tenant and user.

        Turns that they stand for must have been erased before.
        """
        ...

    async def delete_user(self, memory_id: MemoryId) -> Mapping[str, int]:
        """Delete everything of a user; returns how many rows of each kind went. Raises NotFound."""
        ...

    async def delete_tenant(self, tenant: str) -> None:
        """Delete a tenant, and with it what is left below it."""
        ...


class ApiKeys(Protocol):
    """Every query about API keys."""

    async def add(self, key: ApiKey) -> None:
        """Store a key, creating its tenant where it is new."""
        ...

    async def find(self, key_id: str) -> ApiKey | None:
        """A key by its id, revoked or not."""
        ...

    async def all(self) -> list[ApiKey]:
        """All keys by tenant and time."""
        ...

    async def any(self) -> bool:
        """Whether there is a key, revoked or not."""
        ...

    async def revoke(self, key_id: str) -> None:
        """End a key. Raises NotFound."""
        ...

    async def delete_all(self, tenant: str) -> int:
        """Delete a tenant's keys; how many there were. Raises NotFound for an unknown tenant."""
        ...


class UnitOfWork(Protocol):
    """One transaction: `async with open_unit() as unit: ...; await unit.commit()`.

    Leaving the block without commit rolls back.
    """

    @property
    def memories(self) -> Memories:
        """The queries of this transaction."""
        ...

    @property
    def keys(self) -> ApiKeys:
        """The queries about API keys."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def commit(self) -> None:
        """Make it durable. Raises Unavailable where the database is locked, full or read-only."""
        ...


class OpenUnit(Protocol):
    """Opens a unit of work."""

    def __call__(self) -> UnitOfWork:
        """Open one."""
        ...


# --- what inference does -------------------------------------------------------------------------


class Encoder(Protocol):
    """Base model and generator: chunk -> update -> state -> adapter. Blocking; run in `compute`."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What every state made here depends on."""
        ...

    def chunk(self, turns: Sequence[Turn]) -> list[Chunk]:
        """Cut one session's turns by the generator's chunking."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text in the base model's vocabulary."""
        ...

    def encode(self, chunk: Chunk, state: Tensor | None = None) -> Tensor:
        """A chunk's exact update; `state` is what sequential encoding applies. int64."""
        ...

    def weigh(self, chunk: Chunk, gauges: Sequence[Tensor]) -> list[dict[str, float]]:
        """The shares of a chunk's turns, by each gauge of a state that holds it."""
        ...

    def gauge(self, state: Tensor, prompt: Sequence[Message] = (), answer: str = "") -> Tensor:
        """What shares in a state are measured by: what its adapter adds to an answer.

        Without a prompt: to everything.
        """
        ...

    def empty_state(self) -> Tensor:
        """The state of a memory that has seen nothing."""
        ...

    def read_out(self, state: Tensor) -> Tensor:
        """The adapter's read-outs [layer key value]."""
        ...


class Backend(Protocol):
    """Generates answers with an adapter applied, many at the same time."""

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model reads it."""
        ...

    def stream(
        self,
        messages: Sequence[Message],
        adapter: AppliedAdapter | None,
        sampling: Sampling,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[str | Generation, None]:
        """Yield pieces of text as they come and, last, the `Generation`.

        Raises:
            InvalidInput: the prompt does not fit into the base model's context.
            BackendError: it has too much to do, is stopping, or took too long.
        """
        ...

    def withdraw(self, memory_id: MemoryId) -> None:
        """End every answer that is being made with a memory, before its next token."""
        ...


class Scorer(Protocol):
    """Tells how likely answers are. Blocking; run in `compute`."""

    def log_likelihoods(
        self,
        prompts: Sequence[Sequence[Message]],
        answers: Sequence[str],
        readouts: Sequence[Tensor | None],
    ) -> list[float]:
        """Mean log-likelihood in nats per token of each answer after its prompt.

        Raises:
            InvalidInput: a prompt and its answer do not fit into the base model's context.
        """
        ...
