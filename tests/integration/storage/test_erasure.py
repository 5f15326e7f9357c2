"""Turns taken back: rows, recipes of earlier versions, tombstones, bytes on disk."""

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival, Erased, StoredChunk
from memory_service.domain.turns import Turn
from memory_service.errors import NotFound, StateConflict
from memory_service.services.forget import Forget
from memory_service.storage.engine import create_engine
from memory_service.storage.unit_of_work import UnitOfWork, unit_factory
from tests.helpers.databases import contents_of
from tests.integration.storage.records import ANN, change, chunk, revisions, turn

OpenUnit = Callable[[], UnitOfWork]
BOB = MemoryId("bob", "acme")


async def add(open_unit: OpenUnit, *turns: Turn, memory_id: MemoryId = ANN) -> list[Arrival]:
    async with open_unit() as unit:
        arrivals = await unit.memories.add_turns(memory_id, turns)
        await unit.commit()
    return arrivals


async def make_version(
    open_unit: OpenUnit,
    *turns: Turn,
    appeared: Sequence[StoredChunk],
    vanished: Sequence[StoredChunk] = (),
    memory_id: MemoryId = ANN,
) -> None:
    """Append turns and write the version that holds them."""
    await add(open_unit, *turns, memory_id=memory_id)
    async with open_unit() as unit:
        head = await unit.memories.head(memory_id)
        seen = await revisions(unit, memory_id)
        made = change(head.version, seen, appeared=appeared, vanished=vanished)
        await unit.memories.write_version(memory_id, made)
        await unit.commit()


async def forget(
    open_unit: OpenUnit,
    *numbers: int,
    appeared: Sequence[StoredChunk] = (),
    vanished: Sequence[StoredChunk] = (),
    memory_id: MemoryId = ANN,
) -> Erased:
    """Write the version without the turns and erase them, as the service does."""
    ids = [turn(number).id for number in numbers]
    async with open_unit() as unit:
        head = await unit.memories.head(memory_id)
        sessions = await unit.memories.sessions_of(memory_id, ids)
    async with open_unit() as unit:
        seen = {session.name: session.revision for session in sessions}
        made = change(head.version, seen, appeared=appeared, vanished=vanished, reason="forget")
        await unit.memories.write_version(memory_id, made)
        erased = await unit.memories.erase_turns(memory_id, ids)
        await unit.commit()
    return erased


async def history(open_unit: OpenUnit) -> dict[int, tuple[int, int, bool]]:
    """Turns, chunks and whether the state's digest is known, of every version."""
    async with open_unit() as unit:
        return {
            made.version: (made.turns, made.chunks, bool(made.state_digest))
            for made in await unit.memories.adapters(ANN)
        }


async def test_every_version_that_held_the_turn_is_rewritten(open_unit: OpenUnit) -> None:
    await make_version(open_unit, turn(0, session="a"), appeared=[chunk(0, session="a")])
    await make_version(open_unit, turn(1), appeared=[chunk(1)])
    await make_version(open_unit, turn(2), appeared=[chunk(1, 2)], vanished=[chunk(1)])
    assert await history(open_unit) == {1: (1, 1, True), 2: (2, 2, True), 3: (3, 2, True)}

    erased = await forget(open_unit, 1, appeared=[chunk(2)], vanished=[chunk(1, 2)])

    assert erased == Erased(turns=1, sessions=0, rewritten_versions=2, adapters=2)
    assert await history(open_unit) == {
        1: (1, 1, True),
        2: (1, 1, False),
        3: (2, 2, False),
        4: (2, 2, True),
    }
    async with open_unit() as unit:
        memories = unit.memories
        assert [each.id for each in await memories.turns(ANN)] == [turn(0).id, turn(2).id]
        assert await memories.chunks(ANN, 2) == [chunk(0, session="a")]
        rest = StoredChunk("s", "", "", (turn(2).id,), 0)
        assert await memories.chunks(ANN, 3) == [chunk(0, session="a"), rest]
        assert await memories.chunks(ANN, 4) == [chunk(0, session="a"), chunk(2)]
        assert (await memories.adapter(ANN)).readouts is not None
        assert (await memories.adapter(ANN, 2)).readouts is None
        head = await memories.head(ANN)
        assert (head.turns, head.pending_turns) == (2, 0)


