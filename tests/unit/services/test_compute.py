import asyncio
import threading
import time
from contextlib import aclosing

import pytest

from memory_service.errors import Unavailable
from memory_service.services import compute as compute_module
from memory_service.services.compute import Compute

FAR = 10 * compute_module._STREAM_AHEAD


@pytest.fixture
def compute():
    made = Compute()
    yield made
    made.close()


class Numbers:
    """An endless iterator that notes how far it came and that it was closed."""

    def __init__(self, wait: threading.Event | None = None) -> None:
        self.given = 0
        self.closed = threading.Event()
        self._wait = wait

    def __iter__(self):
        return self

    def __next__(self) -> int:
        if self._wait is not None:
            assert self._wait.wait(10)
        self.given += 1
        return self.given

    def close(self) -> None:
        self.closed.set()


async def is_free(compute: Compute) -> bool:
    return await asyncio.wait_for(compute.run(lambda: True), 5)


# run


async def test_result_comes_back_from_the_worker(compute):
    names = [await compute.run(lambda: threading.current_thread().name) for _ in range(3)]
    assert len(set(names)) == 1
    assert names[0] != threading.current_thread().name


async def test_arguments_are_passed_on(compute):
    assert await compute.run(divmod, 7, 2) == (3, 1)
    assert await compute.run(int, "11", base=2) == 3


async def test_calls_run_one_after_another_in_order(compute):
    done = []

    def call(number: int) -> None:
        done.append((number, "begins"))
        time.sleep(0.002)
        done.append((number, "ends"))

    await asyncio.gather(*(compute.run(call, number) for number in range(5)))
    assert done == [(number, step) for number in range(5) for step in ("begins", "ends")]


async def test_error_of_a_call_reaches_the_caller_and_the_next_call_runs(compute):
    with pytest.raises(ZeroDivisionError):
        await compute.run(divmod, 1, 0)
    assert await is_free(compute)


# stream


@pytest.mark.parametrize("count", [0, 1, 3, FAR])
async def test_items_come_in_order(compute, count):
    assert [item async for item in compute.stream(lambda: iter(range(count)))] == list(range(count))
    assert await is_free(compute)


async def test_items_may_be_none_or_exceptions(compute):
    given = [None, ValueError("an item"), (), None]
    assert [item async for item in compute.stream(lambda: iter(given))] == given


async def test_slow_reader_is_not_overrun(compute):
    numbers = Numbers()
    async with aclosing(compute.stream(lambda: numbers)) as items:
        assert await anext(items) == 1
        await asyncio.sleep(0.05)
        assert numbers.given <= compute_module._STREAM_AHEAD + 1
        assert [await anext(items) for _ in range(FAR)] == list(range(2, FAR + 2))


async def test_error_before_the_first_item_reaches_the_reader(compute):
    def start():
        raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        async for _ in compute.stream(start):
            pass
    assert await is_free(compute)


@pytest.mark.parametrize("count", [1, FAR])
async def test_error_in_the_middle_comes_after_the_items_before_it(compute, count):
    def start():
        yield from range(count)
        raise ValueError("broke off")

    read = []
    with pytest.raises(ValueError, match="broke off"):
        async for item in compute.stream(start):
            read.append(item)
    assert read == list(range(count))
    assert await is_free(compute)


@pytest.mark.parametrize("read", [1, 5, FAR])
async def test_reader_that_stops_early_closes_the_iterator_and_frees_the_worker(compute, read):
    numbers = Numbers()
    async with aclosing(compute.stream(lambda: numbers)) as items:
        for _ in range(read):
            await anext(items)
    assert await is_free(compute)
    assert numbers.closed.is_set()


async def test_generator_is_closed_on_the_worker(compute):
    closed_in = []

    def start():
        try:
            yield from range(FAR)
        finally:
            closed_in.append(threading.current_thread().name)

    async with aclosing(compute.stream(start)) as items:
        await anext(items)
    assert closed_in in ([], [await compute.run(lambda: threading.current_thread().name)])
    assert len(closed_in) == 1


async def test_error_after_the_reader_stopped_is_nobodys(compute, caplog):
    def start():
        yield 1
        raise ValueError("too late to tell")

    async with aclosing(compute.stream(start)) as items:
        await anext(items)
    assert await is_free(compute)
    await asyncio.sleep(0.01)
    assert caplog.records == []


async def test_cancelled_reader_frees_the_worker_and_leaves_no_thread_waiting(compute):
    may_go_on = threading.Event()
    numbers = Numbers(may_go_on)

    async def read() -> None:
        async with aclosing(compute.stream(lambda: numbers)) as items:
            await anext(items)

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    before = threading.active_count()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert threading.active_count() <= before
    may_go_on.set()
    assert await is_free(compute)
    assert numbers.closed.is_set()
    assert numbers.given == 1


def test_interrupted_program_ends(compute):
    """A thread that waited for the next item would keep `asyncio.run` from returning."""
    may_go_on = threading.Event()

    async def main() -> None:
        async for _ in compute.stream(lambda: Numbers(may_go_on)):
            pass

    async def interrupted() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(main(), 0.02)

    began = time.monotonic()
    asyncio.run(interrupted())
    assert time.monotonic() - began < 5
    may_go_on.set()


async def test_stream_that_was_cancelled_before_its_turn_never_starts(compute):
    may_go_on = threading.Event()
    busy = asyncio.create_task(compute.run(may_go_on.wait, 10))
    started = []
    stream = compute.stream(lambda: iter(started.append(1) or []))
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    may_go_on.set()
    await busy
    assert await is_free(compute)
    assert started == []


async def test_many_streams_wait_without_blocking_each_other(compute):
    """More readers than asyncio's thread pool has threads, each with more items than fit ahead."""

    async def read() -> list[int]:
        return [item async for item in compute.stream(lambda: iter(range(FAR)))]

    read_by_all = await asyncio.wait_for(asyncio.gather(*(read() for _ in range(50))), 30)
    assert read_by_all == [list(range(FAR))] * 50


# close


async def test_close_lets_the_running_call_finish():
    compute = Compute()
    began, done = threading.Event(), []

    def call() -> None:
        began.set()
        time.sleep(0.02)
        done.append(True)

    running = asyncio.create_task(compute.run(call))
    while not began.is_set():
        await asyncio.sleep(0.001)
    compute.close()
    await running
    assert done == [True]


async def test_closed_compute_takes_no_more():
    compute = Compute()
    compute.close()
    compute.close()
    with pytest.raises(RuntimeError):
        await compute.run(lambda: None)


async def test_close_does_not_wait_for_a_reader_that_went_away():
    compute = Compute()
    numbers = Numbers()
    items = compute.stream(lambda: numbers)
    await anext(items)  # and then nobody reads on
    began = time.monotonic()
    compute.close()
    assert time.monotonic() - began < 5
    assert numbers.closed.is_set()
    await items.aclose()


async def test_close_tells_the_reader_that_the_stream_is_not_whole():
    compute = Compute()
    items = compute.stream(Numbers)
    await anext(items)
    compute.close()
    with pytest.raises(Unavailable, match="shutting down"):
        async for _ in items:
            pass


async def test_close_tells_the_reader_of_a_stream_that_never_began():
    compute = Compute()
    may_go_on = threading.Event()
    running = asyncio.create_task(compute.run(may_go_on.wait, 10))
    reader = asyncio.create_task(anext(compute.stream(Numbers)))
    await asyncio.sleep(0.01)
    may_go_on.set()
    compute.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await reader
    await running
