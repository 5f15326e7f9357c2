import asyncio
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings

from memory_service.domain.chunks import Chunk
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival, StoredState
from memory_service.domain.turns import Turn
from memory_service.errors import IncompatibleState, NotFound, StateConflict, Unavailable
from memory_service.evaluation.methods import memorise
from memory_service.generator.state import add, digest
from memory_service.services import contention
from memory_service.services.compute import Compute
from memory_service.services.remember import Appended, Remember
from tests.helpers.fakes import FakeEncoder, FakeStore, StoredUser, sequential
from tests.helpers.histories import arrivals, digest_of, histories, turn

ANN = MemoryId("ann")
BOB = MemoryId("bob")


class Setup:
    """A service on fakes, and what it stored."""

    def __init__(self, encoder: FakeEncoder | None = None) -> None:
        self.store = FakeStore()
        self.encoder = encoder or FakeEncoder()
        self.compute = Compute()
        self.remember = Remember(self.store, self.encoder, self.compute)

    async def append(self, *turns: Turn, memory_id: MemoryId = ANN) -> Appended:
        return await self.remember.append(memory_id, turns)

    def user(self, memory_id: MemoryId = ANN) -> StoredUser:
        return self.store.users[memory_id]

    def state(self, memory_id: MemoryId = ANN) -> StoredState:
        state = self.user(memory_id).state
        assert state is not None
        return state

    def is_pending(self, memory_id: MemoryId = ANN) -> bool:
        sessions = self.user(memory_id).sessions.values()
        return any(session.revision != session.encoded_revision for session in sessions)

    def check(self, turns: Sequence[Turn], memory_id: MemoryId = ANN) -> None:
        """Everything that must hold once these turns are remembered."""
        user, state = self.user(memory_id), self.state(memory_id)
        assert set(user.turns.values()) == set(turns)
        assert not self.is_pending(memory_id)
        assert state.digest == digest(_total(state))
        if self.encoder.fingerprint.encoding == "independent":
            assert state.digest == digest_of(self.encoder, list(set(turns)))
        wanted = {
            chunk.digest
            for name in user.sessions
            for chunk in self.encoder.chunk([one for one in set(turns) if one.session == name])
        }
        assert {chunk.digest for chunk in user.chunks} == wanted
        assert len(user.chunks) == len(wanted)
        assert state.open_chunk in wanted
        adapter = user.adapters[user.version]
        assert adapter.state_digest == state.digest
        assert adapter.readouts.equal(self.encoder.read_out(_total(state)))
        assert adapter.readouts.equal(memorise(self.encoder, list(set(turns))))


@pytest.fixture
def setup():
    made = Setup()
    yield made
    made.compute.close()


@pytest.fixture
def sequence():
    made = Setup(sequential())
    yield made
    made.compute.close()


def _total(state: StoredState):
    return state.closed if state.open_update is None else add(state.closed, state.open_update)


def run(setup: Setup, pieces: Sequence[Sequence[Turn]], *, check_each: bool) -> None:
    async def arrive() -> None:
        said: list[Turn] = []
        for piece in pieces:
            await setup.append(*piece)
            said += piece
            if check_each:
                setup.check(said)
        setup.check(said)

    try:
        asyncio.run(arrive())
    finally:
        setup.compute.close()


# Appending


async def test_first_append(setup):
    appended = await setup.append(turn(0), turn(1))
    assert appended == Appended(new=2, known=0, version=1)
    setup.check([turn(0), turn(1)])
    assert setup.user().adapters[1].reason == "append"


async def test_chunks_are_stored_with_what_is_needed_to_forget_them(setup):
    await setup.append(*map(turn, range(5)))
    turns = list(map(turn, range(5)))
    for stored, chunk in zip(setup.user().chunks, setup.encoder.chunk(turns), strict=True):
        assert (stored.digest, stored.turn_ids, stored.session) == (
            chunk.digest,
            chunk.turn_ids,
            "s",
        )
        assert stored.tokens == len(chunk.text) <= setup.encoder.budget_tokens
        assert stored.update_digest == digest(setup.encoder.encode(chunk))


@given(arrivals())
@settings(max_examples=60, deadline=None)
def test_any_arrival_gives_the_state_of_all_at_once_after_every_step(pieces):
    run(Setup(), pieces, check_each=True)


