"""Searching the text of turns, on both databases: the same words find the same turns."""

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_service.domain.memory import MemoryId
from memory_service.domain.search import parse_search
from memory_service.domain.turns import MAX_TURN_BYTES, Turn
from memory_service.errors import NotFound
from memory_service.storage.unit_of_work import UnitOfWork
from tests.integration.storage.records import ANN, turn

OpenUnit = Callable[[], UnitOfWork]
BOB = MemoryId("bob", "acme")
OTHER_ANN = MemoryId("ann", "other")

SAID = [
    turn(0, text="My dog Biscuit is a golden retriever."),
    turn(1, text="A golden dog? Retriever or poodle?", session="b"),
    turn(2, text="Biscuits don't agree with the DOG, says the vet (dr.lee@example.com)."),
    turn(3, text="Er mag KÄSE und 犬 sind well-known since 2019; it's 3.5 kg."),
    turn(4, text="<b>html</b> http://example.com/a_b?q=1&r=2 C:\\path -7e3", session="b"),
]


async def add(open_unit: OpenUnit, *turns: Turn, memory_id: MemoryId = ANN) -> None:
    async with open_unit() as unit:
        await unit.memories.add_turns(memory_id, turns)
        await unit.commit()


async def found(open_unit: OpenUnit, words: str, memory_id: MemoryId = ANN) -> list[int]:
    """Numbers of the turns that hold the words."""
    async with open_unit() as unit:
        turns = await unit.memories.search(memory_id, parse_search(words))
    return [int(one.id[1:]) for one in turns]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("dog", [2, 1, 0]),
        ("dog golden", [1, 0]),
        ('"golden retriever"', [0]),
        ('"retriever golden"', []),
        ("biscuit", [0]),
        ("BISC*", [2, 0]),
        ("don't", [2]),
        ("example", [4, 2]),
        ("dr.lee@example.com", [2]),
        ("lee", [2]),
        ("käse", [3]),
        ("kase", []),
        ("犬", [3]),
        ("known", [3]),
        ("well-known", [3]),
        ("3.5", [3]),
        ("2019", [3]),
        ("html", [4]),
        ("a_b", [4]),
        ("path", [4]),
        ("7e3", [4]),
        ("dog OR cat", []),
        ("cat", []),
    ],
)
async def test_words_find_turns(open_unit: OpenUnit, words: str, numbers: list[int]) -> None:
    await add(open_unit, *SAID)
    assert await found(open_unit, words) == numbers


async def test_only_the_users_own_turns_are_found(open_unit: OpenUnit) -> None:
    await add(open_unit, SAID[0])
    await add(open_unit, SAID[1], memory_id=BOB)
    await add(open_unit, SAID[2], memory_id=OTHER_ANN)
    assert await found(open_unit, "dog") == [0]
    assert await found(open_unit, "dog", BOB) == [1]
    assert await found(open_unit, "dog", OTHER_ANN) == [2]
    with pytest.raises(NotFound):
        await found(open_unit, "dog", MemoryId("bob", "other"))


async def test_pages(open_unit: OpenUnit) -> None:
    """Several turns of one moment are neither skipped nor shown twice."""
    turns = [turn(number, text=f"dog {number}", minutes=number // 3) for number in range(20)]
    await add(open_unit, *turns)
    seen: list[Turn] = []
    before = None
    async with open_unit() as unit:
        while page := await unit.memories.search(ANN, parse_search("dog"), before=before, limit=7):
            seen += page
            before = page[-1].order
    assert seen == turns[::-1]


async def test_the_longest_turns_can_be_stored_and_found_by_their_beginning(
    open_unit: OpenUnit,
) -> None:
    words = " ".join(f"w{number:06x}" for number in range(MAX_TURN_BYTES // 8))
    await add(open_unit, turn(0, text=words), turn(1, text="犬 " * (MAX_TURN_BYTES // 4)))
    await add(
        open_unit, turn(2, text="".join(chr(0x4E00 + n % 20_000) + " " for n in range(249_999)))
    )
    assert await found(open_unit, "w000007 w000003") == [0]
    assert await found(open_unit, "犬") == [2, 1]


async def test_what_is_forgotten_is_found_no_more(open_unit: OpenUnit, engine: AsyncEngine) -> None:
    await add(open_unit, *SAID)
    async with open_unit() as unit:
        await unit.memories.erase_turns(ANN, [SAID[0].id, SAID[3].id])
        assert [one.id for one in await unit.memories.search(ANN, parse_search("dog"))] == [
            SAID[2].id, SAID[1].id
        ]  # fmt: skip
    assert await found(open_unit, "dog") == [2, 1, 0]  # it was not committed
    async with open_unit() as unit:
        await unit.memories.erase_turns(ANN, [SAID[0].id, SAID[3].id])
        await unit.commit()
    assert await found(open_unit, "dog") == [2, 1]
    assert await found(open_unit, "käse") == []
    async with open_unit() as unit:
        await unit.memories.delete_user(ANN)
        await unit.commit()
    await add(open_unit, turn(9, text="nothing else"))
    assert await found(open_unit, "dog") == []
    if engine.dialect.name == "sqlite":
        async with engine.connect() as connection:  # fails where index and turns differ
            check = "INSERT INTO turn_words(turn_words, rank) VALUES ('integrity-check', 1)"
            await connection.execute(text(check))
