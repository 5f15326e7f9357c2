"""Turns, sessions and users, on both databases."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival
from memory_service.domain.turns import Role, Turn
from memory_service.errors import NotFound, StateConflict
from memory_service.services import ports
from memory_service.storage.engine import create_engine
from memory_service.storage.unit_of_work import UnitOfWork, unit_factory
from tests.helpers.databases import contents_of
from tests.integration.storage.records import ANN, START, change, chunk, revisions, turn

OpenUnit = Callable[[], UnitOfWork]

NEW, KNOWN = Arrival.NEW, Arrival.KNOWN
NOBODY = MemoryId("nobody", "acme")


async def add(open_unit: OpenUnit, *turns: Turn, memory_id: MemoryId = ANN) -> list[Arrival]:
    async with open_unit() as unit:
        arrivals = await unit.memories.add_turns(memory_id, turns)
        await unit.commit()
    return arrivals


async def test_storage_satisfies_the_ports(open_unit: OpenUnit) -> None:
    opened: ports.OpenUnit = open_unit  # checked by mypy
    async with opened() as unit:
        assert await unit.memories.heads("acme") == []


async def test_turns_come_back_in_order_of_time_then_id(open_unit: OpenUnit) -> None:
    late, early = turn(1, minutes=5), turn(2, minutes=1)
    same_time = [turn(number, minutes=3, session="other") for number in (9, 8)]
    assert await add(open_unit, late, early, *same_time) == [NEW] * 4
    async with open_unit() as unit:
        assert await unit.memories.turns(ANN) == [early, *reversed(same_time), late]
        assert await unit.memories.turns(ANN, session="s") == [early, late]
        assert await unit.memories.turns(ANN, session="unknown") == []


async def test_a_turn_comes_back_as_it_was(open_unit: OpenUnit) -> None:
    odd = Turn(
        session="größe / 部屋",
        role=Role.ASSISTANT,
        text="  'quoted' \"text\" \\ % :name ? \r\n\t😀 e\u0301 \u2028 end ",
        time=datetime(2026, 3, 1, 18, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5.5))),
        id="'; DROP TABLE turns; --",
    )
    first = Turn("s", Role.USER, "x" * 999_999, datetime(1, 1, 1, tzinfo=UTC), "first")
    last = Turn("s", Role.USER, "y", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), "last")
    await add(open_unit, last, odd, first)
    async with open_unit() as unit:
        found = await unit.memories.turns(ANN)
    assert found == [first, odd, last]
    assert all(each.time.tzinfo is UTC for each in found)


async def test_names_are_ordered_by_code_point_like_in_python(open_unit: OpenUnit) -> None:
    names = ["a", "B", "ä", "z", "Z", "a-b", "a b", "ab", "_", "😀", "\uffee", "1", "10", "2"]
    turns = [Turn("s", Role.USER, "x", START, name) for name in names]
    await add(open_unit, *turns)
    for name in names:
        await add(open_unit, turn(1), memory_id=MemoryId(name, "many"))
    async with open_unit() as unit:
        found = [each.id for each in await unit.memories.turns(ANN)]
        users = [head.memory_id.user for head in await unit.memories.heads("many")]
    assert found == sorted(names)
    assert users == sorted(names)


async def test_adding_again_is_a_no_op(open_unit: OpenUnit) -> None:
    assert await add(open_unit, turn(1), turn(2)) == [NEW, NEW]
    async with open_unit() as unit:
        before = await revisions(unit)
    elsewhere = turn(2)
    shifted = Turn(
        "s",
        elsewhere.role,
        elsewhere.text,
        elsewhere.time.astimezone(timezone(timedelta(hours=-7))),
        elsewhere.id,
    )
    assert await add(open_unit, turn(1), shifted) == [KNOWN, KNOWN]
    async with open_unit() as unit:
        assert await revisions(unit) == before
        assert (await unit.memories.head(ANN)).turns == 2
    assert await add(open_unit, turn(2), turn(3)) == [KNOWN, NEW]


async def test_the_same_turn_twice_in_one_call_is_one_turn(open_unit: OpenUnit) -> None:
    assert await add(open_unit, turn(1), turn(1), turn(2)) == [NEW, KNOWN, NEW]
    async with open_unit() as unit:
        assert (await unit.memories.head(ANN)).turns == 2


async def test_nothing_to_add_creates_nothing(open_unit: OpenUnit) -> None:
    assert await add(open_unit) == []
    async with open_unit() as unit:
        with pytest.raises(NotFound):
            await unit.memories.head(ANN)


@pytest.mark.parametrize(
    ("other", "different"),
    [
        (turn(1, text="something private"), "text"),
        (turn(1, session="elsewhere"), "session"),
        (turn(1, minutes=77), "time"),
        (Turn("s", Role.USER, turn(1).text, turn(1).time, turn(1).id), "role"),
    ],
)
async def test_a_known_id_with_other_content_is_a_conflict(
    open_unit: OpenUnit, other: Turn, different: str
) -> None:
    await add(open_unit, turn(1))
    with pytest.raises(StateConflict, match=f"already known with another {different};") as caught:
        await add(open_unit, turn(2), other, turn(3))
    assert "private" not in str(caught.value)
    assert "what turn" not in str(caught.value)
    async with open_unit() as unit:
        assert await unit.memories.turns(ANN) == [turn(1)]
    with pytest.raises(StateConflict):
        await add(open_unit, turn(5), turn(5, text="another"))


async def test_a_conflict_stores_nothing_even_if_it_is_swallowed(open_unit: OpenUnit) -> None:
    await add(open_unit, turn(1))
    async with open_unit() as unit:
        with pytest.raises(StateConflict):
            await unit.memories.add_turns(ANN, [turn(2), turn(1, text="another")])
        await unit.commit()
    async with open_unit() as unit:
        assert await unit.memories.turns(ANN) == [turn(1)]


@pytest.mark.parametrize("known_user", [False, True])
async def test_the_same_turn_from_two_requests_at_once_is_one_turn(
    open_unit: OpenUnit, known_user: bool
) -> None:
    if known_user:
        await add(open_unit, turn(0))
    async with open_unit() as unit:
        assert await unit.memories.add_turns(ANN, [turn(1), turn(2)]) == [NEW, NEW]
        same = asyncio.create_task(add(open_unit, turn(2), turn(1), turn(3)))
        other = asyncio.create_task(add(open_unit, turn(1, text="another")))
        await asyncio.sleep(0.1)
        assert not same.done()
        assert not other.done()
        await unit.commit()
    assert await same == [KNOWN, KNOWN, NEW]
    with pytest.raises(StateConflict, match="already known with another text"):
        await other


async def test_the_same_ids_of_two_users_and_tenants_are_apart(open_unit: OpenUnit) -> None:
    others = [MemoryId("bob", "acme"), MemoryId("ann", "other")]
    await add(open_unit, turn(1))
    for number, other in enumerate(others):
        assert await add(open_unit, turn(1, text=f"mine {number}"), memory_id=other) == [NEW]
    async with open_unit() as unit:
        assert [each.text for each in await unit.memories.turns(ANN)] == ["what turn 1 says"]
        assert [each.text for each in await unit.memories.turns(others[0])] == ["mine 0"]
        assert [each.text for each in await unit.memories.turns(others[1])] == ["mine 1"]
        assert [head.memory_id for head in await unit.memories.heads("other")] == [others[1]]


async def test_nothing_is_visible_before_the_commit_and_nothing_stays_without(
    open_unit: OpenUnit,
) -> None:
    async with open_unit() as unit:
        await unit.memories.add_turns(ANN, [turn(1)])
        assert await unit.memories.turns(ANN) == [turn(1)]
        async with open_unit() as other:
            with pytest.raises(NotFound):
                await other.memories.head(ANN)
    async with open_unit() as unit:
        with pytest.raises(NotFound):
            await unit.memories.head(ANN)


async def test_a_unit_reads_one_snapshot(open_unit: OpenUnit) -> None:
    await add(open_unit, turn(1))
    async with open_unit() as unit:
        before = await unit.memories.head(ANN)
        await add(open_unit, turn(2))
        assert await unit.memories.head(ANN) == before
        assert await unit.memories.turns(ANN) == [turn(1)]
        assert await unit.memories.add_turns(ANN, [turn(2), turn(3)]) == [KNOWN, NEW]
        await unit.commit()
        assert len(await unit.memories.turns(ANN)) == 3


async def test_pages_of_turns_join_without_gap_or_repetition(open_unit: OpenUnit) -> None:
    turns = [turn(number, minutes=number // 7, session=f"s{number % 3}") for number in range(100)]
    await add(open_unit, *turns)
    ordered = sorted(turns, key=lambda each: each.order)
    for session in (None, "s1"):
        pages: list[Turn] = []
        async with open_unit() as unit:
            while page := await unit.memories.turns(
                ANN, session=session, after=pages[-1].order if pages else None, limit=9
            ):
                assert len(page) <= 9
                pages += page
        assert pages == [each for each in ordered if session in (None, each.session)]


@pytest.mark.parametrize("session", [None, "s"])
async def test_a_page_of_turns_is_read_from_an_index(
    sqlite_path: Path, session: str | None
) -> None:
    engine = create_engine(f"sqlite:///{sqlite_path}")
    ran: list[tuple[str, Any]] = []
    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda _, __, statement, parameters, *___: ran.append((statement, parameters)),
    )
    async with unit_factory(engine)() as unit:
        await unit.memories.add_turns(ANN, [turn(number) for number in range(50)])
        await unit.memories.turns(ANN, session=session, after=turn(20).order, limit=10)
        await unit.commit()
    await engine.dispose()
    statement, parameters = ran[-1]
    with closing(sqlite3.connect(sqlite_path)) as connection:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    plan = "\n".join(row[-1] for row in rows)
    owner = "user_id" if session is None else "session_id"
    assert f"turns USING INDEX ix_turns_{owner}_time_turn_id ({owner}=? AND (time,turn_id)>" in plan
    assert "TEMP B-TREE" not in plan


async def test_heads_page_by_name(open_unit: OpenUnit) -> None:
    names = [f"user{number:02}" for number in range(25)]
    for name in reversed(names):
        await add(open_unit, turn(1), memory_id=MemoryId(name, "many"))
    pages: list[str] = []
    async with open_unit() as unit:
        while page := await unit.memories.heads("many", after=pages[-1] if pages else "", limit=10):
            pages += [head.memory_id.user for head in page]
        assert await unit.memories.heads("unknown") == []
    assert pages == names


async def test_a_head_counts_turns_and_those_not_encoded(open_unit: OpenUnit) -> None:
    before = datetime.now(UTC)
    await add(open_unit, turn(1), turn(2), turn(3, session="other"))
    async with open_unit() as unit:
        head = await unit.memories.head(ANN)
        assert (head.memory_id, head.version, head.turns, head.pending_turns) == (ANN, 0, 3, 3)
        assert before <= head.created_at <= datetime.now(UTC)
        seen = await revisions(unit)
        await unit.memories.write_version(
            ANN, change(0, {"s": seen["s"]}, appeared=[chunk(1, 2), chunk(2, salt="second part")])
        )
        await unit.commit()
        head = await unit.memories.head(ANN)
        assert (head.version, head.turns, head.pending_turns) == (1, 3, 1)
        assert await unit.memories.heads("acme") == [head]
        assert await unit.memories.pending_turn_ids(ANN) == {turn(3).id}


async def test_pending_sessions_come_with_turns_and_chunks_oldest_change_first(
    open_unit: OpenUnit,
) -> None:
    await add(open_unit, turn(5, session="b"))
    await add(open_unit, turn(1, session="a"), turn(2, session="a"))
    await add(open_unit, turn(6, session="b"))
    async with open_unit() as unit:
        first, second = await unit.memories.pending_sessions(ANN)
        assert (first.name, second.name) == ("b", "a")
        assert first.turns == (turn(5, session="b"), turn(6, session="b"))
        assert first.chunks == ()
        kept = chunk(5, 6, session="b")
        await unit.memories.write_version(ANN, change(0, {"b": first.revision}, appeared=[kept]))
        await unit.commit()
    await add(open_unit, turn(7, session="b"))
    async with open_unit() as unit:
        first, second = await unit.memories.pending_sessions(ANN)
        assert (first.name, second.name) == ("a", "b")
        assert second.chunks == (kept,)
        assert [each.id for each in second.turns] == [turn(number).id for number in (5, 6, 7)]
        assert await unit.memories.pending_turn_ids(ANN) == {
            turn(number).id for number in (1, 2, 7)
        }


async def test_a_turn_that_arrives_during_encoding_keeps_its_session_pending(
    open_unit: OpenUnit,
) -> None:
    await add(open_unit, turn(1))
    async with open_unit() as unit:
        seen = await revisions(unit)
    await add(open_unit, turn(2))
    async with open_unit() as unit:
        await unit.memories.write_version(ANN, change(0, seen, appeared=[chunk(1)]))
        await unit.commit()
        (pending,) = await unit.memories.pending_sessions(ANN)
        assert pending.chunks == (chunk(1),)
        assert await unit.memories.pending_turn_ids(ANN) == {turn(2).id}
        assert (await unit.memories.head(ANN)).pending_turns == 1


async def test_an_encoded_memory_has_nothing_pending(open_unit: OpenUnit) -> None:
    await add(open_unit, turn(1))
    async with open_unit() as unit:
        seen = await revisions(unit)
        await unit.memories.write_version(ANN, change(0, seen, appeared=[chunk(1)]))
        await unit.commit()
        assert await unit.memories.pending_sessions(ANN) == []
        assert await unit.memories.pending_turn_ids(ANN) == set()
        assert (await unit.memories.head(ANN)).pending_turns == 0


@pytest.mark.parametrize("kind", ["unknown user", "unknown tenant"])
async def test_every_query_of_an_unknown_user_says_so(open_unit: OpenUnit, kind: str) -> None:
    await add(open_unit, turn(1))
    who = NOBODY if kind == "unknown user" else MemoryId("ann", "nowhere")
    async with open_unit() as unit:
        memories = unit.memories
        for query in (
            memories.head(who),
            memories.turns(who),
            memories.pending_turn_ids(who),
            memories.pending_sessions(who),
            memories.chunks(who),
            memories.mark_all_pending(who),
            memories.sizes(who),
            memories.state(who),
            memories.adapter(who),
            memories.adapters(who),
            memories.write_version(who, change(0, {})),
            memories.sessions_of(who, ["t00001"]),
            memories.erase_turns(who, ["t00001"]),
            memories.turns_set_aside(who),
            memories.set_aside(who, aside=["t00001"], back=[]),
            memories.delete_user(who),
        ):
            with pytest.raises(NotFound, match="no user named"):
                await query


async def test_deleting_a_user_leaves_no_row(open_unit: OpenUnit, engine: AsyncEngine) -> None:
    bob = MemoryId("bob", "acme")
    for who in (ANN, bob):
        for version in range(4):
            await add(open_unit, turn(version, session=f"s{version % 2}"), memory_id=who)
            async with open_unit() as unit:
                seen = await revisions(unit, who)
                appeared = [chunk(version, session=f"s{version % 2}")]
                await unit.memories.write_version(who, change(version, seen, appeared=appeared))
                await unit.commit()
        await add(open_unit, turn(9, session="s0"), memory_id=who)
        async with open_unit() as unit:
            await unit.memories.erase_turns(who, [turn(9).id])
            await unit.commit()
    before = await rows_by_table(engine)
    async with open_unit() as unit:
        counts = await unit.memories.delete_user(ANN)
        await unit.commit()
    assert dict(counts) == {
        "turns": 4,
        "sessions": 2,
        "chunks": 4,
        "versions": 4,
        "states": 1,
        "adapters": 3,
        "tombstones": 1,
    }
    after = await rows_by_table(engine)
    assert {table: after[table] for table in counts} == {
        table: before[table] - count for table, count in counts.items()
    }
    assert after["users"] == 1
    async with engine.connect() as connection:
        bob_id = await connection.scalar(text("SELECT id FROM users"))
        for table in counts:
            owners = await connection.scalars(text(f"SELECT DISTINCT user_id FROM {table}"))
            assert owners.all() == [bob_id]
    async with open_unit() as unit:
        with pytest.raises(NotFound):
            await unit.memories.delete_user(ANN)
        assert (await unit.memories.head(bob)).turns == 4


async def rows_by_table(engine: AsyncEngine) -> dict[str, int]:
    tables = ("users", "turns", "sessions", "chunks", "versions", "states", "adapters")
    tables += ("tombstones",)
    async with engine.connect() as connection:
        return {
            table: await connection.scalar(text(f"SELECT count(*) FROM {table}"))
            for table in tables
        }


async def test_deleted_text_is_in_no_file(sqlite_path: Path) -> None:
    engine = create_engine(f"sqlite:///{sqlite_path}")
    open_unit = unit_factory(engine)
    words = "the fox keeps 1234 under the doormat"
    await add(open_unit, turn(1, text=words), turn(2, text=words * 1000))
    assert words in contents_of(sqlite_path.parent)
    async with open_unit() as unit:
        await unit.memories.delete_user(ANN)
        await unit.commit()
    assert words not in contents_of(sqlite_path.parent)
    await engine.dispose()


async def test_work_for_a_deleted_user_is_refused_by_its_successor(open_unit: OpenUnit) -> None:
    await add(open_unit, turn(1))
    async with open_unit() as unit:
        seen = await revisions(unit)
    async with open_unit() as unit:
        await unit.memories.delete_user(ANN)
        await unit.commit()
    await add(open_unit, turn(2))
    async with open_unit() as unit:
        with pytest.raises(StateConflict):
            await unit.memories.write_version(ANN, change(0, seen, appeared=[chunk(1)]))
