"""Quotas: what is too much is refused whole, and counts are those of the rows."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from memory_service.domain.memory import MemoryId
from memory_service.domain.quotas import Quota, Usage
from memory_service.errors import InvalidInput, NotFound, QuotaExceeded
from memory_service.services.append import Append
from memory_service.services.forget import Forget
from memory_service.services.quotas import Quotas
from memory_service.storage.tables import TurnRow
from memory_service.storage.unit_of_work import UnitOfWork
from tests.integration.storage.records import ANN, turn

BOB = MemoryId("bob", ANN.tenant)
OTHER = MemoryId("ann", "other tenant")

OpenUnit = Callable[[], UnitOfWork]


async def usage(open_unit: OpenUnit, tenant: str = ANN.tenant) -> Usage:
    return (await Quotas(open_unit).show(tenant))[1]


async def test_without_a_quota_all_is_counted_and_nothing_refused(open_unit: OpenUnit) -> None:
    append = Append(open_unit)
    await append.turns(ANN, [turn(1, text="abc"), turn(2, text="äöü")])
    await append.turns(BOB, [turn(1, text="x")])
    await append.turns(OTHER, [turn(1, text="elsewhere")])
    assert await Quotas(open_unit).show(ANN.tenant) == (Quota(), Usage(2, 3, 3 + 6 + 1))


@pytest.mark.parametrize(
    ("limits", "what"),
    [({"turns": 2}, "3 turns where its quota is 2"), ({"text_bytes": 5}, "6 text bytes")],
)
async def test_too_many_turns_are_refused_whole(
    open_unit: OpenUnit, limits: dict[str, int | None], what: str
) -> None:
    append = Append(open_unit)
    await Quotas(open_unit).change(ANN.tenant, limits)
    await append.turns(ANN, [turn(1, text="ab"), turn(2, text="cd")])
    with pytest.raises(QuotaExceeded, match=what):
        await append.turns(ANN, [turn(2, text="cd"), turn(3, text="ef")])
    with pytest.raises(QuotaExceeded):  # the quota is the tenant's, not the user's
        await append.turns(BOB, [turn(3, text="ef")])
    assert await usage(open_unit) == Usage(1, 2, 4)
    again = await append.turns(ANN, [turn(1, text="ab")])  # known turns are no more
    assert (again.new, again.known) == (0, 1)
    await append.turns(OTHER, [turn(3, text="ef")])


async def test_a_user_too_many_is_refused_and_those_there_go_on(open_unit: OpenUnit) -> None:
    append = Append(open_unit)
    await Quotas(open_unit).change(ANN.tenant, {"users": 1})
    await append.turns(ANN, [turn(1)])
    with pytest.raises(QuotaExceeded, match="2 users where its quota is 1"):
        await append.turns(BOB, [turn(1)])
    await append.turns(ANN, [turn(2)])
    await Quotas(open_unit).change(ANN.tenant, {"users": 0})
    await append.turns(ANN, [turn(3)])
    assert (await usage(open_unit)).users == 1


async def test_forgetting_makes_room(open_unit: OpenUnit) -> None:
    append, forget = Append(open_unit), Forget(open_unit)
    await Quotas(open_unit).change(ANN.tenant, {"turns": 3, "text_bytes": 100})
    await append.turns(ANN, [turn(number, text="äb") for number in (1, 2, 3)])
    await forget.withdraw(ANN, [turn(1).id, turn(2).id], "test")
    assert await usage(open_unit) == Usage(1, 1, 3)
    await append.turns(BOB, [turn(1), turn(2)])
    await forget.user(BOB)
    assert await usage(open_unit) == Usage(1, 1, 3)


async def test_counts_are_those_of_the_rows_after_a_refusal_and_a_removal(
    open_unit: OpenUnit,
) -> None:
    append = Append(open_unit)
    await Quotas(open_unit).change(ANN.tenant, {"turns": 4})
    await append.turns(ANN, [turn(number) for number in range(4)])
    with pytest.raises(QuotaExceeded):
        await append.turns(ANN, [turn(9)])
    await Forget(open_unit).withdraw(ANN, [turn(0).id, "unknown"], "test")
    async with open_unit() as unit:
        rows = await unit.memories._transaction.read(select(func.count()).select_from(TurnRow))
    assert (await usage(open_unit)).turns == rows[0][0] == 3


async def test_writers_at_once_do_not_pass_the_limit_together(open_unit: OpenUnit) -> None:
    append = Append(open_unit)
    await Quotas(open_unit).change(ANN.tenant, {"turns": 5})

    async def one(number: int) -> bool:
        try:
            await append.turns(MemoryId(f"user{number}", ANN.tenant), [turn(number)])
        except QuotaExceeded:
            return False
        return True

    stored = await asyncio.gather(*(one(number) for number in range(12)))
    assert sum(stored) == 5
    assert await usage(open_unit) == Usage(5, 5, sum(map(len, await texts(open_unit))))


async def texts(open_unit: OpenUnit) -> list[str]:
    async with open_unit() as unit:
        return [text for (text,) in await unit.memories._transaction.read(select(TurnRow.text))]


async def test_limits_change_one_by_one_and_go_away(open_unit: OpenUnit) -> None:
    quotas = Quotas(open_unit)
    with pytest.raises(NotFound, match="tenant"):
        await quotas.show("new")
    await quotas.change("new", {"turns": 5})
    await quotas.change("new", {"users": 2})
    assert (await quotas.show("new"))[0] == Quota(users=2, turns=5)
    await quotas.change("new", {"turns": None})
    assert (await quotas.show("new"))[0] == Quota(users=2)
    with pytest.raises(InvalidInput, match="users"):
        await quotas.change("new", {"users": -1})
