"""Chunks that cannot be encoded: the rest goes on, and they are tried again when asked for."""

from collections.abc import Iterator

import pytest

from memory_service.domain.chunks import Chunk
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Removal
from memory_service.domain.turns import Turn
from memory_service.errors import NumericalError
from memory_service.generator.state import digest
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.inspect import Inspect
from memory_service.services.reconcile import ATTEMPTS
from memory_service.services.remember import Remember
from tests.helpers.fakes import FakeEncoder, FakeStore, StoredUser, sequential
from tests.helpers.histories import digest_of, turn

ANN = MemoryId("ann")
BAD = "poison"


class Setup:
    """A service whose encoder fails on chunks with a word in them."""

    def __init__(self, encoder: FakeEncoder) -> None:
        self.store, self.encoder, self.compute = FakeStore(), encoder, Compute()
        self.remember = Remember(self.store, encoder, self.compute)
        self.forget = ForgetTurns(Amend(self.store, encoder, self.compute, self.remember))
        self.inspect = Inspect(self.store)
        self.tried = 0
        encoder.interrupt = self._interrupt

    def _interrupt(self, chunk: Chunk) -> None:
        if BAD in chunk.text:
            self.tried += 1
            raise NumericalError("hidden states", "the base model returned NaN")

    def heal(self) -> None:
        self.encoder.interrupt = lambda chunk: None

    async def append(self, *turns: Turn) -> int:
        return (await self.remember.append(ANN, turns)).version

    def user(self) -> StoredUser:
        return self.store.users[ANN]

    def state_digest(self) -> str:
        state = self.user().state
        assert state is not None
        total = state.closed if state.open_update is None else state.closed + state.open_update
        assert state.digest == digest(total)
        return state.digest


@pytest.fixture(params=[FakeEncoder, sequential], ids=["independent", "sequential"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(request.param())
    yield made
    made.compute.close()


async def test_the_rest_of_a_memory_goes_on_without_it(setup: Setup) -> None:
    good = [turn(0, session="a"), turn(2, session="c")]
    await setup.append(good[0], turn(1, BAD, session="b"), good[1])
    held = {turn_id for chunk in setup.user().chunks for turn_id in chunk.turn_ids}
    assert held == {"t000", "t002"}
    (chunk,) = await setup.inspect.quarantined(ANN)
    assert (chunk.session, chunk.turn_ids) == ("b", ("t001",))
    assert "NaN" in chunk.reason
    assert BAD not in chunk.reason
    if setup.encoder.fingerprint.encoding == "independent":
        assert setup.state_digest() == digest_of(setup.encoder, good)
    marks = {one.turn.id: one.is_quarantined for one in await setup.inspect.turns(ANN)}
    assert marks == {"t000": False, "t001": True, "t002": False}


async def test_it_is_tried_a_few_times_and_then_only_when_asked_for(setup: Setup) -> None:
    await setup.append(turn(0, BAD + " long" * 8))
    assert setup.tried == ATTEMPTS
    await setup.append(turn(1, "some other words here"))  # the same session, another chunk
    assert setup.tried == ATTEMPTS
    assert len(setup.user().quarantined) == 1
    retried = await setup.remember.retry(ANN)
    assert (retried.tried, len(retried.quarantined)) == (1, 1)
    assert setup.tried == 2 * ATTEMPTS


async def test_retrying_gives_the_state_of_a_memory_that_never_failed(setup: Setup) -> None:
    turns = [turn(0, session="a"), turn(1, BAD, session="b"), turn(2, session="c")]
    await setup.append(*turns)
    setup.heal()
    retried = await setup.remember.retry(ANN)
    assert (retried.tried, list(retried.quarantined)) == (1, [])
    never = Setup(FakeEncoder(setup.encoder.fingerprint))
    never.heal()
    await never.append(*turns)
    never.compute.close()
    assert setup.state_digest() == never.state_digest()
    again = await setup.remember.retry(ANN)
    assert (again.tried, again.version) == (0, retried.version)


async def test_a_chunk_that_grows_is_another_chunk(setup: Setup) -> None:
    flaky = [True] * ATTEMPTS

    def interrupt(chunk: Chunk) -> None:
        if flaky and flaky.pop():
            raise NumericalError("hidden states", "the base model returned NaN")

    setup.encoder.interrupt = interrupt
    await setup.append(turn(0, "a"))
    assert setup.user().quarantined
    await setup.append(turn(1, "b"))
    assert not setup.user().quarantined
    assert setup.user().chunks[-1].turn_ids == ("t000", "t001")


async def test_a_quarantined_turn_can_be_forgotten(setup: Setup) -> None:
    await setup.append(turn(0), turn(2, BAD, session="b"), turn(3, "fine", session="b"))
    await setup.forget.turns(ANN, ["t002"])
    assert not setup.user().quarantined
    assert set(setup.user().turns) == {"t000", "t003"}
    if setup.encoder.fingerprint.encoding == "independent":
        kept = [turn(0), turn(3, "fine", session="b")]
        assert setup.state_digest() == digest_of(setup.encoder, kept)


async def test_a_chunk_in_the_state_that_fails_later_does_not_block_appends() -> None:
    setup = Setup(FakeEncoder())
    setup.heal()
    long = [turn(number, f"{number} Rex") for number in range(0, 12, 2)]
    await setup.append(*long)

    def fail_on_old(chunk: Chunk) -> None:
        if "0 Rex" in chunk.text and "late" not in chunk.text:
            raise NumericalError("hidden states", "the base model returned NaN")

    setup.encoder.interrupt = fail_on_old
    await setup.append(turn(1, "late"))
    setup.compute.close()
    held = {turn_id for chunk in setup.user().chunks for turn_id in chunk.turn_ids}
    assert "t001" in held
    assert held | {id_ for one in setup.user().quarantined for id_ in one.turn_ids} == set(
        setup.user().turns
    )


def fail_at_everything(chunk: Chunk) -> None:
    raise NumericalError("hidden states", "the base model returned NaN")


async def test_a_machine_that_encodes_nothing_is_blamed_and_no_chunk_is(setup: Setup) -> None:
    turns = [turn(number, session=f"s{number}") for number in range(3)]
    await setup.append(turns[0])
    before = setup.state_digest()
    heal, setup.encoder.interrupt = setup.encoder.interrupt, fail_at_everything
    with pytest.raises(NumericalError, match=r"fails on a plain sentence too.*returned NaN"):
        await setup.append(*turns[1:])
    assert await setup.inspect.quarantined(ANN) == []
    assert (setup.user().version, setup.state_digest()) == (1, before)
    marks = {one.turn.id: one.is_pending for one in await setup.inspect.turns(ANN)}
    assert marks == {"t000": False, "t001": True, "t002": True}
    setup.encoder.interrupt = heal
    await setup.remember.encode_pending(ANN)
    assert {id_ for one in setup.user().chunks for id_ in one.turn_ids} == set(marks)


async def test_what_is_forgotten_on_such_a_machine_is_gone_all_the_same(setup: Setup) -> None:
    await setup.append(turn(0, "a"), turn(1, "b"))
    heal, setup.encoder.interrupt = setup.encoder.interrupt, fail_at_everything
    receipt = await setup.forget.turns(ANN, ["t000"])
    assert receipt.removal is Removal.WITHDRAWN
    assert set(setup.user().turns) == {"t001"}
    assert setup.user().state is None
    assert setup.user().quarantined == []
    setup.encoder.interrupt = heal
    await setup.remember.encode_pending(ANN)
    assert setup.user().chunks[-1].turn_ids == ("t001",)