@given(histories())
@settings(max_examples=20, deadline=None)
def test_all_at_once(history):
    run(Setup(), [history], check_each=False)


async def test_appending_in_order_encodes_only_what_is_new(setup):
    turns = [turn(number) for number in range(30)]
    for one in turns:
        await setup.append(one)
    # Each append encodes the chunk that grew, and never one that is closed.
    assert len(setup.encoder.encoded) == len(turns)
    setup.check(turns)


async def test_nothing_is_encoded_twice_by_a_retry(setup):
    await setup.append(turn(0), turn(1))
    encoded = len(setup.encoder.encoded)
    assert await setup.append(turn(0), turn(1)) == Appended(new=0, known=2, version=1)
    assert len(setup.encoder.encoded) == encoded
    setup.check([turn(0), turn(1)])


async def test_same_id_twice_in_one_call_is_one_turn(setup):
    assert await setup.append(turn(0), turn(0)) == Appended(new=1, known=1, version=1)
    setup.check([turn(0)])


@pytest.mark.parametrize(
    "other", [turn(0, "another text"), turn(0, session="s2"), turn(0, minutes=9)]
)
async def test_same_id_with_other_content_is_a_conflict_and_stores_nothing(setup, other):
    await setup.append(turn(0))
    before = setup.state().digest
    with pytest.raises(StateConflict, match="t000"):
        await setup.append(turn(1), other, turn(2))
    assert setup.state().digest == before
    setup.check([turn(0)])


async def test_users_and_tenants_do_not_mix(setup):
    others = [MemoryId("ann", "other"), BOB]
    await setup.append(turn(0))
    for number, other in enumerate(others, start=1):
        await setup.append(turn(number), memory_id=other)
    setup.check([turn(0)])
    for number, other in enumerate(others, start=1):
        setup.check([turn(number)], other)


async def test_progress_is_reported(setup):
    reports = []
    turns = [turn(number, "word " * 30) for number in range(3)]
    await setup.remember.append(ANN, turns, lambda done, all_of: reports.append((done, all_of)))
    chunks = len(setup.user().chunks)
    assert reports == [(number, chunks) for number in range(1, chunks + 1)]


async def test_unknown_user(setup):
    for call in (setup.remember.encode_pending, setup.remember.rebuild):
        with pytest.raises(NotFound):
            await call(ANN)
    assert setup.store.users == {}


async def test_nothing_pending_is_no_new_version(setup):
    await setup.append(turn(0))
    assert await setup.remember.encode_pending(ANN) == 1


async def test_model_runs_on_the_worker_only(setup):
    threads = set()
    setup.encoder.interrupt = lambda chunk: threads.add(threading.current_thread().name)
    count_tokens = setup.encoder.count_tokens

    def counted(text: str) -> int:
        threads.add(threading.current_thread().name)
        return count_tokens(text)

    setup.encoder.count_tokens = counted  # tokenizers are not to be used by two threads at once
    await setup.append(*map(turn, range(5)))
    assert len(threads) == 1
    assert threading.current_thread().name not in threads


# Several writers


async def test_two_tasks_appending_to_one_user_lose_nothing(setup):
    first = [turn(number, session="a") for number in range(0, 20, 2)]
    second = [turn(number, session="b") for number in range(1, 20, 2)]

    async def write(turns: list[Turn]) -> list[Appended]:
        return [await setup.append(one) for one in turns]

    results = await asyncio.gather(write(first), write(second))
    assert all(result == replace(result, new=1, known=0) for result in chain(*results))
    setup.check([*first, *second])


async def test_many_tasks_appending_to_one_session_lose_nothing(setup):
    turns = [turn(number) for number in range(8)]
    await asyncio.gather(*(setup.append(one) for one in turns))
    setup.check(turns)


async def test_turn_that_arrives_while_its_session_is_encoded_is_not_lost(setup):
    late: list[list[Arrival]] = []
    loop = asyncio.get_running_loop()

    async def add_directly() -> list[Arrival]:
        async with setup.store() as unit:
            arrivals = await unit.memories.add_turns(ANN, [turn(1)])
            await unit.commit()
        return arrivals

    def interrupt(chunk: Chunk) -> None:
        if not late:
            late.append(asyncio.run_coroutine_threadsafe(add_directly(), loop).result(5))

    setup.encoder.interrupt = interrupt
    await setup.append(turn(0))
    assert late == [[Arrival.NEW]]
    assert setup.is_pending()
    await setup.remember.encode_pending(ANN)
    setup.check([turn(0), turn(1)])


