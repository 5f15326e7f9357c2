"""Requests come, wait, answer, and go: queue, cancel, deadlines, withdrawal, stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter, Generation, Message, Sampling
from memory_service.errors import (
    InvalidInput,
    NumericalError,
    Overloaded,
    StateConflict,
    Timeout,
    Unavailable,
)
from memory_service.inference.batch import Batch
from memory_service.inference.engine import Engine, Limits
from memory_service.services.compute import Compute
from tests.helpers.tiny_generator import random_readouts
from tests.helpers.tiny_inference import tiny_inference

TINY = tiny_inference()
TINY.base.model.generation_config.eos_token_id = 2
ADAPTERS = list(3 * random_readouts(TINY.generator, 6))
ANN, BOB = MemoryId("ann"), MemoryId("bob")
LONG = Sampling(max_new_tokens=2000)


class Watching:
    """What the engine tells."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.rows: list[int] = []
        self.generations: list[Generation] = []

    def waiting(self, requests: int) -> None:
        self.queue.append(requests)

    def stepped(self, rows: int, duration_s: float) -> None:
        self.rows.append(rows)

    def answered(self, generation: Generation) -> None:
        self.generations.append(generation)


class Setup:
    def __init__(self, **limits) -> None:
        empty = TINY.generator.read_out(TINY.generator.empty_state())
        self.batch = Batch(TINY.base, TINY.tokens, TINY.decoder, empty)
        self.compute, self.watch = Compute(), Watching()
        self.engine = Engine(
            self.batch, TINY.tokens, 4096, self.compute.run, Limits(**limits), self.watch
        )

    async def answer(self, text="Hi", readouts=None, sampling=None, **options) -> Generation:
        sampling = sampling or Sampling(max_new_tokens=12)
        pieces = []
        adapter = None if readouts is None else AppliedAdapter(ANN, 1, readouts)
        async for item in self.engine.stream(prompt(text), adapter, sampling, **options):
            pieces.append(item)
        *texts, generation = pieces
        assert "".join(texts) == generation.text
        return generation

    async def idle(self) -> None:
        """Wait until no place is taken."""
        async with asyncio.timeout(20):
            while self.engine._active or self.engine._waiting:
                await asyncio.sleep(0.001)
        await self.compute.run(lambda: None)


def prompt(text: str) -> list[Message]:
    return [Message("user", text)]


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    yield made
    await made.engine.drain(0)
    made.compute.close()


@pytest.fixture
async def small() -> AsyncIterator[Setup]:
    """One place in the batch, one in the queue."""
    made = Setup(rows=1, waiting=1)
    yield made
    await made.engine.drain(0)
    made.compute.close()


async def begun(setup: Setup, owner: MemoryId = ANN, **options):
    """A request that has a place in the batch, after its first piece."""
    adapter = AppliedAdapter(owner, 1, ADAPTERS[0])
    stream = setup.engine.stream(prompt("Hi"), adapter, LONG, **options)
    await anext(stream)
    return stream


async def test_many_at_once_get_what_each_gets_alone(setup):
    asked = [("Hi", None), ("What is my dog called?", ADAPTERS[0]), ("Hi", ADAPTERS[1])]
    alone = [await setup.answer(*one) for one in asked]
    together = await asyncio.gather(*(setup.answer(*one) for one in asked))
    assert [one.text for one in together] == [one.text for one in alone]
    assert max(setup.watch.rows) == 3
    assert len(setup.watch.generations) == 6


async def test_the_same_as_the_plain_backend(setup):
    for readouts in (None, ADAPTERS[2]):
        *_, expected = TINY.backend.stream(prompt("Hi"), readouts, Sampling(max_new_tokens=12))
        made = await setup.answer("Hi", readouts)
        assert (made.text, made.prompt_tokens) == (expected.text, expected.prompt_tokens)
        assert made.completion_tokens == expected.completion_tokens


async def test_stop_strings_end_the_answer(setup):
    whole = (await setup.answer()).text
    stop = whole[3:5]
    made = await setup.answer(sampling=Sampling(max_new_tokens=12, stop=(stop,)))
    assert made.text == whole[: whole.index(stop)].rstrip()


async def test_a_reader_that_leaves_frees_its_place(small):
    async with aclosing(await begun(small)):
        waiting = asyncio.create_task(small.answer())
        await asyncio.sleep(0.02)
        assert not waiting.done()
    assert isinstance(await waiting, Generation)


