"""Growth: what a turn and a chat cost as a memory grows, and as a database fills with others.

The user that is measured is encoded by the real model. The others are rows without meaning, of
narrow states: what they can slow down is the database, not the model.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from statistics import median

import torch

from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.domain.records import NewVersion, PendingSession, StoredState
from memory_service.domain.turns import Turn, new_turn
from memory_service.generator.state import digest
from memory_service.services.append import Append
from memory_service.services.exchange import Asked, Exchange, Mode
from memory_service.services.ports import OpenUnit
from memory_service.services.remember import Remember

SESSION_TURNS = 50
TRIES = 5
USERS_A_COMMIT = 200
NARROW = (1, 2, 2)
"""Layers, keys and columns of the states of those who only fill the database."""

QUESTION = "What do you remember about my week?"
TALE = (
    "went market Saturday bought apples bread lamp kitchen sister called library Leeds dog slept "
    "afternoon cousin train garden rain letter piano doctor cake river bicycle window summer"
)
WORDS = TALE.split()
NOBODY = Fingerprint("filler", "filler", "filler", "filler", "filler", "filler")


@dataclass(frozen=True)
class Parts:
    """What is needed of a service."""

    open_unit: OpenUnit
    append: Append
    remember: Remember
    exchange: Exchange


@dataclass(frozen=True)
class Cost:
    """Medians at one size: of a turn, of a chat right after it (nothing cached), and bytes kept.

    `append_ms` is until a turn is durable, `encode_ms` until it is in the adapter.
    """

    turns: int
    users: int
    append_ms: float
    encode_ms: float
    first_token_ms: float
    prompt_tokens: int
    adapter_bytes: int


async def grow_user(
    parts: Parts, marks: Sequence[int], report: Callable[[int, int], None]
) -> AsyncIterator[Cost]:
    """One user's costs with so many turns; `report` gets turns done and to do."""
    user, random = MemoryId("grows"), Random(0)  # noqa: S311  # not security
    there = 0
    for mark in sorted(set(marks)):
        while there < mark:
            count = min(SESSION_TURNS - there % SESSION_TURNS, mark - there)
            session = f"session {there // SESSION_TURNS}"
            await parts.append.turns(user, [said(random, session) for _ in range(count)])
            await parts.remember.encode_pending(user)
            there += count
            report(there, max(marks))
        yield await _cost(parts, user, random, mark, 1)


async def fill_with_users(
    parts: Parts, marks: Sequence[int], report: Callable[[int, int], None]
) -> AsyncIterator[Cost]:
    """One user's costs among so many; `report` gets users done and to do."""
    user, random = MemoryId("among others"), Random(1)  # noqa: S311  # not security
    turns = 10
    await parts.append.turns(user, [said(random, "session 0") for _ in range(turns)])
    await parts.remember.encode_pending(user)
    there = 1
    for mark in sorted(set(marks)):
        while there < mark:
            count = min(USERS_A_COMMIT, mark - there)
            await _fill(parts.open_unit, there, count, random)
            there += count
            report(there, max(marks))
        yield await _cost(parts, user, random, turns, mark)


async def _cost(parts: Parts, user: MemoryId, random: Random, turns: int, users: int) -> Cost:
    appended, encoded, first, prompt_tokens = [], [], [], 0
    for number in range(TRIES + 1):
        started = time.perf_counter()
        session = f"today, with {turns} turns and {users} users"
        await parts.append.turns(user, [said(random, session)])
        stored = time.perf_counter()
        await parts.remember.encode_pending(user)
        done = time.perf_counter()
        first_token_s, prompt_tokens = await _chat(parts.exchange, user)
        if number:  # the first finds nothing warm
            appended.append(stored - started)
            encoded.append(done - stored)
            first.append(first_token_s)
    async with parts.open_unit() as unit:
        adapter = await unit.memories.adapter(user)
    return Cost(
        turns=turns,
        users=users,
        append_ms=1000 * median(appended),
        encode_ms=1000 * median(encoded),
        first_token_ms=1000 * median(first),
        prompt_tokens=prompt_tokens,
        adapter_bytes=adapter.size_bytes,
    )


async def _chat(exchange: Exchange, user: MemoryId) -> tuple[float, int]:
    """Seconds to the first token of a question in a new session, and its prompt's tokens."""
    asked = Asked(
        [Message("user", QUESTION)], Sampling(max_new_tokens=1), user, Mode.READ, session="asked"
    )
    started = time.perf_counter()
    first_s: float | None = None
    prompt_tokens = 0
    async with exchange.begin(asked) as begun, aclosing(begun.pieces):
        async for piece in begun.pieces:
            first_s = first_s or time.perf_counter() - started
            if isinstance(piece, Generation):
                prompt_tokens = piece.prompt_tokens
    return first_s or 0.0, prompt_tokens


async def _fill(open_unit: OpenUnit, start: int, count: int, random: Random) -> None:
    """Store others with a turn, a state and an adapter each, in one commit."""
    async with open_unit() as unit:
        for number in range(start, start + count):
            other = MemoryId(f"other {number}")
            await unit.memories.add_turns(other, [said(random, "session 0")])
            (pending,) = await unit.memories.pending_sessions(other)
            change = filler(number, [pending])
            await unit.memories.write_version(other, change)
        await unit.commit()


def filler(number: int, sessions: Sequence[PendingSession]) -> NewVersion:
    """The first version of somebody who only fills the database: narrow, and without meaning."""
    total = torch.full(NARROW, number % 1000, dtype=torch.int64)
    return NewVersion(
        expected_version=0,
        reason="filled",
        state=StoredState(NOBODY, total, None, None, digest(total)),
        readouts=torch.zeros(NARROW),
        appeared=(),
        vanished=(),
        sessions={session.name: session.revision for session in sessions},
    )


def said(random: Random, session: str) -> Turn:
    """A turn of twelve ordinary words."""
    text = " ".join(random.choice(WORDS) for _ in range(12))
    return new_turn(f"{text}.", session=session)