async def test_writer_that_never_gets_its_turn_says_so(setup, monkeypatch):
    monkeypatch.setattr(contention, "ATTEMPTS", 3)
    loop = asyncio.get_running_loop()

    async def overtake() -> None:
        async with setup.store() as unit:
            users = await unit._write()
            users[ANN].version += 1
            await unit.commit()

    setup.encoder.interrupt = lambda chunk: asyncio.run_coroutine_threadsafe(
        overtake(), loop
    ).result(5)
    with pytest.raises(StateConflict, match="3 times"):
        await setup.append(turn(0))
    assert len(setup.encoder.encoded) == 3
    setup.encoder.interrupt = lambda chunk: None
    await setup.remember.encode_pending(ANN)
    setup.check([turn(0)])


# What goes wrong


def fail(chunk: Chunk) -> None:
    raise Unavailable("base model", "is out of memory")


async def test_turns_are_kept_when_encoding_fails_and_the_next_append_recovers(setup):
    await setup.append(turn(0))
    version, state = setup.user().version, setup.state()
    setup.encoder.interrupt = fail
    with pytest.raises(Unavailable):
        await setup.append(turn(1), turn(2, session="b"))
    assert set(setup.user().turns) == {"t000", "t001", "t002"}
    assert setup.is_pending()
    assert (setup.user().version, setup.state().digest) == (version, state.digest)
    setup.encoder.interrupt = lambda chunk: None
    await setup.append(turn(3))
    setup.check([*map(turn, (0, 1, 3)), turn(2, session="b")])


async def test_failure_in_a_later_chunk_stores_no_half_of_a_version(setup):
    calls = []

    def fail_at_third(chunk: Chunk) -> None:
        calls.append(chunk)
        if len(calls) == 3:
            fail(chunk)

    setup.encoder.interrupt = fail_at_third
    turns = [turn(number, "word " * 10) for number in range(6)]
    with pytest.raises(Unavailable):
        await setup.append(*turns)
    assert setup.user().version == 0
    assert setup.user().chunks == []
    await setup.remember.encode_pending(ANN)
    setup.check(turns)


def test_interrupt_while_encoding_leaves_the_turns_stored():
    setup = Setup()

    def interrupt(chunk: Chunk) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    setup.encoder.interrupt = interrupt
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(setup.append(turn(0), turn(1)))
    assert set(setup.user().turns) == {"t000", "t001"}
    assert setup.is_pending()
    assert setup.user().version == 0
    setup.encoder.interrupt = lambda chunk: None
    run(setup, [[turn(0), turn(1)]], check_each=False)


async def test_cancelled_append_leaves_the_turns_stored(setup):
    began = threading.Event()
    may_go_on = threading.Event()

    def wait(chunk: Chunk) -> None:
        began.set()
        may_go_on.wait(5)

    setup.encoder.interrupt = wait
    task = asyncio.create_task(setup.append(turn(0)))
    while not began.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_go_on.set()
    assert setup.is_pending()
    assert set(setup.user().turns) == {"t000"}
    await setup.append(turn(1))
    setup.check([turn(0), turn(1)])


# Subtracting, or rebuilding


LONG = [turn(number, f"{number} word") for number in range(0, 24, 2)]
LATE = turn(3, "late")
"""Moves every chunk of `LONG`, which has four."""


async def test_late_turn_subtracts_the_chunks_that_it_moves(setup):
    await setup.append(*LONG)
    await setup.append(LATE)
    assert setup.user().adapters[2].reason == "append"
    assert len(setup.user().chunks) > 3
    assert not {chunk.digest for chunk in setup.user().chunks} & {
        chunk.digest for chunk in setup.encoder.chunk(LONG)
    }
    setup.check([*LONG, LATE])


async def test_chunk_that_cannot_be_reproduced_forces_a_rebuild(setup):
    await setup.append(*LONG)
    user = setup.user()
    user.chunks = [replace(chunk, update_digest="0" * 64) for chunk in user.chunks]
    await setup.append(LATE)
    assert setup.user().adapters[2].reason == "rebuild"
    setup.check([*LONG, LATE])
    assert all(chunk.update_digest != "0" * 64 for chunk in setup.user().chunks)


