"""Rolling back and editing: any subset of the kept turns is a memory."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Removal
from memory_service.errors import InvalidInput, NotFound
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.edit import Edit
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.remember import Remember
from memory_service.services.rollback import Rollback
from tests.helpers.fakes import FakeEncoder, FakeStore, StoredUser, sequential
from tests.helpers.histories import digest_of, histories, turn

ANN = MemoryId("ann")
LONG = [turn(number, f"{number} word") for number in range(0, 24, 2)]
"""One session of four chunks."""


class Setup:
    """Everything that changes a memory, on fakes."""

    def __init__(self, encoder: FakeEncoder | None = None) -> None:
        self.store = FakeStore()
        self.compute = Compute()
        self.encoder = encoder or FakeEncoder()
        self.remember = Remember(self.store, self.encoder, self.compute)
        amend = Amend(self.store, self.encoder, self.compute, self.remember)
        self.forget, self.edit, self.rollback = ForgetTurns(amend), Edit(amend), Rollback(amend)

    def user(self) -> StoredUser:
        return self.store.users[ANN]

    def check(self, turns, aside=()) -> None:
        """The memory is made of these turns, and the others are kept beside it."""
        user = self.user()
        assert set(user.turns.values()) == {*turns, *aside}
        assert user.aside == {one.id for one in aside}
        assert user.state.digest == digest_of(self.encoder, turns)
        held = {turn_id for chunk in user.chunks for turn_id in chunk.turn_ids}
        assert held == {one.id for one in turns}  # a long one may be in several chunks


@pytest.fixture
def setup():
    made = Setup()
    yield made
    made.compute.close()


async def test_back_and_forth(setup):
    for one in LONG:
        await setup.remember.append(ANN, [one])
    receipt = await setup.rollback.version(ANN, 5)
    assert (receipt.removal, receipt.version) == (Removal.SUBTRACTED, len(LONG) + 1)
    setup.check(LONG[:5], aside=LONG[5:])
    assert setup.user().adapters[receipt.version].reason == "rollback to 5"
    await setup.rollback.version(ANN, len(LONG))
    setup.check(LONG)


async def test_appending_after_a_rollback_brings_nothing_back(setup):
    for one in LONG:
        await setup.remember.append(ANN, [one])
    await setup.rollback.version(ANN, 5)
    await setup.remember.append(ANN, [turn(99)])
    setup.check([*LONG[:5], turn(99)], aside=LONG[5:])
    assert (await setup.remember.append(ANN, LONG)).known == len(LONG)
    setup.check([*LONG[:5], turn(99)], aside=LONG[5:])


async def test_as_of_a_time_holds_what_was_said_until_then(setup):
    await setup.remember.append(ANN, [*LONG, turn(1, session="b"), turn(9, session="b")])
    await setup.rollback.as_of(ANN, LONG[3].time)
    setup.check([*LONG[:4], turn(1, session="b")], aside=[*LONG[4:], turn(9, session="b")])


async def test_what_was_forgotten_does_not_come_back(setup):
    for one in LONG:
        await setup.remember.append(ANN, [one])
    await setup.forget.turns(ANN, {LONG[2].id})
    await setup.rollback.version(ANN, 5)
    setup.check([*LONG[:2], *LONG[3:5]], aside=LONG[5:])


async def test_what_is_set_aside_can_be_forgotten(setup):
    for one in LONG:
        await setup.remember.append(ANN, [one])
    await setup.rollback.version(ANN, 5)
    receipt = await setup.forget.turns(ANN, {LONG[8].id})
    assert receipt.state_digest == digest_of(setup.encoder, LONG[:5])
    setup.check(LONG[:5], aside=[*LONG[5:8], *LONG[9:]])
    await setup.rollback.version(ANN, len(LONG))
    setup.check([*LONG[:8], *LONG[9:]])


@given(history=histories(most=8), data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_version_of_any_history(history, data):
    versions = data.draw(st.lists(st.integers(1, len(history)), min_size=1, max_size=3))

    async def roll() -> None:
        setup = Setup()
        for one in history:
            await setup.remember.append(ANN, [one])
        for version in versions:
            await setup.rollback.version(ANN, version)
            setup.check(history[:version], aside=history[version:])
        setup.compute.close()

    asyncio.run(roll())


async def test_sequential_encoding_replays_the_earlier_turns():
    setup, never = Setup(sequential()), Setup(sequential())
    for one in LONG:
        await setup.remember.append(ANN, [one])
    receipt = await setup.rollback.version(ANN, 5)
    await never.remember.append(ANN, LONG[:5])
    assert receipt.removal is Removal.REBUILT
    assert receipt.state_digest == never.user().state.digest
    for one in (setup, never):
        one.compute.close()


async def test_an_unknown_version_is_named(setup):
    await setup.remember.append(ANN, LONG)
    with pytest.raises(NotFound, match="ann@7"):
        await setup.rollback.version(ANN, 7)


# Editing


async def test_an_edit_is_the_memory_that_heard_the_new_text(setup):
    await setup.remember.append(ANN, LONG)
    receipt = await setup.edit.turn(ANN, LONG[4].id, "something else", "new")
    (new,) = (one for one in setup.user().turns.values() if one.id == "new")
    assert (new.text, new.time, new.role) == ("something else", LONG[4].time, LONG[4].role)
    setup.check([*LONG[:4], new, *LONG[5:]])
    assert (receipt.removal, receipt.version) == (Removal.SUBTRACTED, 2)
    assert await setup.remember.encode_pending(ANN) == 2, "nothing is left to encode"
    assert (await setup.remember.append(ANN, LONG)).forgotten == 1
    setup.check([*LONG[:4], new, *LONG[5:]])


async def test_an_edit_that_cannot_be_is_refused_and_changes_nothing(setup):
    await setup.remember.append(ANN, LONG)
    for turn_id, text, new_id, error in (
        ("t999", "else", "new", NotFound),
        (LONG[0].id, " ", "new", InvalidInput),
        (LONG[0].id, "else", LONG[1].id, InvalidInput),
        (LONG[0].id, "else", LONG[0].id, InvalidInput),
    ):
        with pytest.raises(error):
            await setup.edit.turn(ANN, turn_id, text, new_id)
    setup.check(LONG)
    assert setup.user().version == 1
    await setup.forget.turns(ANN, {LONG[0].id})
    with pytest.raises(InvalidInput, match="was forgotten"):
        await setup.edit.turn(ANN, LONG[1].id, "else", LONG[0].id)
    setup.check(LONG[1:])
