"""Fakes of the services' ports: a store in memory, and an encoder that adds small integers."""

import asyncio
import copy
import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

import torch
from torch import Tensor

from memory_service.domain.chunks import Chunk, chunk_session
from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.messages import AppliedAdapter, Generation, Message, Sampling
from memory_service.domain.records import (
    Arrival,
    Erased,
    Head,
    NewVersion,
    PendingSession,
    QuarantinedChunk,
    StoredAdapter,
    StoredChunk,
    StoredState,
)
from memory_service.domain.tombstones import Tombstones, buried, tombstone
from memory_service.domain.turns import Turn
from memory_service.errors import NotFound, StateConflict
from memory_service.generator.state import digest

FINGERPRINT = Fingerprint("generator", "base", "tokenizer", "chunking", "independent", "int64")
KEY = b"key of every fake memory"
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class _Session:
    revision: int = 0
    encoded_revision: int = 0


@dataclass
class StoredUser:
    """Everything a `FakeStore` keeps of one user; tests may look and plant."""

    turns: dict[str, Turn] = field(default_factory=dict)
    sessions: dict[str, _Session] = field(default_factory=dict)
    chunks: list[StoredChunk] = field(default_factory=list)
    state: StoredState | None = None
    adapters: dict[int, StoredAdapter] = field(default_factory=dict)
    recipes: dict[int, list[StoredChunk]] = field(default_factory=dict)
    version: int = 0
    tombstones: dict[bytes, set[str]] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)
    quarantined: list[QuarantinedChunk] = field(default_factory=list)


class FakeStore:
    """Satisfies `OpenUnit`: readers see a snapshot, writers queue and see the newest rows."""

    def __init__(self) -> None:
        self.users: dict[MemoryId, StoredUser] = {}
        self.writing = asyncio.Lock()

    def __call__(self) -> "FakeUnit":
        return FakeUnit(self)