async def test_rebuild_starts_from_nothing_even_where_the_state_was_wrong(setup):
    """The stored state came from another processor: its sum is not what this one computes."""
    await setup.append(*LONG)
    user = setup.user()
    closed = user.state.closed + 1
    wrong = replace(user.state, closed=closed)
    user.state = replace(wrong, digest=digest(_total(wrong)))
    user.chunks[1] = replace(user.chunks[1], update_digest="0" * 64)
    await setup.append(LATE)
    setup.check([*LONG, LATE])


async def test_chunk_whose_turns_are_gone_forces_a_rebuild(setup):
    await setup.append(*LONG)
    del setup.user().turns["t004"]
    await setup.append(LATE)
    assert setup.user().adapters[2].reason == "rebuild"
    setup.check([*(one for one in LONG if one.id != "t004"), LATE])


async def test_rebuild_gives_the_same_state(setup):
    await setup.append(*LONG)
    before = setup.state().digest
    assert await setup.remember.rebuild(ANN) == 2
    assert setup.state().digest == before
    assert setup.user().adapters[2].reason == "rebuild"
    setup.check(LONG)


async def test_state_of_another_maker_is_refused_until_it_is_rebuilt(setup):
    await setup.append(turn(0))
    other = FakeEncoder(replace(setup.encoder.fingerprint, generator="another"))
    remember = Remember(setup.store, other, setup.compute)
    with pytest.raises(IncompatibleState) as caught:
        await remember.append(ANN, [turn(1)])
    message = str(caught.value)
    assert setup.encoder.fingerprint.short in message
    assert other.fingerprint.short in message
    assert "memory users migrate" in message
    assert set(setup.user().turns) == {"t000", "t001"}
    assert setup.is_pending()
    assert setup.state().fingerprint == setup.encoder.fingerprint
    assert await remember.rebuild(ANN) == 2
    setup.encoder = other
    setup.check([turn(0), turn(1)])
    assert setup.state().fingerprint == other.fingerprint


# Sequential encoding


def state_of_sequence(turns: Sequence[Turn]) -> str:
    """All at once, chunk by chunk in the order in which they were said."""
    setup = Setup(sequential())
    run(setup, [turns], check_each=False)
    return setup.state().digest


def test_sequential_updates_depend_on_the_chunks_before():
    assert state_of_sequence(LONG) != state_of_sequence([turn(0, "else"), *LONG[1:]])
    encoder = sequential()
    assert state_of_sequence(LONG) != digest_of(encoder, LONG)


async def test_sequential_append_only_equals_all_at_once(sequence):
    said = []
    for number in range(20):
        said.append(turn(number, session="a" if number < 10 else "b"))
        await sequence.append(said[-1])
        sequence.check(said)
    reasons = {adapter.reason for adapter in sequence.user().adapters.values()}
    assert reasons == {"append"}


async def test_sequential_late_turn_triggers_a_rebuild(sequence):
    await sequence.append(*LONG)
    await sequence.append(LATE)
    assert sequence.user().adapters[2].reason == "rebuild"
    sequence.check([*LONG, LATE])


async def test_sequential_late_session_triggers_a_rebuild(sequence):
    """Nothing vanishes, but all that follows must be read with the adapter of what came before."""
    await sequence.append(turn(5, session="a"))
    await sequence.append(turn(0, session="b"))
    assert sequence.user().adapters[2].reason == "rebuild"
    sequence.check([turn(5, session="a"), turn(0, session="b")])


@given(arrivals(most=8))
@settings(max_examples=40, deadline=None)
def test_sequential_any_arrival_gives_the_state_of_all_at_once(pieces):
    run(Setup(sequential()), pieces, check_each=True)


async def test_sequential_refuses_another_maker_before_it_rebuilds(sequence):
    await sequence.append(*LONG)
    other = FakeEncoder(replace(sequence.encoder.fingerprint, generator="another"))
    with pytest.raises(IncompatibleState):
        await Remember(sequence.store, other, sequence.compute).append(ANN, [LATE])
    assert sequence.state().fingerprint == sequence.encoder.fingerprint
