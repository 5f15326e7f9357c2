"""Chat: a conversation's last messages + the user's adapter -> an answer, streamed."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from torch import Tensor

from memory_service.domain.memory import MemoryId
from memory_service.services.compute import Compute
from memory_service.services.ports import Backend, Generation, Message, Sampling
from memory_service.services.recall import Recall


class Chat:
    """Answers with or without a user's memory. History is never replayed into the prompt."""

    def __init__(self, recall: Recall, backend: Backend, compute: Compute) -> None:
        self._recall = recall
        self._backend = backend
        self._compute = compute

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
        """
        readouts: Tensor | None = None
        if memory_id is not None:
            readouts = (await self._recall.adapter(memory_id, version)).readouts
        pieces = self._compute.stream(lambda: self._backend.stream(messages, readouts, sampling))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def window(self, messages: Sequence[Message], budget_tokens: int) -> Sequence[Message]:
        """The last messages that fit into a prompt, from a user's message on; at least the newest.

        What falls out is not lost: the adapter holds it.
        """
        return await self._compute.run(self._window, messages, budget_tokens)

    def _window(self, messages: Sequence[Message], budget_tokens: int) -> Sequence[Message]:
        kept = messages[-1:]
        for start in range(len(messages) - 2, -1, -1):
            if self._backend.prompt_tokens(messages[start:]) > budget_tokens:
                break
            if messages[start].role == "user":
                kept = messages[start:]
        return kept
