"""Chat: a conversation's last messages + the user's adapter -> an answer, streamed."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter
from memory_service.services.ports import Backend, Generation, Message, Sampling
from memory_service.services.recall import Recall
from memory_service.services.window import Window, last_that_fit


@dataclass(frozen=True)
class Answering:
    """An answer in the making, and the version of the adapter that makes it."""

    version: int | None
    pieces: AsyncGenerator[str | Generation, None]


class Chat:
    """Answers with or without a user's memory. History is never replayed into the prompt."""

    def __init__(self, recall: Recall, backend: Backend) -> None:
        self._recall = recall
        self._backend = backend

    async def answer(
        self,
        memory_id: MemoryId | None,
        messages: Sequence[Message],
        sampling: Sampling,
        version: int | None = None,
    ) -> AsyncGenerator[str | Generation, None]:
        """Yield pieces of the answer and, last, the `Generation`; no memory where id is None.

        Raises:
            NotFound: no such user, or nothing was remembered yet.
            IncompatibleState: the adapter was made by another generator or base model.
            InvalidInput: the prompt does not fit into the base model's context.
            BackendError: the backend has too much to do, is stopping, or took too long.
        """
        async with self.answering(memory_id, messages, sampling, version) as answering:
            async for piece in answering.pieces:
                yield piece

    @asynccontextmanager
    async def answering(
        self,
        memory_id: MemoryId | None,
        messages: Sequence[Message],
        sampling: Sampling,
        version: int | None = None,
    ) -> AsyncIterator[Answering]:
        """The same for callers that want to know the version first.

        Raises:
            NotFound: no such user, or nothing was remembered yet.
            IncompatibleState: the adapter was made by another generator or base model.
        """
        async with AsyncExitStack() as stack:
            adapter: AppliedAdapter | None = None
            if memory_id is not None:
                adapter = await stack.enter_async_context(self._recall.applied(memory_id, version))
            pieces = self._backend.stream(messages, adapter, sampling)
            await stack.enter_async_context(aclosing(pieces))
            yield Answering(None if adapter is None else adapter.version, pieces)

    def window(self, messages: Sequence[Message], budget_tokens: int) -> Window:
        """The system messages and the last others that fit into a prompt; at least the newest."""
        return last_that_fit(messages, budget_tokens, self._backend.prompt_tokens)

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model reads it."""
        return self._backend.prompt_tokens(messages)

    def withdraw(self, memory_id: MemoryId) -> None:
        """Answer with a memory no longer: it was deleted."""
        self._recall.cache.forget(memory_id)
        self._backend.withdraw(memory_id)
