"""One worker thread for everything that runs torch, so that requests queue instead of thrash."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, ParamSpec, TypeVar

from memory_service.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_END = object()
_STREAM_AHEAD = 64
"""Items a stream may be ahead of its reader."""

_NICENESS = 10
"""Of the worker, where threads have one; 0 is usual, 19 the least."""

_LOOK_UP_S = 0.1
"""How often a stream that is far ahead looks whether its reader is gone."""


class Compute:
    """Runs blocking model calls one after another, off the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="compute", initializer=_give_way
        )
        self._closed = threading.Event()

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one call on the worker and wait for its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))

    async def stream(self, start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Iterate a blocking iterator on the worker, handing items over as they come.

        A reader that stops early closes the iterator at its next item; use `contextlib.aclosing`
        where that may happen. No thread waits for the worker, so any number of readers can.

        Raises:
            Unavailable: `close` was called meanwhile.
        """
        loop = asyncio.get_running_loop()
        stream = _Stream(start, loop, self._closed)
        worker = loop.run_in_executor(self._executor, stream.work)
        worker.add_done_callback(stream.finish)
        try:
            while (item := await stream.items.get()) is not _END:
                stream.room.release()
                yield item  # type: ignore[misc]  # only T and _END are ever put
            if worker.cancelled():  # by `close`, before it began
                raise Unavailable("compute", "is shutting down")
            await worker
        finally:
            stream.stopped.set()

    def close(self) -> None:
        """Let the running call finish, stop the running stream, and take no more."""
        self._closed.set()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _give_way() -> None:
    """Let other threads run first: an append takes microseconds and must not wait for a token.

    On Linux a thread has a priority of its own, and torch's workers inherit it. Elsewhere it is the
    process's, and nothing changes.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _Stream(Generic[T]):
    """Items on their way from the worker to a reader in the event loop."""

    def __init__(
        self,
        start: Callable[[], Iterator[T]],
        loop: asyncio.AbstractEventLoop,
        closed: threading.Event,
    ) -> None:
        self.items: asyncio.Queue[object] = asyncio.Queue()
        self.room = threading.Semaphore(_STREAM_AHEAD)
        self.stopped = threading.Event()
        self._start = start
        self._loop = loop
        self._closed = closed

    def work(self) -> None:
        """On the worker: iterate until the end, or until nobody wants more."""
        if not self._is_wanted():
            return
        iterator = self._start()
        try:
            for item in iterator:
                self._loop.call_soon_threadsafe(self.items.put_nowait, item)
                if not self._is_wanted():
                    return
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def finish(self, worker: asyncio.Future[None]) -> None:
        """In the event loop: end the items, after the last one."""
        if not worker.cancelled():
            worker.exception()  # seen here, because a reader that stopped early asks for none
        self.items.put_nowait(_END)

    def _is_wanted(self) -> bool:
        """Wait until there is room for another item; False where the reader is gone."""
        while not self.stopped.is_set():
            if self._closed.is_set():
                raise Unavailable("compute", "is shutting down")
            if self.room.acquire(timeout=_LOOK_UP_S):
                return True
        return False
