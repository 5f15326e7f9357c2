"""Continuous batching: requests of many users decode together, and come and go between tokens.

Everything but the model's passes happens in the event loop, so no lock is needed: a task of its own
alternates between letting requests in and out and running one `Batch.step` on the worker. Other
work of the worker (encoding a chunk) takes its turn between two steps.
"""

import asyncio
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter, Generation, Message, Sampling
from memory_service.errors import (
    InvalidInput,
    MemoryServiceError,
    Overloaded,
    StateConflict,
    Timeout,
    Unavailable,
)
from memory_service.inference.batch import Batch, Item, Row
from memory_service.inference.tokens import Tokens

log = structlog.get_logger()

T = TypeVar("T")


class RunOnWorker(Protocol):
    """Runs a blocking call on the one thread for torch (`services.compute.Compute.run`)."""

    def __call__(self, call: Callable[..., T], *args: object) -> Awaitable[T]:
        """Run it and wait for its result."""
        ...


@dataclass(frozen=True)
class Limits:
    """How much is taken on at once.

    `kept_tokens` bounds the memory of keys and values: rows times their longest possible length.
    """

    rows: int = 16
    waiting: int = 64
    kept_tokens: int = 32_768
    deadline_s: float = 120.0


class Watch(Protocol):
    """Is told what happens, for metrics."""

    def waiting(self, requests: int) -> None:
        """So many requests wait for a place in the batch."""

    def stepped(self, rows: int, duration_s: float) -> None:
        """A step gave so many rows their next token."""

    def answered(self, generation: Generation) -> None:
        """An answer is complete."""


class Unwatched:
    """Nobody looks."""

    def waiting(self, requests: int) -> None:
        """Ignore it."""

    def stepped(self, rows: int, duration_s: float) -> None:
        """Ignore it."""

    def answered(self, generation: Generation) -> None:
        """Ignore it."""


@dataclass(eq=False)
class _Request:
    """A row, where its items go, and whose memory it reads."""

    row: Row
    owner: MemoryId | None
    deadline: float
    items: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)
    is_over: bool = False


