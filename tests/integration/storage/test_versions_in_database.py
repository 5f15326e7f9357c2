"""Versions, recipes, states and adapters, on both databases."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_service.domain.memory import Fingerprint
from memory_service.domain.records import NewVersion
from memory_service.errors import IncompatibleState, NotFound, StateConflict
from memory_service.storage.unit_of_work import UnitOfWork
from tests.integration.storage.records import (
    ANN,
    FINGERPRINT,
    change,
    chunk,
    readouts,
    revisions,
    state,
    turn,
)

OpenUnit = Callable[[], UnitOfWork]


async def append(open_unit: OpenUnit, *numbers: int, session: str = "s") -> dict[str, int]:
    async with open_unit() as unit:
        await unit.memories.add_turns(ANN, [turn(number, session=session) for number in numbers])
        await unit.commit()
        return await revisions(unit)


async def write(open_unit: OpenUnit, made: NewVersion) -> int:
    async with open_unit() as unit:
        version = await unit.memories.write_version(ANN, made)
        await unit.commit()
    return version


async def write_many(open_unit: OpenUnit, count: int) -> None:
    """Versions 1 to `count`; each replaces the open chunk by a longer one."""
    for number in range(count):
        seen = await append(open_unit, number)
        vanished = [chunk(*range(number))] if number else []
        made = change(number, seen, appeared=[chunk(*range(number + 1))], vanished=vanished)
        assert await write(open_unit, made) == number + 1


async def test_before_the_first_version_there_is_nothing(open_unit: OpenUnit) -> None:
    await append(open_unit, 1)
    async with open_unit() as unit:
        assert await unit.memories.state(ANN) is None
        assert await unit.memories.chunks(ANN) == []
        assert await unit.memories.adapters(ANN) == []
        with pytest.raises(NotFound, match="none of its turns was encoded yet"):
            await unit.memories.adapter(ANN)
        with pytest.raises(NotFound, match="ann@1"):
            await unit.memories.adapter(ANN, 1)


@pytest.mark.parametrize("open_chunk", [None, chunk(1).digest])
async def test_a_state_comes_back_to_the_last_bit(
    open_unit: OpenUnit, open_chunk: str | None
) -> None:
    seen = await append(open_unit, 1)
    kept = state(7, open_chunk=open_chunk)
    await write(open_unit, replace(change(0, seen, appeared=[chunk(1)]), state=kept))
    async with open_unit() as unit:
        found = await unit.memories.state(ANN)
    assert found is not None
    assert (found.fingerprint, found.digest, found.open_chunk) == (
        FINGERPRINT,
        kept.digest,
        open_chunk,
    )
    assert torch.equal(found.closed, kept.closed)
    if kept.open_update is None:
        assert found.open_update is None
    else:
        assert found.open_update is not None
        assert torch.equal(found.open_update, kept.open_update)


async def test_a_new_state_replaces_the_old(open_unit: OpenUnit) -> None:
    await write_many(open_unit, 2)
    async with open_unit() as unit:
        found = await unit.memories.state(ANN)
    assert found is not None
    assert found.digest == state(1).digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
async def test_an_adapter_comes_back_to_the_last_bit(
    open_unit: OpenUnit, dtype: torch.dtype
) -> None:
    seen = await append(open_unit, 1, 2)
    tensor = readouts(3).to(dtype)
    await write(
        open_unit,
        replace(change(0, seen, appeared=[chunk(1), chunk(2)], reason="import"), readouts=tensor),
    )
    async with open_unit() as unit:
        found = await unit.memories.adapter(ANN)
    assert (found.version, found.reason, found.fingerprint) == (1, "import", FINGERPRINT)
    assert (found.chunks, found.turns) == (2, 2)
    assert found.state_digest == state(0).digest
    assert found.size_bytes > tensor.nbytes
    assert found.readouts is not None
    assert found.readouts.dtype == dtype
    assert torch.equal(found.readouts, tensor)


async def test_only_the_newest_readouts_are_kept(open_unit: OpenUnit) -> None:
    await write_many(open_unit, 5)
    async with open_unit() as unit:
        found = [await unit.memories.adapter(ANN, version) for version in range(1, 6)]
        assert [each.readouts is not None for each in found] == [False, False, True, True, True]
        assert all(each.size_bytes > 0 for each in found)
        assert (await unit.memories.adapter(ANN)).version == 5


async def test_adapters_are_listed_newest_first_in_pages(open_unit: OpenUnit) -> None:
    await write_many(open_unit, 5)
    async with open_unit() as unit:
        listed = await unit.memories.adapters(ANN)
        assert [each.version for each in listed] == [5, 4, 3, 2, 1]
        assert all(each.readouts is None for each in listed)
        assert [each.turns for each in listed] == [5, 4, 3, 2, 1]
        page = await unit.memories.adapters(ANN, before=4, limit=2)
        assert [each.version for each in page] == [3, 2]
        assert len(await unit.memories.adapters(ANN, before=2**70)) == 5
        assert await unit.memories.adapters(ANN, before=1) == []


async def test_the_recipe_of_every_version_stays(open_unit: OpenUnit) -> None:
    await write_many(open_unit, 4)
    seen = await append(open_unit, 50, session="other")
    await write(open_unit, change(4, seen, appeared=[chunk(50, session="other")]))
    seen = await append(open_unit, 51, session="other")
    await write(
        open_unit,
        change(5, seen, appeared=[chunk(51, session="other")], vanished=[chunk(0, 1, 2, 3)]),
    )
    async with open_unit() as unit:
        recipes = {version: await unit.memories.chunks(ANN, version) for version in range(1, 7)}
        assert await unit.memories.chunks(ANN) == recipes[6]
        for unknown in (0, -1, 7, 2**70):
            with pytest.raises(NotFound, match=f"ann@{unknown}"):
                await unit.memories.chunks(ANN, unknown)
    other = chunk(50, session="other")
    assert recipes == {
        1: [chunk(0)],
        2: [chunk(0, 1)],
        3: [chunk(0, 1, 2)],
        4: [chunk(0, 1, 2, 3)],
        5: [other, chunk(0, 1, 2, 3)],
        6: [other, chunk(51, session="other")],
    }


async def test_a_version_writes_only_what_changed(open_unit: OpenUnit, engine: AsyncEngine) -> None:
    seen = await append(open_unit, *range(100))
    many = [chunk(number) for number in range(100)]
    await write(open_unit, change(0, seen, appeared=many))
    seen = await append(open_unit, 100)
    await write(open_unit, change(1, seen, appeared=[chunk(100)], vanished=[chunk(99)]))
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM chunks")) == 101
        changed = await connection.scalar(
            text("SELECT count(*) FROM chunks WHERE removed_version IS NOT NULL")
        )
        assert changed == 1


async def test_sizes_are_those_of_what_is_kept(open_unit: OpenUnit) -> None:
    seen = await append(open_unit, 1, 2)
    async with open_unit() as unit:
        empty = await unit.memories.sizes(ANN)
        assert (empty.sessions, empty.chunks, empty.state_bytes) == (1, 0, 0)
        assert empty.text_chars == len(turn(1).text) + len(turn(2).text)
    kept = state(1, open_chunk=chunk(2).digest)
    await write(open_unit, replace(change(0, seen, appeared=[chunk(1), chunk(2)]), state=kept))
    async with open_unit() as unit:
        sizes = await unit.memories.sizes(ANN)
        assert sizes.chunks == 2
        assert sizes.state_bytes > 2 * 2 * kept.closed.numel()  # two parts of int16
        assert sizes.adapters_bytes == (await unit.memories.adapter(ANN)).size_bytes


async def test_of_two_writers_one_wins_and_the_other_is_told(open_unit: OpenUnit) -> None:
    seen = await append(open_unit, 1)

    async def once() -> int:
        return await write(open_unit, change(0, seen, appeared=[chunk(1)]))

    results = await asyncio.gather(*(once() for _ in range(4)), return_exceptions=True)
    assert sorted(str(type(result).__name__) for result in results) == [
        "StateConflict",
        "StateConflict",
        "StateConflict",
        "int",
    ]
    async with open_unit() as unit:
        assert (await unit.memories.head(ANN)).version == 1
        assert await unit.memories.chunks(ANN) == [chunk(1)]


async def test_a_writer_that_read_before_another_wrote_is_refused(open_unit: OpenUnit) -> None:
    seen = await append(open_unit, 1)
    async with open_unit() as unit:
        head = await unit.memories.head(ANN)
        await write(open_unit, change(0, seen, appeared=[chunk(1)]))
        with pytest.raises(StateConflict, match="another writer came first"):
            await unit.memories.write_version(
                ANN, change(head.version, seen, appeared=[chunk(1, salt="other")])
            )
    async with open_unit() as unit:
        assert await unit.memories.chunks(ANN) == [chunk(1)]
        assert len(await unit.memories.adapters(ANN)) == 1


@pytest.mark.parametrize("expected", [5, -1])
async def test_a_wrong_expected_version_is_a_conflict(open_unit: OpenUnit, expected: int) -> None:
    seen = await append(open_unit, 1)
    with pytest.raises(StateConflict):
        await write(open_unit, change(expected, seen, appeared=[chunk(1)]))


async def test_a_chunk_is_never_counted_twice_nor_removed_twice(open_unit: OpenUnit) -> None:
    seen = await append(open_unit, 1)
    await write(open_unit, change(0, seen, appeared=[chunk(1)]))
    with pytest.raises(StateConflict):
        await write(open_unit, change(1, seen, appeared=[chunk(1)]))
    with pytest.raises(StateConflict):
        await write(open_unit, change(1, seen, vanished=[chunk(2)]))
    with pytest.raises(StateConflict):
        await write(open_unit, change(1, {}, appeared=[chunk(2, session="unknown")]))
    with pytest.raises(StateConflict):
        await write(open_unit, change(1, {"unknown": 1}))
    await write(open_unit, change(1, seen, vanished=[chunk(1)]))
    await write(open_unit, change(2, seen, appeared=[chunk(1)]))
    async with open_unit() as unit:
        assert await unit.memories.chunks(ANN, 1) == [chunk(1)]
        assert await unit.memories.chunks(ANN, 2) == []
        assert await unit.memories.chunks(ANN, 3) == [chunk(1)]


async def test_a_memory_can_be_encoded_anew(open_unit: OpenUnit) -> None:
    await write_many(open_unit, 2)
    async with open_unit() as unit:
        await unit.memories.mark_all_pending(ANN)
        await unit.commit()
    async with open_unit() as unit:
        assert await unit.memories.state(ANN) is None
        (pending,) = await unit.memories.pending_sessions(ANN)
        assert pending.chunks == ()
        assert len(pending.turns) == 2
        assert await unit.memories.pending_turn_ids(ANN) == {turn(0).id, turn(1).id}
        head = await unit.memories.head(ANN)
        assert (head.version, head.turns, head.pending_turns) == (2, 2, 2)
        assert await unit.memories.chunks(ANN, 2) == [chunk(0, 1)]
        assert (await unit.memories.adapter(ANN)).readouts is not None
    made = change(2, {"s": pending.revision}, appeared=[chunk(0, 1)], reason="rebuild")
    assert await write(open_unit, made) == 3
    async with open_unit() as unit:
        assert await unit.memories.chunks(ANN) == [chunk(0, 1)]
        assert (await unit.memories.head(ANN)).pending_turns == 0


async def test_work_computed_before_a_restart_is_refused(open_unit: OpenUnit) -> None:
    await write_many(open_unit, 1)
    seen = await append(open_unit, 1)
    async with open_unit() as unit:
        await unit.memories.mark_all_pending(ANN)
        await unit.commit()
    with pytest.raises(StateConflict):
        await write(open_unit, change(1, seen, appeared=[chunk(1)]))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE states SET closed = closed_damaged", "damaged"),
        ("UPDATE states SET open_update = NULL", "digest"),
        ("UPDATE states SET digest = 'abc'", "digest"),
        ("UPDATE states SET fingerprint = '{}'", "fingerprint"),
    ],
)
async def test_a_damaged_state_is_never_used(
    open_unit: OpenUnit, engine: AsyncEngine, damage: str, problem: str
) -> None:
    seen = await append(open_unit, 1)
    kept = state(7, open_chunk=chunk(1).digest)
    await write(open_unit, replace(change(0, seen, appeared=[chunk(1)]), state=kept))
    async with engine.begin() as connection:
        stored = await connection.scalar(text("SELECT closed FROM states"))
        damaged = bytes([*stored[:-1], stored[-1] ^ 1])
        damage = damage.replace("closed_damaged", ":damaged")
        parameters = {"damaged": damaged} if ":damaged" in damage else {}
        await connection.execute(text(damage), parameters)
    async with open_unit() as unit:
        with pytest.raises(IncompatibleState, match=problem) as caught:
            await unit.memories.state(ANN)
    assert caught.value.subject == "state of user ann"
    assert "memory users rebuild USER" in caught.value.remedy


async def test_a_damaged_adapter_is_never_used(open_unit: OpenUnit, engine: AsyncEngine) -> None:
    await write_many(open_unit, 1)
    async with engine.begin() as connection:
        stored = await connection.scalar(text("SELECT readouts FROM adapters"))
        await connection.execute(
            text("UPDATE adapters SET readouts = :data"), {"data": stored[: len(stored) // 2]}
        )
    async with open_unit() as unit:
        with pytest.raises(IncompatibleState, match="adapter ann@1: its stored bytes are damaged"):
            await unit.memories.adapter(ANN)


async def test_bytes_of_another_maker_are_never_used(
    open_unit: OpenUnit, engine: AsyncEngine
) -> None:
    await write_many(open_unit, 1)
    other = Fingerprint("another", "base", "tokenizer", "chunking", "independent", "bf16")
    async with engine.begin() as connection:
        for table in ("states", "versions"):
            await connection.execute(
                text(
                    f"UPDATE {table} SET fingerprint = REPLACE(CAST(fingerprint AS TEXT), "
                    '\'"generator": "generator"\', \'"generator": "another"\')'
                    + ("::json" if engine.dialect.name == "postgresql" else "")
                )
            )
    async with open_unit() as unit:
        for query in (unit.memories.state(ANN), unit.memories.adapter(ANN)):
            with pytest.raises(IncompatibleState, match=f"instead of {other.short}"):
                await query
