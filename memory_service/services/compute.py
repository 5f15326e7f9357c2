"""One worker thread for everything that runs torch, so that requests queue instead of thrash."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_END = object()
_STREAM_AHEAD = 64
"""Pieces a stream may be ahead of its reader."""


class Compute:
    """Runs blocking model calls one after another, off the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one call on the worker and wait for its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))

    async def stream(self, start: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """Iterate a blocking iterator on the worker, handing items over as they come.

        When the reader stops early, the iterator is closed at its next item.
        """
        items: queue.Queue[object] = queue.Queue(_STREAM_AHEAD)
        stopped = False

        def offer(item: object) -> None:
            while not stopped:
                try:
                    items.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return

        def work() -> None:
            try:
                for item in start():
                    if stopped:
                        break
                    offer(item)
            finally:
                offer(_END)

        loop = asyncio.get_running_loop()
        worker = loop.run_in_executor(self._executor, work)
        try:
            while True:
                item = await loop.run_in_executor(None, items.get)
                if item is _END:
                    break
                yield item  # type: ignore[misc]  # only T and _END are ever offered
            await worker
        finally:
            stopped = True

    def close(self) -> None:
        """Let the running call finish and take no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)


__all__ = ["Compute", "aclosing"]