class Engine:
    """Answers many requests in one batch. Satisfies `services.ports.Backend`.

    Belongs to one event loop.
    """

    def __init__(
        self,
        batch: Batch,
        tokens: Tokens,
        context_tokens: int,
        run: RunOnWorker,
        limits: Limits | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._batch = batch
        self._tokens = tokens
        self._context_tokens = context_tokens
        self._run = run
        self._limits = limits or Limits()
        self._watch: Watch = watch or Unwatched()
        self._waiting: deque[_Request] = deque()
        self._active: dict[Row, _Request] = {}
        self._pump: asyncio.Task[None] | None = None
        self._is_draining = False
        self._token_s = 0.1  # a running guess, for Retry-After

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model reads it."""
        return len(self._tokens.prompt_ids(messages))

    async def stream(
        self,
        messages: Sequence[Message],
        adapter: AppliedAdapter | None,
        sampling: Sampling,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[str | Generation, None]:
        """Yield pieces of the answer as they come and, last, its `Generation`.

        A reader that stops early frees its place: use `contextlib.aclosing`.

        Raises:
            InvalidInput: the prompt does not fit into the base model's context.
            Overloaded: too many requests wait already.
            Timeout: the deadline came first.
            StateConflict: the memory was withdrawn meanwhile.
            NumericalError: the model returned NaN or Inf.
            Unavailable: the engine is stopping.
        """
        request = self._accept(messages, adapter, sampling, deadline_s)
        try:
            while True:
                item = await request.items.get()
                if isinstance(item, MemoryServiceError):
                    raise item
                yield item
                if isinstance(item, Generation):
                    return
        finally:
            request.is_over = True

    def withdraw(self, memory_id: MemoryId) -> None:
        """End every answer that is being made with a memory, before its next token."""
        for request in [*self._waiting, *self._active.values()]:
            if request.owner == memory_id and not request.is_over:
                problem = "was forgotten while it answered"
                self._end(request, StateConflict(f"memory of user {memory_id.user}", problem))

    async def drain(self, grace_s: float) -> None:
        """Take no more requests and finish the running ones; after the grace they end."""
        self._is_draining = True
        if self._pump is not None and not self._pump.done():
            await asyncio.wait({self._pump}, timeout=grace_s)
        for request in [*self._waiting, *self._active.values()]:
            self._end(request, Unavailable("engine", "is stopping", "ask again"))
        if self._pump is not None and not self._pump.done():
            await self._pump

    def _accept(
        self,
        messages: Sequence[Message],
        adapter: AppliedAdapter | None,
        sampling: Sampling,
        deadline_s: float | None,
    ) -> _Request:
        if self._is_draining:
            raise Unavailable("engine", "is stopping", "ask again")
        if len(self._waiting) >= self._limits.waiting:
            waiting = f"{len(self._waiting)} requests are waiting already"
            raise Overloaded("engine", waiting, self._retry_after_s())
        prompt = self._tokens.prompt_ids(messages)
        if len(prompt) + sampling.max_new_tokens > self._context_tokens:
            raise InvalidInput(
                "messages",
                f"{len(prompt)} tokens",
                f"do not fit with {sampling.max_new_tokens} new tokens into the base model's "
                f"context of {self._context_tokens}; shorten them",
            )
        deadline = time.perf_counter() + (deadline_s or self._limits.deadline_s)
        row = Row(prompt, None if adapter is None else adapter.readouts, sampling)
        request = _Request(row, None if adapter is None else adapter.memory_id, deadline)
        self._waiting.append(request)
        self._watch.waiting(len(self._waiting))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._work())
        return request

    async def _work(self) -> None:
        """Step until there is nothing to do."""
        try:
            while self._waiting or self._active:
                await self._step()
        finally:
            for request in [*self._waiting, *self._active.values()]:  # nobody waits for ever
                if not request.is_over:
                    self._end(request, Unavailable("engine", "is stopping", "ask again"))

    async def _step(self) -> None:
        leaving = self._sweep()
        joining = self._admit()
        started = time.perf_counter()
        try:
            items = await self._run(self._batch.step, joining, leaving)
        except Exception as error:  # noqa: BLE001  # the outermost edge of this task
            frames = traceback.extract_tb(
                error.__traceback__
            )  # places, never values: those are text
            where = [f"{frame.filename}:{frame.lineno}" for frame in frames[-3:]]
            log.error("engine_step_failed", error=type(error).__name__, where=where)
            await self._start_over()
            return
        self._note_step(time.perf_counter() - started)
        self._hand_out(items)

    def _sweep(self) -> list[Row]:
        """Rows whose requests are over: cancelled, withdrawn or late."""
        now = time.perf_counter()
        for request in [*self._waiting, *self._active.values()]:
            if not request.is_over and now > request.deadline:
                self._end(request, Timeout("engine", "the deadline came before the answer's end"))
        self._waiting = deque(request for request in self._waiting if not request.is_over)
        leaving = [row for row, request in self._active.items() if request.is_over]
        for row in leaving:
            del self._active[row]
        return leaving

    def _admit(self) -> list[Row]:
        """Rows that come in, in the order of arrival: nobody is overtaken for ever."""
        joining = []
        longest = max((row.most_tokens for row in self._active), default=0)
        while self._waiting and len(self._active) < self._limits.rows:
            row = self._waiting[0].row
            longest = max(longest, row.most_tokens)
            if self._active and (len(self._active) + 1) * longest > self._limits.kept_tokens:
                break
            self._active[row] = self._waiting.popleft()
            joining.append(row)
        self._watch.waiting(len(self._waiting))
        return joining

    def _hand_out(self, items: Sequence[tuple[Row, Item]]) -> None:
        for row, item in items:
            request = self._active[row]
            if isinstance(item, Generation | MemoryServiceError):
                del self._active[row]
            if not request.is_over:  # nothing more of what was withdrawn during the step
                request.items.put_nowait(item)
            if isinstance(item, Generation):
                request.is_over = True
                self._watch.answered(item)

    def _end(self, request: _Request, error: MemoryServiceError) -> None:
        request.is_over = True
        request.items.put_nowait(error)

    async def _start_over(self) -> None:
        """After a step that failed: its requests end, those that wait find the batch clean."""
        for request in self._active.values():
            if not request.is_over:
                self._end(request, Unavailable("engine", "could not make the answer", "ask again"))
        self._active.clear()
        with suppress(RuntimeError):  # the worker is gone, and the process about to be
            await self._run(self._batch.clear)

    def _note_step(self, duration_s: float) -> None:
        self._token_s += 0.05 * (duration_s - self._token_s)
        self._watch.stepped(self._batch.decoding, duration_s)

    def _retry_after_s(self) -> int:
        """When a place may be free: the shortest rest of the running answers, roughly."""
        rests = [row.sampling.max_new_tokens - len(row.said) for row in self._active]
        return max(1, round(min(rests, default=1) * self._token_s))
