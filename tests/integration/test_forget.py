"""Forgetting with the real encoder and real databases: bit-equal to never having seen it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text, update

from memory_service.domain.records import Removal
from memory_service.errors import NotFound
from memory_service.generator.state import digest
from memory_service.services.recall import Recall
from memory_service.storage.tables import ChunkRow
from tests.helpers.databases import contents_of
from tests.helpers.histories import digest_of, histories, turn
from tests.helpers.remembering import OTHER, RIDGE, SEQUENTIAL, Memory, opened

LONG = [turn(number, f"{number} Rex") for number in range(0, 20, 2)]
"""One session of four chunks."""


@pytest.fixture
async def memory(database_url: str) -> AsyncIterator[Memory]:
    async with opened(database_url) as made:
        yield made


async def test_a_middle_turn_is_subtracted_to_the_last_bit(memory):
    for one in LONG:
        await memory.append(one)
    receipt = await memory.forget.turns(memory.id, [LONG[4].id])
    assert receipt.removal is Removal.SUBTRACTED
    await memory.check([*LONG[:4], *LONG[5:]])
    assert receipt.state_digest == digest_of(RIDGE, [*LONG[:4], *LONG[5:]])
    assert (await memory.reasons())[-1] == "forget"


@given(history=histories(most=6), data=st.data())
@settings(
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_turns_of_any_history(database_url, history, data):
    gone = data.draw(st.sets(st.sampled_from(history), min_size=1))
    kept = [one for one in history if one not in gone]

    async def forget() -> None:
        async with opened(database_url) as memory:
            for one in history:
                await memory.append(one)
            await memory.forget.turns(memory.id, [one.id for one in gone])
            await memory.append(*history)  # a retry brings nothing back
            await memory.check(kept)

    asyncio.run(forget())


async def test_everything_forgotten_is_the_state_of_nothing(memory):
    await memory.append(*LONG)
    receipt = await memory.forget.turns(memory.id, [one.id for one in LONG])
    assert receipt.state_digest == digest(RIDGE.empty_state())
    await memory.check([])


async def test_a_planted_digest_withdraws_the_adapter_and_rebuilds(memory, monkeypatch):
    await memory.append(*LONG)
    async with memory.engine.begin() as connection:
        await connection.execute(update(ChunkRow).values(update_digest="0" * 64))
    recall = Recall(memory.open_unit, RIDGE)

    async def die(*_: object) -> None:
        raise NotFound("base model", "gone")  # before anything is encoded

    with monkeypatch.context() as patch:
        patch.setattr(memory.remember, "encode_pending", die)
        receipt = await memory.forget.turns(memory.id, [LONG[0].id])
    assert receipt.removal is Removal.WITHDRAWN
    assert "does not reproduce" in receipt.reason
    with pytest.raises(NotFound, match="were forgotten"):
        await recall.adapter(memory.id)
    await memory.remember.encode_pending(memory.id)
    await memory.check(LONG[1:])


async def test_a_planted_digest_is_told_in_the_receipt(memory):
    await memory.append(*LONG)
    async with memory.engine.begin() as connection:
        await connection.execute(update(ChunkRow).values(update_digest="0" * 64))
    receipt = await memory.forget.turns(memory.id, [LONG[0].id])
    assert (receipt.removal, receipt.version) == (Removal.REBUILT, 2)
    assert receipt.state_digest == digest_of(RIDGE, LONG[1:])
    await memory.check(LONG[1:])


async def test_another_generator_rebuilds_what_is_kept(memory, database_url):
    await memory.append(*LONG)
    async with opened(database_url, OTHER) as other:
        other.id = memory.id
        receipt = await other.forget.turns(memory.id, [LONG[0].id])
        assert receipt.removal is Removal.REBUILT
        await other.check(LONG[1:])


async def test_sequential_encoding_replays(database_url):
    async with opened(database_url, SEQUENTIAL) as memory:
        await memory.append(*LONG)
        receipt = await memory.forget.turns(memory.id, [LONG[3].id])
        assert receipt.removal is Removal.REBUILT
        await memory.check([*LONG[:3], *LONG[4:]])


async def test_edit_and_rollback_are_exact_too(memory):
    for one in LONG:
        await memory.append(one)
    receipt = await memory.edit.turn(memory.id, LONG[4].id, "4 cat", "new")
    edited = [*LONG[:4], replace(LONG[4], text="4 cat", id="new"), *LONG[5:]]
    assert (receipt.removal, receipt.state_digest) == (
        Removal.SUBTRACTED,
        digest_of(RIDGE, edited),
    )
    await memory.check(edited)
    receipt = await memory.rollback.version(memory.id, 3)
    assert receipt.state_digest == digest_of(RIDGE, LONG[:3])
    receipt = await memory.rollback.as_of(memory.id, LONG[-1].time)
    assert receipt.state_digest == digest_of(RIDGE, edited)
    await memory.check(edited)


async def test_two_at_once_forget_and_append_without_loss(memory):
    await memory.append(*LONG)
    late = [turn(number, session="late") for number in range(1, 9, 2)]
    await asyncio.gather(
        memory.forget.turns(memory.id, [LONG[0].id]),
        memory.forget.turns(memory.id, [LONG[7].id]),
        *(memory.append(one) for one in late),
    )
    await memory.remember.encode_pending(memory.id)
    await memory.check([*LONG[1:7], *LONG[8:], *late])


async def test_a_forgotten_word_is_in_no_file(sqlite_path: Path):
    async with opened(f"sqlite:///{sqlite_path}") as memory:
        said = [turn(number, f"{number} rex") for number in range(6)]
        secret = turn(7, "xylophone " * 40)
        for one in (*said[:3], secret, *said[3:]):
            await memory.append(one)
        assert "xylophone" in contents_of(sqlite_path.parent)
        await memory.forget.turns(memory.id, [secret.id])
        left = contents_of(sqlite_path.parent)
        assert "xylophone" not in left
        assert secret.id not in left
        await memory.check(said)
        assert sqlite_path.with_name("memory.db-wal").stat().st_size == 0


async def test_postgresql_keeps_no_row_of_it(memory, database_kind):
    """Its files are the server's: see docs/decisions/0006 on what VACUUM does there."""
    if database_kind != "postgresql":
        pytest.skip("SQLite's files are searched above")
    secret = turn(1, "xylophone " * 40)
    await memory.append(turn(0), secret)
    await memory.forget.turns(memory.id, [secret.id])
    async with memory.engine.connect() as connection:
        for table in ("turns", "sessions", "chunks", "versions", "states", "adapters"):
            rows = await connection.scalars(text(f"SELECT CAST({table} AS TEXT) FROM {table}"))
            assert not [row for row in rows if "xylophone" in row or secret.id in row]