async def test_a_request_cancelled_while_it_waits_is_never_begun(small):
    async with aclosing(await begun(small)):
        waiting = asyncio.create_task(small.answer())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await small.idle()
    assert small.watch.generations == []


async def test_the_queue_is_bounded_and_says_when_to_come_back(small):
    async with aclosing(await begun(small)):
        waiting = asyncio.create_task(small.answer())
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="1 requests are waiting") as caught:
            await small.answer()
        assert caught.value.retry_after_s >= 1
    await waiting


async def test_first_come_first_served(small):
    order = []

    async def ask(number: int) -> None:
        await small.answer()
        order.append(number)

    small.engine._limits = Limits(rows=1, waiting=10)
    await asyncio.gather(*(ask(number) for number in range(4)))
    assert order == [0, 1, 2, 3]


async def test_keys_and_values_are_bounded(setup):
    setup.engine._limits = Limits(kept_tokens=100)
    await asyncio.gather(*(setup.answer(sampling=Sampling(max_new_tokens=30)) for _ in range(4)))
    assert max(setup.watch.rows) == 1  # two of them could need 2 x 50


async def test_a_request_larger_than_the_bound_goes_alone(setup):
    setup.engine._limits = Limits(kept_tokens=10)
    assert (await setup.answer()).completion_tokens > 0


async def test_deadline_while_answering(setup):
    with pytest.raises(Timeout, match="deadline"):
        await setup.answer(sampling=LONG, deadline_s=0.05)
    await setup.idle()


async def test_deadline_while_waiting(small):
    async with aclosing(await begun(small)):
        with pytest.raises(Timeout):
            await small.answer(deadline_s=0.02)


async def test_a_reader_that_does_not_read_holds_its_place_until_the_deadline_only(small):
    await begun(small, deadline_s=1)
    assert isinstance(await small.answer(), Generation)


async def test_a_withdrawn_memory_says_no_further_token(setup):
    async with (
        aclosing(await begun(setup, owner=ANN)) as anns,
        aclosing(await begun(setup, owner=BOB)) as bobs,
    ):
        setup.engine.withdraw(ANN)
        with pytest.raises(StateConflict, match="ann: was forgotten"):
            while True:
                await asyncio.wait_for(anext(anns), 1)
        assert await anext(bobs)


async def test_nothing_is_queued_after_a_withdrawal(setup):
    stream = await begun(setup, owner=ANN)
    request = next(iter(setup.engine._active.values()))
    setup.engine.withdraw(ANN)
    before = request.items.qsize()
    await setup.idle()
    assert request.items.qsize() == before
    await stream.aclose()


async def test_a_prompt_beyond_the_context(setup):
    with pytest.raises(InvalidInput, match="context of 4096"):
        await setup.answer("x" * 4090)


async def test_a_broken_adapter_fails_alone(setup):
    broken = setup.answer("Hi", ADAPTERS[0] * float("nan"))
    good, bad = await asyncio.gather(setup.answer(), broken, return_exceptions=True)
    assert isinstance(good, Generation)
    assert isinstance(bad, NumericalError)


async def test_a_failing_step_fails_its_requests_and_not_the_next_ones(setup, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(TINY.decoder, "logits", fail)
        with pytest.raises(Unavailable, match="could not make the answer"):
            await setup.answer()
    assert isinstance(await setup.answer(), Generation)


async def test_drain_finishes_what_runs_and_takes_nothing_new(setup):
    running = asyncio.create_task(setup.answer())
    await asyncio.sleep(0.005)
    draining = asyncio.create_task(setup.engine.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="stopping"):
        await setup.answer()
    assert isinstance(await running, Generation)
    await draining


async def test_drain_ends_what_takes_longer_than_the_grace(setup):
    running = asyncio.create_task(setup.answer(sampling=LONG))
    await asyncio.sleep(0.02)
    await setup.engine.drain(0.01)
    with pytest.raises(Unavailable, match="stopping"):
        await running


async def test_nobody_waits_for_ever_when_the_worker_is_gone(setup):
    running = asyncio.create_task(setup.answer(sampling=LONG))
    await asyncio.sleep(0.02)
    setup.compute.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(running, 5)


async def test_other_work_takes_its_turn_between_steps(setup):
    async with aclosing(await begun(setup)):
        assert await asyncio.wait_for(setup.compute.run(lambda: "encoded"), 2) == "encoded"
