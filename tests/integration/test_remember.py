"""Remembering with the real encoder and real databases: exact, whatever arrives how."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import update

from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn
from memory_service.errors import IncompatibleState, NotFound, StateConflict, Unavailable
from memory_service.generator.state import digest
from memory_service.services.forget import Forget
from memory_service.services.recall import Recall
from memory_service.storage.tables import ChunkRow
from tests.helpers.histories import arrivals, digest_of, turn
from tests.helpers.remembering import OTHER, RIDGE, SEQUENTIAL, Memory, opened

LONG = [turn(number, f"{number} Rex") for number in range(0, 20, 2)]
LATE = turn(3, "cat")
"""Moves every chunk of `LONG`, which has four."""


@pytest.fixture
async def memory(database_url: str) -> AsyncIterator[Memory]:
    async with opened(database_url) as made:
        yield made


REUSED_DATABASE = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(pieces=arrivals(most=6))
@settings(REUSED_DATABASE, max_examples=8)
def test_any_arrival_gives_the_state_of_all_at_once(database_url, pieces):
    async def arrive() -> None:
        async with opened(database_url) as memory:
            for piece in pieces:
                await memory.append(*piece)
            await memory.check([one for piece in pieces for one in piece])

    asyncio.run(arrive())


@given(pieces=arrivals(most=5))
@settings(REUSED_DATABASE, max_examples=4)
def test_sequential_any_arrival_gives_the_state_of_all_at_once(database_url, pieces):
    async def arrive() -> None:
        async with opened(database_url, SEQUENTIAL) as memory:
            for piece in pieces:
                await memory.append(*piece)
            await memory.check([one for piece in pieces for one in piece])

    asyncio.run(arrive())


async def test_append_only_never_rebuilds(database_url):
    for encoder in (RIDGE, SEQUENTIAL):
        async with opened(database_url, encoder) as memory:
            for one in LONG:
                await memory.append(one)
            await memory.check(LONG)
            assert set(await memory.reasons()) == {"append"}


async def test_sequential_late_turn_triggers_a_rebuild(database_url):
    async with opened(database_url, SEQUENTIAL) as memory:
        await memory.append(*LONG)
        await memory.append(LATE)
        assert await memory.reasons() == ["append", "rebuild"]
        await memory.check([*LONG, LATE])


async def test_states_survive_the_process(memory, database_url):
    await memory.append(*LONG[:3])
    async with opened(database_url) as again:
        again.id = memory.id
        await again.append(*LONG[3:])
        await again.check(LONG)


async def test_known_id_with_another_text_is_a_conflict_and_stores_nothing(memory):
    await memory.append(*LONG)
    with pytest.raises(StateConflict, match="t004"):
        await memory.append(turn(20), turn(4, "another text"))
    assert await memory.append(LONG[0]) == 1
    await memory.check(LONG)


async def test_two_tasks_appending_to_one_user_lose_nothing(memory):
    turns = [turn(number, session="ab"[number % 2]) for number in range(12)]

    async def write(mine: list[Turn]) -> None:
        for one in mine:
            await memory.append(one)

    await asyncio.gather(write(turns[::2]), write(turns[1::2]), write(turns[:4]))
    await memory.check(turns)


async def test_many_users_at_once_do_not_mix(database_url):
    memories = [Memory(database_url, RIDGE) for _ in range(4)]
    try:
        await asyncio.gather(*(one.append(turn(number)) for number, one in enumerate(memories)))
        for number, one in enumerate(memories):
            await one.check([turn(number)])
    finally:
        for one in memories:
            one.compute.close()
            await one.engine.dispose()


async def test_chunk_that_cannot_be_reproduced_forces_a_rebuild(memory):
    await memory.append(*LONG)
    async with memory.engine.begin() as connection:
        await connection.execute(update(ChunkRow).values(update_digest="0" * 64))
    await memory.append(LATE)
    assert await memory.reasons() == ["append", "rebuild"]
    await memory.check([*LONG, LATE])


async def test_late_turn_subtracts_where_chunks_are_reproduced(memory):
    await memory.append(*LONG)
    await memory.append(LATE)
    assert await memory.reasons() == ["append", "append"]
    await memory.check([*LONG, LATE])


async def test_failed_encoding_leaves_the_turns_and_the_next_append_recovers(memory, monkeypatch):
    await memory.append(LONG[0])

    def fail(*_: object) -> None:
        raise Unavailable("base model", "is out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(memory.encoder, "encode", fail)
        with pytest.raises(Unavailable):
            await memory.append(LONG[1])
    assert await memory.pending() == {LONG[1].id}
    assert await memory.state_digest() == digest_of(RIDGE, LONG[:1])
    await memory.append(LONG[2])
    await memory.check(LONG[:3])


def test_interrupt_while_encoding_leaves_the_turns_stored(database_url, monkeypatch):
    encode = RIDGE.encode

    def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return encode(*arguments)

    async def interrupted() -> None:
        async with opened(database_url) as memory:
            memory.id = MemoryId("interrupted")
            await memory.append(*LONG)

    async def later() -> None:
        async with opened(database_url) as memory:
            memory.id = MemoryId("interrupted")
            assert await memory.pending() == {one.id for one in LONG}
            assert await memory.remember.encode_pending(memory.id) == 1
            await memory.check(LONG)

    with monkeypatch.context() as patch:
        patch.setattr(RIDGE, "encode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(interrupted())
    asyncio.run(later())


async def test_state_of_another_generator_is_refused_until_it_is_rebuilt(memory, database_url):
    await memory.append(*LONG)
    async with opened(database_url, OTHER) as other:
        other.id = memory.id
        with pytest.raises(IncompatibleState) as caught:
            await other.append(LATE)
        for part in (RIDGE.fingerprint.short, OTHER.fingerprint.short, "memory users migrate"):
            assert part in str(caught.value)
        with pytest.raises(IncompatibleState):
            await Recall(other.open_unit, OTHER).adapter(memory.id)
        assert await memory.pending() == {LATE.id}
        assert await other.remember.rebuild(memory.id) == 2
        await other.check([*LONG, LATE])


async def test_rebuild_gives_the_same_bits(memory):
    await memory.append(*LONG)
    before = await memory.state_digest()
    await memory.remember.rebuild(memory.id)
    assert await memory.state_digest() == before
    await memory.check(LONG)


async def test_forgotten_user_begins_anew(memory):
    await memory.append(*LONG)
    deleted = await Forget(memory.open_unit).user(memory.id)
    assert deleted["turns"] == len(LONG)
    with pytest.raises(NotFound):
        await memory.remember.encode_pending(memory.id)
    await memory.append(LATE)
    await memory.check([LATE])


async def test_state_is_the_sum_of_the_stored_updates(memory):
    await memory.append(*LONG)
    async with memory.open_unit() as unit:
        chunks = await unit.memories.chunks(memory.id)
    updates = {chunk.digest: RIDGE.encode(chunk) for chunk in RIDGE.chunk(LONG)}
    assert {chunk.digest: chunk.update_digest for chunk in chunks} == {
        name: digest(update) for name, update in updates.items()
    }
    assert await memory.state_digest() == digest(sum(updates.values(), RIDGE.empty_state()))
