import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.domain.chunks import Chunk
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival, Removal
from memory_service.errors import InvalidInput, NotFound, NumericalError, Unavailable
from memory_service.generator.state import digest
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.forget import Forget, Selection
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.remember import Remember
from tests.helpers.fakes import FakeEncoder, FakeStore, StoredUser, sequential
from tests.helpers.histories import START, digest_of, histories, turn

ANN = MemoryId("ann")
LONG = [turn(number, f"{number} word") for number in range(0, 24, 2)]
"""One session of four chunks."""


class Setup:
    """Remembering and forgetting on fakes."""

    def __init__(self, encoder: FakeEncoder | None = None) -> None:
        self.store = FakeStore()
        self.compute = Compute()
        self.use(encoder or FakeEncoder())

    def use(self, encoder: FakeEncoder) -> None:
        self.encoder = encoder
        self.remember = Remember(self.store, encoder, self.compute)
        self.forget = ForgetTurns(Amend(self.store, encoder, self.compute, self.remember))

    def user(self) -> StoredUser:
        return self.store.users[ANN]

    def check(self, receipt, turns, removal=Removal.SUBTRACTED) -> None:
        """The state is that of a memory that saw only these turns, and the receipt says so."""
        assert receipt.removal is removal
        assert set(self.user().turns.values()) == set(turns)
        state = self.user().state
        assert state.digest == receipt.state_digest
        if self.encoder.fingerprint.encoding == "independent":
            assert state.digest == digest_of(self.encoder, turns)
        assert receipt.version == self.user().version
        assert self.user().adapters[receipt.version].state_digest == receipt.state_digest


@pytest.fixture
def setup():
    made = Setup()
    yield made
    made.compute.close()


def ids(*turns) -> set[str]:
    return {one.id for one in turns}


async def test_the_state_is_that_of_a_memory_that_never_saw_the_turn(setup):
    for one in LONG:
        await setup.remember.append(ANN, [one])
    for gone in (LONG[0], LONG[5], LONG[-1]):
        receipt = await setup.forget.turns(ANN, ids(gone))
        kept = sorted(setup.user().turns.values(), key=lambda one: one.order)
        assert gone not in kept
        setup.check(receipt, kept)
        assert (receipt.erased.turns, receipt.reason) == (1, "")


