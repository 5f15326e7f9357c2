"""What is over is forgotten with the real encoder, to the last bit, and blocks nobody."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Receipt, Removal
from memory_service.errors import NotFound, Unavailable
from memory_service.services import expire_turns
from memory_service.services.expire_turns import ExpireTurns
from memory_service.services.expiry import Expiry
from tests.helpers.histories import START, turn
from tests.helpers.remembering import Memory, opened

LONG = [turn(number, f"{number} Rex") for number in range(0, 20, 2)]
OVER = START + timedelta(days=1)


@pytest.fixture
async def memory(database_url: str) -> AsyncIterator[Memory]:
    async with opened(database_url) as made:
        yield made


def expiring(memory: Memory, told: list[Receipt] | None = None) -> ExpireTurns:
    async def tell(_: MemoryId, receipt: Receipt) -> None:
        if told is not None:
            told.append(receipt)

    forget = partial(memory.forget.turns, reason="expire")
    return ExpireTurns(Expiry(memory.open_unit), forget, tell)


async def test_the_adapter_is_that_of_a_memory_that_never_saw_them(memory: Memory) -> None:
    for number, one in enumerate(LONG):
        await memory.append(replace(one, expires_at=OVER) if number in {2, 7} else one)
    told: list[Receipt] = []
    gone = [one async for one in expiring(memory, told).all() if one.memory_id == memory.id]
    assert [one.receipt.erased.turns for one in gone] == [2]
    assert gone[0].receipt.removal is Removal.SUBTRACTED
    assert gone[0].receipt in told
    await memory.check([one for number, one in enumerate(LONG) if number not in {2, 7}])
    assert (await memory.reasons())[-1] == "expire"
    assert [one async for one in expiring(memory).all() if one.memory_id == memory.id] == []
    await memory.append(*LONG)  # a retry brings nothing back
    await memory.check([one for number, one in enumerate(LONG) if number not in {2, 7}])


async def test_a_memory_that_cannot_be_changed_now_blocks_nobody(memory: Memory) -> None:
    expiry = Expiry(memory.open_unit)
    others = [MemoryId(f"{memory.id.user}-{number}") for number in range(3)]
    for one in others:
        await memory.remember.append(one, [replace(LONG[0], expires_at=OVER), LONG[1]])

    async def forget(memory_id: MemoryId, turn_ids: object) -> Receipt:
        if memory_id == others[0]:
            raise Unavailable("database", "is locked")
        if memory_id == others[1]:
            raise NotFound("turn", "somebody else was first")
        return await memory.forget.turns(memory_id, {LONG[0].id})

    gone = [one.memory_id async for one in ExpireTurns(expiry, forget).all()]
    assert others[2] in gone
    assert not set(others[:2]) & set(gone)
    assert set(others[:2]) <= set(await expiry.due())


async def test_a_server_looks_again_and_again(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_turns, "LOOK_S", 0.01)
    expire = expiring(memory)
    expire.start()
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await memory.append(LONG[0], replace(LONG[1], expires_at=soon))
    async with asyncio.timeout(30):
        while await memory.pending() or len(await kept(memory)) > 1:
            await asyncio.sleep(0.02)
    assert datetime.now(UTC) >= soon
    await expire.stop()
    await memory.check(LONG[:1])


async def kept(memory: Memory) -> list[str]:
    async with memory.open_unit() as unit:
        return [one.id for one in await unit.memories.turns(memory.id)]