async def test_a_long_turn_in_several_chunks_counts_once(open_unit: OpenUnit) -> None:
    parts = [chunk(1, salt="part 0"), chunk(1, 2, salt="part 1")]
    await make_version(open_unit, turn(1), turn(2), appeared=parts)
    await forget(open_unit, 1, appeared=[chunk(2)], vanished=parts)
    assert await history(open_unit) == {1: (1, 1, False), 2: (1, 1, True)}


async def test_a_session_without_turns_goes_with_its_name(
    open_unit: OpenUnit, engine: AsyncEngine
) -> None:
    await make_version(open_unit, turn(0, session="private"), turn(1), appeared=[
        chunk(0, session="private"), chunk(1)
    ])  # fmt: skip
    erased = await forget(open_unit, 0, vanished=[chunk(0, session="private")])
    assert erased.sessions == 1
    async with engine.connect() as connection:
        assert (await connection.scalars(text("SELECT name FROM sessions"))).all() == ["s"]


async def test_a_forgotten_turn_stays_forgotten_and_its_id_is_not_kept(
    open_unit: OpenUnit, engine: AsyncEngine
) -> None:
    await make_version(open_unit, turn(0), turn(1), appeared=[chunk(0, 1)])
    await make_version(open_unit, turn(1), appeared=[chunk(1)], memory_id=BOB)
    await forget(open_unit, 1, appeared=[chunk(0)], vanished=[chunk(0, 1)])
    again = await add(open_unit, turn(0), turn(1), turn(1, text="another text"), turn(2))
    assert again == [Arrival.KNOWN, Arrival.FORGOTTEN, Arrival.FORGOTTEN, Arrival.NEW]
    assert await add(open_unit, turn(1), memory_id=BOB) == [Arrival.KNOWN]
    await forget(open_unit, 0, appeared=[chunk(2)], vanished=[chunk(0)])
    assert await add(open_unit, turn(0), turn(1)) == [Arrival.FORGOTTEN] * 2
    async with engine.connect() as connection:
        rows = (await connection.execute(text("SELECT key, hash FROM tombstones"))).all()
    assert len(rows) == 2
    assert len({bytes(row.key) for row in rows}) == 1
    assert not any(turn(number).id in row.hash for number in (0, 1) for row in rows)


async def test_a_turn_that_the_state_still_holds_cannot_be_erased(open_unit: OpenUnit) -> None:
    await make_version(open_unit, turn(0), appeared=[chunk(0)])
    async with open_unit() as unit:
        with pytest.raises(StateConflict):
            await unit.memories.erase_turns(ANN, [turn(0).id])
        await unit.commit()
    async with open_unit() as unit:
        assert await unit.memories.turns(ANN) == [turn(0)]


async def test_a_withdrawn_memory_has_its_other_turns_pending(open_unit: OpenUnit) -> None:
    await make_version(open_unit, turn(0), turn(1), appeared=[chunk(0, 1)])
    async with open_unit() as unit:
        await unit.memories.mark_all_pending(ANN)
        erased = await unit.memories.erase_turns(ANN, [turn(0).id, "unknown"])
        await unit.commit()
    assert erased == Erased(turns=1, sessions=0, rewritten_versions=1, adapters=1)
    async with open_unit() as unit:
        assert await unit.memories.state(ANN) is None
        assert (await unit.memories.adapter(ANN)).readouts is None
        assert await unit.memories.pending_turn_ids(ANN) == {turn(1).id}
        assert await unit.memories.chunks(ANN) == [StoredChunk("s", "", "", (turn(1).id,), 0)]


async def test_unknown_turns_are_named(open_unit: OpenUnit) -> None:
    await add(open_unit, turn(0))
    async with open_unit() as unit:
        assert await unit.memories.sessions_of(ANN, ["t00009"]) == []
        with pytest.raises(NotFound, match="t00009"):
            await unit.memories.erase_turns(ANN, ["t00009"])


async def test_work_computed_before_turns_were_forgotten_is_refused(open_unit: OpenUnit) -> None:
    await make_version(open_unit, turn(0), turn(1), appeared=[chunk(0, 1)])
    await add(open_unit, turn(2))
    async with open_unit() as unit:
        seen = await revisions(unit)
    await forget(open_unit, 1, appeared=[chunk(0)], vanished=[chunk(0, 1)])
    stale = change(1, seen, appeared=[chunk(0, 1, 2)], vanished=[chunk(0, 1)])
    async with open_unit() as unit:
        with pytest.raises(StateConflict):
            await unit.memories.write_version(ANN, stale)