class FakeUnit:
    """One transaction on a `FakeStore`."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._users: dict[MemoryId, StoredUser] | None = None
        self._writes = False

    @property
    def memories(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)
        self._end()

    async def commit(self) -> None:
        await asyncio.sleep(0)
        if self._writes and self._users is not None:
            self._store.users = self._users
        self._end()

    async def add_turns(self, memory_id: MemoryId, turns: Sequence[Turn]) -> list[Arrival]:
        if not turns:
            return []
        users = await self._write()
        user = users.setdefault(memory_id, StoredUser())
        arrivals, changed = [], {}
        for turn in turns:
            if buried(user.tombstones.items(), [turn.id]):
                arrivals.append(Arrival.FORGOTTEN)
                continue
            known = user.turns.setdefault(turn.id, turn)
            if known != turn:
                raise StateConflict(f"turn {turn.id}", "is already known with other content")
            arrivals.append(Arrival.NEW if known is turn else Arrival.KNOWN)
            if known is turn:
                changed[turn.session] = True
        for name in changed:
            user.sessions.setdefault(name, _Session()).revision += 1
        return arrivals

    async def head(self, memory_id: MemoryId) -> Head:
        user = await self._read(memory_id)
        pending = len(await self.pending_turn_ids(memory_id))
        return Head(memory_id, user.version, BEGINNING, len(user.turns), pending)

    async def turns(self, memory_id: MemoryId, **_: Any) -> list[Turn]:
        user = await self._read(memory_id)
        return sorted(user.turns.values(), key=lambda turn: turn.order)

    async def latest_turns(
        self,
        memory_id: MemoryId,
        *,
        session: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int,
    ) -> list[Turn]:
        turns = [turn for turn in await self.turns(memory_id) if session in {None, turn.session}]
        return [turn for turn in turns if before is None or turn.order < before][-limit:]

    async def turns_by_id(self, memory_id: MemoryId, turn_ids: Iterable[str]) -> dict[str, Turn]:
        wanted = set(turn_ids)
        return {turn.id: turn for turn in await self.turns(memory_id) if turn.id in wanted}

    async def pending_memories(self) -> list[MemoryId]:
        await asyncio.sleep(0)
        users = self._store.users
        return [one for one in users if await self.pending_sessions(one)]

    async def recipe_tokens(self, memory_id: MemoryId, version: int) -> int:
        return sum(chunk.tokens for chunk in (await self._read(memory_id)).chunks)

    async def pending_turn_ids(self, memory_id: MemoryId) -> set[str]:
        return {
            turn.id
            for session in await self.pending_sessions(memory_id)
            for turn in session.turns
            if not any(
                turn.id in chunk.turn_ids for chunk in (*session.chunks, *session.quarantined)
            )
        }

    async def pending_sessions(self, memory_id: MemoryId) -> list[PendingSession]:
        user = await self._read(memory_id)
        return [
            await self._session(memory_id, name)
            for name, session in user.sessions.items()
            if session.revision != session.encoded_revision
        ]

    async def sessions_of(
        self, memory_id: MemoryId, turn_ids: Collection[str]
    ) -> list[PendingSession]:
        user = await self._read(memory_id)
        names = {turn.session for turn in user.turns.values() if turn.id in turn_ids}
        return [await self._session(memory_id, name) for name in user.sessions if name in names]

    async def _session(self, memory_id: MemoryId, name: str) -> PendingSession:
        user = await self._read(memory_id)
        turns = await self.turns(memory_id)
        return PendingSession(
            name,
            user.sessions[name].revision,
            tuple(turn for turn in turns if turn.session == name and turn.id not in user.aside),
            tuple(chunk for chunk in user.chunks if chunk.session == name),
            quarantined=tuple(chunk for chunk in user.quarantined if chunk.session == name),
        )

    async def quarantined(self, memory_id: MemoryId) -> list[QuarantinedChunk]:
        return list((await self._read(memory_id)).quarantined)

    async def release_quarantined(self, memory_id: MemoryId) -> int:
        user = (await self._write())[memory_id]
        released, user.quarantined = user.quarantined, []
        for name in {chunk.session for chunk in released}:
            user.sessions[name].revision += 1
        return len(released)

    async def turns_set_aside(self, memory_id: MemoryId) -> set[str]:
        return set((await self._read(memory_id)).aside)

    async def set_aside(
        self, memory_id: MemoryId, *, aside: Collection[str], back: Collection[str]
    ) -> None:
        user = (await self._write())[memory_id]
        user.aside = (user.aside | set(aside)) - set(back)

    async def set_expiry(self, memory_id: MemoryId, dates: Mapping[str, datetime | None]) -> None:
        user = (await self._write())[memory_id]
        for turn_id in user.turns.keys() & dates.keys():
            user.turns[turn_id] = replace(user.turns[turn_id], expires_at=dates[turn_id])

    async def chunks(self, memory_id: MemoryId, version: int | None = None) -> list[StoredChunk]:
        user = await self._read(memory_id)
        if version is None:
            return list(user.chunks)
        if version not in user.recipes:
            raise NotFound("version", f"{memory_id.user}@{version}")
        return list(user.recipes[version])

    async def mark_all_pending(self, memory_id: MemoryId) -> None:
        user = (await self._write()).get(memory_id)
        if user is None:
            raise NotFound("user", memory_id.user)
        user.chunks, user.state, user.quarantined = [], None, []
        for session in user.sessions.values():
            session.revision += 1

    async def state(self, memory_id: MemoryId) -> StoredState | None:
        return (await self._read(memory_id)).state

    async def adapter(self, memory_id: MemoryId, version: int | None = None) -> StoredAdapter:
        user = await self._read(memory_id)
        if not user.adapters:
            raise NotFound("adapter", memory_id.user)
        if (version or user.version) not in user.adapters:
            raise NotFound("version", str(version))
        return user.adapters[version or user.version]

    async def adapters(
        self, memory_id: MemoryId, *, before: int | None = None, limit: int = 100
    ) -> list[StoredAdapter]:
        user = await self._read(memory_id)
        versions = sorted((v for v in user.adapters if before is None or v < before), reverse=True)
        return [replace(user.adapters[version], readouts=None) for version in versions[:limit]]

    async def write_version(self, memory_id: MemoryId, change: NewVersion) -> int:
        user = (await self._write())[memory_id]
        vanished = {chunk.digest for chunk in change.vanished}
        known = {chunk.digest for chunk in user.chunks}
        if change.expected_version != user.version or not vanished <= known:
            raise StateConflict("memory", "another writer came first")
        user.version += 1
        user.state = change.state
        kept = [chunk for chunk in user.chunks if chunk.digest not in vanished]
        user.chunks = [*kept, *change.appeared]
        user.recipes[user.version] = user.chunks
        for name, revision in change.sessions.items():
            user.sessions[name].encoded_revision = revision
        others = [chunk for chunk in user.quarantined if chunk.session not in change.sessions]
        user.quarantined = [*others, *change.quarantined]
        user.adapters[user.version] = StoredAdapter(
            version=user.version,
            fingerprint=change.state.fingerprint,
            reason=change.reason,
            created_at=BEGINNING,
            state_digest=change.state.digest,
            chunks=len(user.chunks),
            turns=len(user.turns),
            size_bytes=change.readouts.nbytes,
            readouts=change.readouts,
        )
        return user.version

    async def erase_turns(self, memory_id: MemoryId, turn_ids: Collection[str]) -> Erased:
        user = (await self._write())[memory_id]
        if any(set(chunk.turn_ids) & set(turn_ids) for chunk in user.chunks):
            raise StateConflict("memory", "another writer came first")
        gone = set(turn_ids) & set(user.turns)
        if not gone:
            raise NotFound("turn", str(turn_ids))
        user.turns = {id_: turn for id_, turn in user.turns.items() if id_ not in gone}
        kept = {turn.session for turn in user.turns.values()}
        emptied = set(user.sessions) - kept
        user.sessions = {name: one for name, one in user.sessions.items() if name in kept}
        user.tombstones.setdefault(KEY, set()).update(tombstone(KEY, id_) for id_ in gone)
        user.aside -= gone
        had = len(user.adapters)
        named = [
            version
            for version, recipe in user.recipes.items()
            if any(set(chunk.turn_ids) & gone for chunk in recipe)
        ]
        for version in named:
            user.recipes[version] = [
                replace(chunk, turn_ids=rest) if rest != chunk.turn_ids else chunk
                for chunk in user.recipes[version]
                for rest in [tuple(id_ for id_ in chunk.turn_ids if id_ not in gone)]
                if rest
            ]
            user.adapters.pop(version, None)
        return Erased(len(gone), len(emptied), len(named), had - len(user.adapters))

    async def tombstones(self, memory_id: MemoryId) -> Tombstones:
        return (await self._read(memory_id)).tombstones

    async def bury(self, memory_id: MemoryId, tombstones: Tombstones) -> None:
        user = (await self._write()).setdefault(memory_id, StoredUser())
        for key, hashes in tombstones.items():
            user.tombstones.setdefault(key, set()).update(hashes)

    async def delete_user(self, memory_id: MemoryId) -> dict[str, int]:
        user = (await self._write()).pop(memory_id, None)
        if user is None:
            raise NotFound("user", memory_id.user)
        return {"turns": len(user.turns), "chunks": len(user.chunks)}

    async def _read(self, memory_id: MemoryId) -> StoredUser:
        await asyncio.sleep(0)
        if self._users is None:
            self._users = copy.deepcopy(self._store.users)
        if memory_id not in self._users:
            raise NotFound("user", memory_id.user)
        return self._users[memory_id]

    async def _write(self) -> dict[MemoryId, StoredUser]:
        await asyncio.sleep(0)
        if not self._writes:
            await self._store.writing.acquire()
            self._writes = True
            self._users = copy.deepcopy(self._store.users)
        assert self._users is not None
        return self._users

    def _end(self) -> None:
        if self._writes:
            self._store.writing.release()
        self._writes, self._users = False, None


class FakeEncoder:
    """Updates are a few integers made from a chunk's digest, and from the state where sequential.

    `interrupt` is called before every encoding; it may raise. `encoded` lists what was encoded.
    """

    def __init__(self, fingerprint: Fingerprint = FINGERPRINT, budget_tokens: int = 64) -> None:
        self.fingerprint = fingerprint
        self.budget_tokens = budget_tokens
        self.interrupt: Callable[[Chunk], None] = lambda chunk: None
        self.encoded: list[Chunk] = []

    def chunk(self, turns: Sequence[Turn]) -> list[Chunk]:
        return chunk_session(turns, self.budget_tokens, self.count_tokens)

    def count_tokens(self, text: str) -> int:
        return len(text.encode())

    def encode(self, chunk: Chunk, state: Tensor | None = None) -> Tensor:
        self.interrupt(chunk)
        self.encoded.append(chunk)
        content = self.fingerprint.generator + chunk.digest
        if self.fingerprint.encoding == "sequential":
            content += digest(self.empty_state() if state is None else state)
        numbers = hashlib.sha256(content.encode()).digest()[:6]
        return torch.tensor(list(numbers), dtype=torch.int64).reshape(1, 2, 3) - 128

    def gauge(self, state: Tensor, prompt: Sequence[Message] = (), answer: str = "") -> Tensor:
        return torch.ones_like(state).float()

    def weigh(self, chunk: Chunk, gauges: Sequence[Tensor]) -> list[dict[str, float]]:
        """A turn's share is the number of its letters."""
        share: dict[str, float] = dict.fromkeys(chunk.turn_ids, 0.0)
        for line in chunk.lines:
            share[line.turn_id] += len(line.text)
        return [dict(share) for _ in gauges]

    def empty_state(self) -> Tensor:
        return torch.zeros(1, 2, 3, dtype=torch.int64)

    def read_out(self, state: Tensor) -> Tensor:
        return state[..., :1].float()


def sequential() -> FakeEncoder:
    """A fake whose updates depend on the chunks before."""
    return FakeEncoder(replace(FINGERPRINT, encoding="sequential"))


class FakeBackend:
    """Answers with the words it was made with; one piece a word, the loop running in between."""

    def __init__(self, answer: str = "Your dog is called Rex.") -> None:
        self.words = answer.split()
        self.asked: list[tuple[Sequence[Message], AppliedAdapter | None, Sampling]] = []
        self.withdrawn: list[MemoryId] = []
        self.closed = 0

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    async def stream(
        self,
        messages: Sequence[Message],
        adapter: AppliedAdapter | None,
        sampling: Sampling,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[str | Generation, None]:
        self.asked.append((messages, adapter, sampling))
        try:
            for number, word in enumerate(self.words):
                await asyncio.sleep(0)
                yield f" {word}" if number else word
            yield Generation(" ".join(self.words), 1, len(self.words), 0.0, 0.0)
        finally:
            self.closed += 1

    def withdraw(self, memory_id: MemoryId) -> None:
        self.withdrawn.append(memory_id)
