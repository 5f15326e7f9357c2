"""Chat: a conversation's last messages + the user's adapter -> an answer, streamed."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter
from memory_service.services.ports import Backend, Generation, Message, Sampling
from memory_service.services.recall import Recall
from memory_service.services.window import Window, last_that_fit


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
        deadline_s: float | None = None,
    ) -> AsyncGenerator[str | Generation, None]:
        """Yield pieces of the answer and, last, the `Generation`; no memory where id is None.

        Raises:
            NotFound: no such user, or nothing was remembered yet.
            IncompatibleState: the adapter was made by another generator or base model.
            InvalidInput: the prompt does not fit into the base model's context.
            BackendError: the backend has too much to do, is stopping, or took too long.
        """
        async with AsyncExitStack() as stack:
            adapter: AppliedAdapter | None = None
            if memory_id is not None:
                adapter = await stack.enter_async_context(self._recall.applied(memory_id, version))
            pieces = self._backend.stream(messages, adapter, sampling, deadline_s)
            await stack.enter_async_context(aclosing(pieces))
            async for piece in pieces:
                yield piece

    def window(self, messages: Sequence[Message], budget_tokens: int) -> Window:
        """The system messages and the last others that fit into a prompt; at least the newest."""
        return last_that_fit(messages, budget_tokens, self._backend.prompt_tokens)