async def test_a_turn_that_arrives_meanwhile_stays_pending(open_unit: OpenUnit) -> None:
    await make_version(open_unit, turn(0), turn(1), appeared=[chunk(0, 1)])
    async with open_unit() as unit:
        (session,) = await unit.memories.sessions_of(ANN, [turn(1).id])
    await add(open_unit, turn(2))
    made = change(1, {"s": session.revision}, appeared=[chunk(0)], vanished=[chunk(0, 1)])
    async with open_unit() as unit:
        await unit.memories.write_version(ANN, made)
        await unit.memories.erase_turns(ANN, [turn(1).id])
        await unit.commit()
    async with open_unit() as unit:
        assert await unit.memories.pending_turn_ids(ANN) == {turn(2).id}


async def test_turns_set_aside_are_kept_but_not_encoded(open_unit: OpenUnit) -> None:
    await make_version(open_unit, turn(0), turn(1), turn(2), appeared=[chunk(0, 1, 2)])
    async with open_unit() as unit:
        await unit.memories.mark_all_pending(ANN)
        await unit.memories.set_aside(ANN, aside=[turn(0).id, turn(2).id], back=[])
        await unit.commit()
    async with open_unit() as unit:
        assert await unit.memories.turns_set_aside(ANN) == {turn(0).id, turn(2).id}
        assert await unit.memories.pending_turn_ids(ANN) == {turn(1).id}
        (session,) = await unit.memories.pending_sessions(ANN)
        assert session.turns == (turn(1),)
        assert len(await unit.memories.turns(ANN)) == 3
        head = await unit.memories.head(ANN)
        assert (head.turns, head.pending_turns) == (1, 1)
    assert await add(open_unit, turn(0)) == [Arrival.KNOWN]
    async with open_unit() as unit:
        await unit.memories.erase_turns(ANN, [turn(2).id])
        await unit.memories.set_aside(ANN, aside=[], back=[turn(0).id])
        await unit.commit()
    async with open_unit() as unit:
        assert await unit.memories.turns_set_aside(ANN) == set()
        assert (await unit.memories.head(ANN)).turns == 2
        (session,) = await unit.memories.pending_sessions(ANN)
        assert session.turns == (turn(0), turn(1))


async def test_erased_words_are_in_no_file(sqlite_path: Path) -> None:
    """Rows of many sizes in random order: pages were split, and copies left behind would show.

    The search index writes a word without the letters that it shares with the word before: of a
    random word hardly more than the first three.
    """
    engine = create_engine(f"sqlite:///{sqlite_path}")
    open_unit = unit_factory(engine)
    numbers = list(range(200))
    random.Random(1).shuffle(numbers)
    names = {number: hashlib.sha256(bytes([number])).hexdigest()[:20] for number in numbers}
    said = {
        number: f"secret{number:03}x {names[number]} " + "word " * (number * number % 1500)
        for number in numbers
    }
    for number in numbers:
        await add(open_unit, turn(number, text=said[number], session=f"s{number % 7}"))
    parts = [chunk(number, session=f"s{number % 7}") for number in numbers]
    await make_version(open_unit, appeared=parts)
    gone = numbers[:60]
    assert all(f"secret{number:03}x" in contents_of(sqlite_path.parent) for number in gone)
    await forget(open_unit, *gone, vanished=[part for part in parts if part.turn_ids[0] in {
        turn(number).id for number in gone
    }])  # fmt: skip
    left = contents_of(sqlite_path.parent)
    await engine.dispose()
    assert not [number for number in gone if f"secret{number:03}x" in left]
    assert not [number for number in gone if names[number][4:] in left]
    assert not [number for number in gone if turn(number).id in left]
    assert not [part.digest for part in parts[:60] if part.digest in left]
    assert all(f"secret{number:03}x" in left for number in numbers[60:])


async def test_a_tenant_goes_with_its_users_and_keys(
    open_unit: OpenUnit, engine: AsyncEngine
) -> None:
    other = MemoryId("ann", "other")
    for memory_id in (ANN, BOB, other):
        await make_version(open_unit, turn(0), appeared=[chunk(0)], memory_id=memory_id)
    deleted = await Forget(open_unit).tenant("acme")
    assert (deleted["users"], deleted["keys"]) == (2, 0)
    assert (deleted["turns"], deleted["states"], deleted["adapters"]) == (2, 2, 2)
    async with engine.connect() as connection:
        assert (await connection.scalars(text("SELECT name FROM tenants"))).all() == ["other"]
        assert (await connection.scalars(text("SELECT count(*) FROM turns"))).all() == [1]
    with pytest.raises(NotFound, match="acme"):
        await Forget(open_unit).tenant("acme")