@given(history=histories(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_turns_of_any_history(history, data):
    gone = data.draw(st.sets(st.sampled_from(history), min_size=1))
    kept = [one for one in history if one not in gone]

    async def forget() -> None:
        setup = Setup()
        await setup.remember.append(ANN, history)
        receipt = await setup.forget.turns(ANN, ids(*gone))
        setup.check(receipt, kept)
        setup.compute.close()

    asyncio.run(forget())


async def test_forgetting_everything_leaves_the_state_of_a_memory_that_saw_nothing(setup):
    await setup.remember.append(ANN, LONG)
    receipt = await setup.forget.turns(ANN, ids(*LONG))
    assert receipt.state_digest == digest(setup.encoder.empty_state())
    setup.check(receipt, [])
    assert setup.user().chunks == []


async def test_turns_that_were_never_encoded_need_no_subtraction(setup):
    async with setup.store() as unit:
        await unit.memories.add_turns(ANN, [turn(0), turn(1)])
        await unit.commit()
    receipt = await setup.forget.turns(ANN, ids(turn(1)))
    setup.check(receipt, [turn(0)])


async def test_what_is_pending_elsewhere_stays_pending(setup):
    await setup.remember.append(ANN, LONG)
    async with setup.store() as unit:
        await unit.memories.add_turns(ANN, [turn(99, session="other")])
        await unit.commit()
    receipt = await setup.forget.turns(ANN, ids(LONG[3]))
    assert receipt.state_digest == digest_of(setup.encoder, [*LONG[:3], *LONG[4:]])
    await setup.remember.encode_pending(ANN)
    kept = [*LONG[:3], *LONG[4:], turn(99, session="other")]
    assert setup.user().state.digest == digest_of(setup.encoder, kept)


async def test_versions_that_held_the_turn_lose_their_adapters(setup):
    for one in LONG[:4]:
        await setup.remember.append(ANN, [one])
    receipt = await setup.forget.turns(ANN, ids(LONG[2]))
    assert receipt.erased.rewritten_versions == receipt.erased.adapters == 2
    assert set(setup.user().adapters) == {1, 2, 5}


async def test_a_forgotten_turn_does_not_come_back(setup):
    await setup.remember.append(ANN, LONG)
    await setup.forget.turns(ANN, ids(LONG[2]))
    appended = await setup.remember.append(ANN, LONG)
    assert (appended.new, appended.known, appended.forgotten) == (0, len(LONG) - 1, 1)
    assert LONG[2].id not in setup.user().turns


async def test_unknown_turns_and_users(setup):
    with pytest.raises(NotFound, match="ann"):
        await setup.forget.turns(ANN, {"t000"})
    await setup.remember.append(ANN, [turn(0)])
    before = setup.user()
    with pytest.raises(NotFound, match="t009"):
        await setup.forget.turns(ANN, {"t009"})
    assert setup.user().version == before.version


# Where this machine cannot subtract exactly


async def test_a_differing_digest_withdraws_at_once_and_rebuilds(setup):
    await setup.remember.append(ANN, LONG)
    user = setup.user()
    user.chunks = [replace(chunk, update_digest="0" * 64) for chunk in user.chunks]
    user.state = replace(user.state, closed=user.state.closed + 1)  # what that machine computed
    seen = []

    def look(chunk: Chunk) -> None:
        if not setup.user().adapters:
            seen.append((setup.user().state, LONG[0].id in setup.user().turns))

    setup.encoder.interrupt = look
    receipt = await setup.forget.turns(ANN, ids(LONG[0]))
    assert seen, "the kept turns are encoded after the adapter was withdrawn"
    assert set(seen) == {(None, False)}
    setup.check(receipt, LONG[1:], Removal.REBUILT)
    assert "does not reproduce" in receipt.reason


async def test_a_state_of_another_generator_is_rebuilt(setup):
    await setup.remember.append(ANN, LONG)
    setup.use(FakeEncoder(replace(setup.encoder.fingerprint, generator="another")))
    receipt = await setup.forget.turns(ANN, ids(LONG[0]))
    setup.check(receipt, LONG[1:], Removal.REBUILT)
    assert "another" in receipt.reason


async def test_an_encoder_that_fails_does_not_keep_a_turn_from_being_forgotten(setup):
    await setup.remember.append(ANN, LONG)

    failures = [NumericalError("hidden states", "the base model returned NaN")] * 2

    def fail(chunk: Chunk) -> None:
        raise failures.pop() if failures else Unavailable("base model", "is out of memory")

    setup.encoder.interrupt = fail
    receipt = await setup.forget.turns(ANN, ids(LONG[0]))
    assert receipt.removal is Removal.WITHDRAWN
    assert (receipt.version, receipt.state_digest) == (None, None)
    assert (setup.user().state, setup.user().adapters) == (None, {})
    assert set(setup.user().turns.values()) == set(LONG[1:])
    setup.encoder.interrupt = lambda chunk: None
    await setup.remember.encode_pending(ANN)
    assert setup.user().state.digest == digest_of(setup.encoder, LONG[1:])


async def test_sequential_encoding_replays_what_is_kept():
    setup = Setup(sequential())
    await setup.remember.append(ANN, LONG)
    receipt = await setup.forget.turns(ANN, ids(LONG[3]))
    setup.check(receipt, [*LONG[:3], *LONG[4:]], Removal.REBUILT)
    assert "sequential" in receipt.reason
    never = Setup(sequential())
    await never.remember.append(ANN, [*LONG[:3], *LONG[4:]])
    assert receipt.state_digest == never.user().state.digest
    for one in (setup, never):
        one.compute.close()


async def test_a_writer_in_between_is_not_lost(setup):
    await setup.remember.append(ANN, LONG)
    loop = asyncio.get_running_loop()
    others = []

    def interrupt(chunk: Chunk) -> None:
        if not others:
            others.append(turn(99))
            asyncio.run_coroutine_threadsafe(add(), loop).result(5)

    async def add() -> list[Arrival]:
        async with setup.store() as unit:
            arrivals = await unit.memories.add_turns(ANN, [turn(99)])
            await unit.commit()
        return arrivals

    setup.encoder.interrupt = interrupt
    await setup.forget.turns(ANN, ids(LONG[0]))
    await setup.remember.encode_pending(ANN)
    assert setup.user().state.digest == digest_of(setup.encoder, [*LONG[1:], turn(99)])


# Which turns are meant


async def test_selections(setup):
    turns = [turn(0), turn(1, session="b"), turn(2), turn(3, session="b")]
    await setup.remember.append(ANN, turns)
    forget = Forget(setup.store)
    minute = timedelta(minutes=1)
    for selection, numbers in (
        (Selection(turn_ids=frozenset({"t001", "t002"})), [1, 2]),
        (Selection(session="b"), [1, 3]),
        (Selection(session="b", since=START + 2 * minute), [3]),
        (Selection(since=START + minute, until=START + 3 * minute), [1, 2]),
        (Selection(session="nowhere"), []),
    ):
        assert await forget.find(ANN, selection) == [turns[number] for number in numbers]
    with pytest.raises(NotFound, match="t009"):
        await forget.find(ANN, Selection(turn_ids=frozenset({"t001", "t009"})))


def test_a_selection_of_nothing_is_refused():
    with pytest.raises(InvalidInput, match="say which"):
        Selection()
    with pytest.raises(InvalidInput, match="after since"):
        Selection(since=START, until=START)
