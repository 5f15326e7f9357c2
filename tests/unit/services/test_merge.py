"""Merging two memories: a union, and what one of them forgot stays forgotten."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput, NotFound, StateConflict
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.merge import Merge
from memory_service.services.remember import Remember
from memory_service.services.rollback import Rollback
from tests.helpers.fakes import FakeEncoder, FakeStore, StoredUser, sequential
from tests.helpers.histories import digest_of, histories, turn

ANN, BOB, CID = (MemoryId(name) for name in ("ann", "bob", "cid"))
LONG = [turn(number, f"{number} word") for number in range(0, 24, 2)]


class Setup:
    """Merging on fakes."""

    def __init__(self, encoder: FakeEncoder | None = None) -> None:
        self.store = FakeStore()
        self.compute = Compute()
        self.encoder = encoder or FakeEncoder()
        self.remember = Remember(self.store, self.encoder, self.compute)
        amend = Amend(self.store, self.encoder, self.compute, self.remember)
        self.forget, self.rollback = ForgetTurns(amend), Rollback(amend)
        self.merge = Merge(self.store, amend, self.remember)

    def user(self, memory_id: MemoryId = ANN) -> StoredUser:
        return self.store.users[memory_id]

    def check(self, turns, memory_id: MemoryId = ANN) -> None:
        """The memory is made of these turns."""
        user = self.user(memory_id)
        assert {one for one in user.turns.values() if one.id not in user.aside} == set(turns)
        assert user.state.digest == digest_of(self.encoder, turns)


@pytest.fixture
def setup():
    made = Setup()
    yield made
    made.compute.close()


async def test_the_union_and_the_other_stays(setup):
    await setup.remember.append(ANN, LONG[:8])
    await setup.remember.append(BOB, [*LONG[5:], turn(1, session="b")])
    merged = await setup.merge.users(ANN, BOB)
    assert (merged.new, merged.known, merged.forgotten, merged.erased) == (5, 3, 0, 0)
    setup.check([*LONG, turn(1, session="b")])
    setup.check([*LONG[5:], turn(1, session="b")], BOB)
    again = await setup.merge.users(ANN, BOB)
    assert (again.new, again.version) == (0, merged.version)


async def test_tombstones_win_on_both_sides_and_travel_on(setup):
    for one in (ANN, BOB, CID):
        await setup.remember.append(one, LONG)
    await setup.forget.turns(ANN, [LONG[1].id])
    await setup.forget.turns(BOB, [LONG[4].id, LONG[5].id])
    merged = await setup.merge.users(ANN, BOB)
    assert (merged.new, merged.forgotten, merged.erased) == (0, 1, 2)
    rest = [LONG[0], *LONG[2:4], *LONG[6:]]
    setup.check(rest)
    assert (await setup.remember.append(ANN, LONG)).forgotten == 3
    await setup.merge.users(CID, ANN)
    setup.check(rest, CID)


async def test_one_id_with_two_texts_ends_it_before_anything_is_changed(setup):
    await setup.remember.append(ANN, LONG[:4])
    await setup.remember.append(BOB, [replace(LONG[3], text="something else"), *LONG[4:]])
    await setup.forget.turns(BOB, [LONG[5].id])
    before = setup.user()
    with pytest.raises(StateConflict, match=LONG[3].id):
        await setup.merge.users(ANN, BOB)
    assert setup.user() == before
    await setup.forget.turns(BOB, [LONG[3].id])  # one side forgets it: no conflict is left
    await setup.merge.users(ANN, BOB)
    setup.check([*LONG[:3], LONG[4], *LONG[6:]])


async def test_what_only_one_set_aside_is_in(setup):
    for memory_id, version in ((ANN, 4), (BOB, 8)):
        for one in LONG:
            await setup.remember.append(memory_id, [one])
        await setup.rollback.version(memory_id, version)
    await setup.merge.users(ANN, BOB)
    setup.check(LONG[:8])
    assert setup.user().aside == {one.id for one in LONG[8:]}


async def test_what_the_other_set_aside_comes_set_aside(setup):
    for one in LONG:
        await setup.remember.append(BOB, [one])
    await setup.rollback.version(BOB, 8)
    await setup.remember.append(ANN, [turn(1)])
    await setup.merge.users(ANN, BOB)
    setup.check([turn(1), *LONG[:8]])
    assert setup.user().aside == {one.id for one in LONG[8:]}


@given(history=histories(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_order_and_repetition_do_not_matter(history, data):
    """Three devices, each with a part of a history of which it forgot a part."""
    parts = [data.draw(st.lists(st.sampled_from(history), unique=True)) for _ in range(3)]
    gone = [data.draw(st.sets(st.sampled_from(part))) if part else set() for part in parts]
    orders = [
        [*data.draw(st.lists(st.sampled_from([0, 1, 2]))), *order]
        for order in (data.draw(st.permutations([0, 1, 2])), data.draw(st.permutations([2, 1, 0])))
    ]
    kept = {one for part in parts for one in part} - {one for some in gone for one in some}

    async def merge(order) -> str:
        setup = Setup()
        devices = [MemoryId(f"device{number}") for number in range(3)]
        for device, part, some in zip(devices, parts, gone, strict=True):
            await setup.remember.append(device, [turn(900 + int(device.user[-1])), *part])
            if some:
                await setup.forget.turns(device, [one.id for one in some])
        await setup.remember.append(ANN, [turn(999)])
        for number in order:
            await setup.merge.users(ANN, devices[number])
        setup.check({*kept, turn(999), *(turn(900 + number) for number in range(3))})
        setup.compute.close()
        return setup.user().state.digest

    assert asyncio.run(merge(orders[0])) == asyncio.run(merge(orders[1]))


@given(
    dates=st.lists(st.none() | st.integers(1, 99), min_size=3, max_size=3),
    order=st.permutations([0, 1, 2]),
)
@settings(max_examples=20, deadline=None)
def test_of_several_dates_of_expiry_the_earliest_holds(dates, order):
    async def merge() -> list[datetime | None]:
        setup = Setup()
        for number, days in enumerate(dates):
            date = None if days is None else LONG[0].time + timedelta(days=days)
            dated = replace(LONG[0], expires_at=date)
            await setup.remember.append(MemoryId(f"device{number}"), [dated])
        await setup.remember.append(ANN, [turn(999)])
        for number in order:
            await setup.merge.users(ANN, MemoryId(f"device{number}"))
        setup.compute.close()
        return [one.expires_at for one in setup.user().turns.values()]

    earliest = min((days for days in dates if days is not None), default=None)
    date = None if earliest is None else LONG[0].time + timedelta(days=earliest)
    assert asyncio.run(merge()) == [None, date]


async def test_who_cannot_be_merged(setup):
    await setup.remember.append(ANN, LONG)
    with pytest.raises(InvalidInput, match="both sides"):
        await setup.merge.users(ANN, ANN)
    with pytest.raises(InvalidInput, match="must be default"):
        await setup.merge.users(ANN, MemoryId("ann", "other"))
    for pair in ((ANN, BOB), (BOB, ANN)):
        with pytest.raises(NotFound, match="bob"):
            await setup.merge.users(*pair)


async def test_sequential_encoding_reads_everything_again():
    setup = Setup(sequential())
    await setup.remember.append(ANN, LONG[4:])
    await setup.remember.append(BOB, LONG[:6])
    await setup.merge.users(ANN, BOB)
    await setup.remember.append(CID, LONG)
    assert setup.user().state.digest == setup.user(CID).state.digest
    setup.compute.close()
