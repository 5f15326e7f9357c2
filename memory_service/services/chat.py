"""Chat: a conversation's last messages + the user's adapter -> an answer, streamed."""

from collections.abc import AsyncIterator, Sequence

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
    ) -> AsyncIterator[str | Generation]:
        """Yield pieces of the answer and, last, the `Generation`; no memory where id is None.

        Raises:
            NotFound: no such user, or nothing was remembered yet.
            IncompatibleState: the adapter was made by another generator or base model.
            InvalidInput: the prompt does not fit into the base model's context.
        """
        readouts: Tensor | None = None
        if memory_id is not None:
            readouts = (await self._recall.adapter(memory_id, version)).readouts
        async for piece in self._compute.stream(
            lambda: self._backend.stream(messages, readouts, sampling)
        ):
            yield piece
