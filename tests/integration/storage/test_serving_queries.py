"""What a running server asks of the database, on both of them."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from memory_service.domain.keys import ApiKey, Scope, parse_scopes
from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput, NotFound, Unauthenticated
from memory_service.services.keys import Keys
from memory_service.storage.unit_of_work import UnitOfWork
from tests.integration.storage.records import ANN, change, chunk, revisions, turn

OpenUnit = Callable[[], UnitOfWork]
OTHER = MemoryId(ANN.user, "another tenant")


async def store(open_unit: OpenUnit, memory_id: MemoryId, *numbers: int) -> None:
    async with open_unit() as unit:
        await unit.memories.add_turns(memory_id, [turn(number) for number in numbers])
        await unit.commit()


async def test_the_newest_turns_in_the_order_said(open_unit: OpenUnit) -> None:
    await store(open_unit, ANN, *range(1, 8))
    await store(open_unit, OTHER, 9)
    async with open_unit() as unit:
        everything = await unit.memories.turns(ANN)
        assert await unit.memories.latest_turns(ANN, limit=3) == everything[-3:]
        assert await unit.memories.latest_turns(ANN, limit=99) == everything
        session = everything[0].session
        of_session = [one for one in everything if one.session == session]
        found = await unit.memories.latest_turns(ANN, session=session, limit=2)
        assert found == of_session[-2:]
        assert await unit.memories.latest_turns(ANN, session="none", limit=2) == []
        with pytest.raises(NotFound):
            await unit.memories.latest_turns(MemoryId("nobody"), limit=1)


async def test_who_has_work_pending_and_how_long_a_history_is(open_unit: OpenUnit) -> None:
    await store(open_unit, ANN, 1)
    await store(open_unit, OTHER, 2)
    async with open_unit() as unit:
        assert await unit.memories.pending_memories() == [ANN, OTHER]
        seen = await revisions(unit)
        made = chunk(1)
        await unit.memories.write_version(ANN, change(0, seen, appeared=[made]))
        await unit.commit()
    async with open_unit() as unit:
        assert await unit.memories.pending_memories() == [OTHER]
        assert await unit.memories.recipe_tokens(ANN, 1) == made.tokens
        assert await unit.memories.recipe_tokens(OTHER, 1) == 0


async def test_keys_are_stored_as_digests_and_end_when_revoked(open_unit: OpenUnit) -> None:
    keys = Keys(open_unit)
    assert not await keys.are_required()
    key, token = await keys.create("acme", frozenset({Scope.READ}))
    assert await keys.are_required()
    assert token not in repr(await keys.list())
    assert await keys.check(token) == key
    for wrong in (token + "x", token[:-1], "", f"mk_{key.id}_", "mk__", "sk-1", "mk_ä_b"):
        with pytest.raises(Unauthenticated):
            await keys.check(wrong)
    await keys.revoke(key.id)
    revoked = (await keys.list())[0].revoked_at
    assert revoked is not None
    await keys.revoke(key.id)
    assert (await keys.list())[0].revoked_at == revoked
    with pytest.raises(Unauthenticated):
        await keys.check(token)
    assert await keys.are_required()  # the last key's end opens nothing
    with pytest.raises(NotFound):
        await keys.revoke("none")


def test_scopes_are_read_from_a_list_with_commas() -> None:
    assert parse_scopes("read, write") == {Scope.READ, Scope.WRITE}
    with pytest.raises(InvalidInput, match="all"):
        parse_scopes("read,all")
    with pytest.raises(InvalidInput, match="at least one"):
        ApiKey("1", "acme", parse_scopes(""), "", datetime.now(UTC))


async def test_pages_of_turns_before_a_turn(open_unit: OpenUnit) -> None:
    await store(open_unit, ANN, *range(1, 8))
    async with open_unit() as unit:
        everything = await unit.memories.turns(ANN)
        page = await unit.memories.latest_turns(ANN, before=everything[4].order, limit=3)
        assert page == everything[1:4]
        assert await unit.memories.latest_turns(ANN, before=everything[0].order, limit=3) == []


async def test_turns_are_found_by_id(open_unit: OpenUnit) -> None:
    await store(open_unit, ANN, *range(1, 8))
    await store(open_unit, OTHER, 9)
    async with open_unit() as unit:
        everything = await unit.memories.turns(ANN)
        ids = [everything[5].id, everything[2].id, turn(9).id, "none"]
        expected = {one.id: one for one in (everything[2], everything[5])}
        assert await unit.memories.turns_by_id(ANN, ids) == expected
        with pytest.raises(NotFound):
            await unit.memories.turns_by_id(MemoryId("nobody"), ids)


async def test_sessions_by_name_with_their_times(open_unit: OpenUnit) -> None:
    await store(open_unit, ANN, *range(1, 8))
    async with open_unit() as unit:
        heads = await unit.memories.session_heads(ANN)
        by_name: dict[str, list] = {}
        for one in await unit.memories.turns(ANN):
            by_name.setdefault(one.session, []).append(one.time)
        assert [(one.name, one.turns, one.first_at, one.last_at) for one in heads] == [
            (name, len(times), times[0], times[-1]) for name, times in sorted(by_name.items())
        ]
        assert all(one.is_pending for one in heads)
        first, *rest = heads
        assert await unit.memories.session_heads(ANN, limit=1) == [first]
        assert await unit.memories.session_heads(ANN, after=first.name) == rest
        await unit.memories.write_version(ANN, change(0, await revisions(unit)))
        assert not any(one.is_pending for one in await unit.memories.session_heads(ANN))
