"""Two processes that write to one user at once lose nothing."""

import asyncio
import multiprocessing
from collections.abc import Callable

from memory_service.domain.records import Arrival
from memory_service.errors import StateConflict
from memory_service.storage.engine import create_engine
from memory_service.storage.unit_of_work import UnitOfWork, unit_factory
from tests.integration.storage.records import ANN, change, chunk, revisions, turn

EACH = 50


def write_to_one_user(url: str, first: int, barrier: object) -> None:
    """Append `EACH` turns one by one; encode after each, as the service does."""
    asyncio.run(_write(url, first, barrier))


async def _write(url: str, first: int, barrier: object) -> None:
    engine = create_engine(url)
    open_unit = unit_factory(engine)
    barrier.wait(timeout=60)  # type: ignore[attr-defined]
    for number in range(first, first + EACH):
        async with open_unit() as unit:
            new = [turn(number, session=f"s{number}"), turn(9999, session="shared")]
            assert (await unit.memories.add_turns(ANN, new))[0] is Arrival.NEW
            await unit.commit()
        if number % 5 == 0:
            await _encode(open_unit)
    await engine.dispose()


async def _encode(open_unit: Callable[[], UnitOfWork]) -> None:
    while True:
        async with open_unit() as unit:
            head = await unit.memories.head(ANN)
            pending = await unit.memories.pending_sessions(ANN)
            appeared = [
                chunk(int(turn.id[1:]), session=session.name)
                for session in pending
                for turn in session.turns
            ]
            seen = {session.name: session.revision for session in pending}
        try:
            async with open_unit() as unit:
                made = change(head.version, seen, appeared=appeared)
                await unit.memories.write_version(ANN, made)
                await unit.commit()
        except StateConflict:
            continue
        return


async def test_two_processes_append_to_one_new_user(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=write_to_one_user, args=(database_url, first, barrier))
        for first in (0, EACH)
    ]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 90)
    assert [process.exitcode for process in processes] == [0, 0]

    engine = create_engine(database_url)
    async with unit_factory(engine)() as unit:
        turns = await unit.memories.turns(ANN)
        assert [each.id for each in turns] == [turn(n).id for n in (*range(2 * EACH), 9999)]
        head = await unit.memories.head(ANN)
        assert head.turns == 2 * EACH + 1
        assert head.version == 2 * EACH // 5
        encoded = [id_ for kept in await unit.memories.chunks(ANN) for id_ in kept.turn_ids]
        pending = await unit.memories.pending_turn_ids(ANN)
        assert len(set(encoded)) == len(encoded)
        assert sorted([*encoded, *pending]) == sorted(each.id for each in turns)
        assert head.pending_turns == len(pending)
        assert len(await revisions(unit)) == len(pending)
    await engine.dispose()
