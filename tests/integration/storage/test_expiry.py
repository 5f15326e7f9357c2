"""Until when turns are kept: a turn's own date, else its tenant's rule."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn
from memory_service.errors import InvalidInput, NotFound
from memory_service.services.append import Append
from memory_service.services.expiry import MOST_DAYS, Expiry
from memory_service.storage.unit_of_work import UnitOfWork
from tests.integration.storage.records import ANN, START, turn

BOB = MemoryId("bob", ANN.tenant)
OTHER = MemoryId("ann", "other tenant")

OpenUnit = Callable[[], UnitOfWork]


def days(number: float) -> datetime:
    return START + timedelta(days=number)


def dated(number: int, until: float) -> Turn:
    return replace(turn(number, minutes=0), expires_at=days(until))


async def test_a_turn_is_over_from_its_own_date_on(open_unit: OpenUnit) -> None:
    expiry = Expiry(open_unit)
    await Append(open_unit).turns(ANN, [dated(1, 3), dated(2, 5), turn(3)])
    await Append(open_unit).turns(BOB, [dated(1, 4)])
    assert await expiry.due(days(3) - timedelta(microseconds=1)) == []
    assert await expiry.due(days(3)) == [ANN]
    assert await expiry.expired(ANN, days(3)) == {turn(1).id}
    assert await expiry.due(days(9)) == [ANN, BOB]
    assert await expiry.expired(ANN, days(999)) == {turn(1).id, turn(2).id}


async def test_the_rule_is_the_tenants_and_holds_for_what_is_kept_already(
    open_unit: OpenUnit,
) -> None:
    expiry, append = Expiry(open_unit), Append(open_unit)
    for memory_id in (ANN, BOB, OTHER):
        await append.turns(memory_id, [turn(1, minutes=0), turn(2, minutes=60)])
    await append.turns(BOB, [dated(3, 999), dated(4, 1)])
    assert await expiry.rule(ANN.tenant) is None
    assert await expiry.due(days(500)) == [BOB]
    await expiry.change_rule(ANN.tenant, 90)
    assert await expiry.rule(ANN.tenant) == 90
    assert await expiry.due(days(90)) == [ANN, BOB]
    assert await expiry.expired(ANN, days(90)) == {turn(1).id}
    assert await expiry.expired(BOB, days(91)) == {turn(1).id, turn(2).id, turn(4).id}
    assert await expiry.expired(OTHER, days(91)) == set()
    await expiry.change_rule(ANN.tenant, None)
    assert await expiry.due(days(500)) == [BOB]


async def test_dates_change_and_go_away_and_are_no_part_of_a_turn(open_unit: OpenUnit) -> None:
    expiry, append = Expiry(open_unit), Append(open_unit)
    await append.turns(ANN, [dated(1, 3), turn(2)])
    again = await append.turns(ANN, [dated(1, 7)])  # the same turn: the first date stays
    assert (again.new, again.known) == (0, 1)
    assert await expiry.expired(ANN, days(3)) == {turn(1).id}
    await expiry.keep(ANN, [turn(1).id, turn(2).id], days(5))
    assert await expiry.due(days(4)) == []
    async with open_unit() as unit:
        kept = await unit.memories.turns(ANN)
    assert [one.expires_at for one in kept] == [days(5), days(5)]
    await expiry.keep(ANN, [turn(2).id], None)
    assert await expiry.expired(ANN, days(5)) == {turn(1).id}


async def test_what_is_wrong_changes_nothing(open_unit: OpenUnit) -> None:
    expiry = Expiry(open_unit)
    await Append(open_unit).turns(ANN, [turn(1)])
    with pytest.raises(NotFound, match="t00009"):
        await expiry.keep(ANN, [turn(1).id, turn(9).id], days(5))
    with pytest.raises(InvalidInput, match="until"):
        await expiry.keep(ANN, [turn(1).id], turn(1).time)
    with pytest.raises(NotFound, match="bob"):
        await expiry.keep(BOB, [turn(1).id], days(5))
    with pytest.raises(NotFound, match="tenant"):
        await expiry.rule("nobody")
    for wrong in (0, -1, MOST_DAYS + 1):
        with pytest.raises(InvalidInput, match="days"):
            await expiry.change_rule(ANN.tenant, wrong)
    assert await expiry.due(days(999)) == []
    with pytest.raises(InvalidInput, match="after the turn's time"):
        dated(1, 0)
