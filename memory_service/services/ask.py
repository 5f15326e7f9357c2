"""Ask: a question -> the memory's answer as plain text, and how sure it is.

For assistants whose own model cannot carry an adapter: they call this as a tool.
"""

import math
from contextlib import aclosing
from dataclasses import dataclass

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter
from memory_service.services.compute import Compute
from memory_service.services.ports import Backend, Generation, Message, Sampling, Scorer
from memory_service.services.recall import Recall


@dataclass(frozen=True)
class Reply:
    """An answer from memory.

    `log_likelihood` is the answer's, in nats per token, with the adapter; `without_memory` that of
    the same answer from the base model alone. Their difference is what the memory contributes:
    near 0, the base model would have said the same of anybody. An empty answer has neither.
    """

    answer: str
    version: int
    log_likelihood: float | None
    without_memory: float | None
    prompt_tokens: int
    completion_tokens: int

    @property
    def confidence(self) -> float:
        """The geometric mean of the answer's token probabilities, from 0 to 1."""
        return 0.0 if self.log_likelihood is None else math.exp(self.log_likelihood)


class Ask:
    """Answers one question from a memory; nothing of it is stored."""

    def __init__(self, recall: Recall, backend: Backend, scorer: Scorer, compute: Compute) -> None:
        self._recall = recall
        self._backend = backend
        self._scorer = scorer
        self._compute = compute

    async def question(
        self,
        memory_id: MemoryId,
        question: str,
        version: int | None = None,
        most_new_tokens: int = 64,
    ) -> Reply:
        """Answer with the adapter of a version (default: the newest), greedily.

        Raises:
            NotFound: no such user or version, or nothing was remembered yet.
            IncompatibleState: the adapter was made by another generator or base model.
            InvalidInput: the question does not fit into the base model's context.
            StateConflict: the memory was deleted while it answered.
            BackendError: the backend has too much to do, is stopping, or took too long.
        """
        prompt = [Message("user", question)]
        async with self._recall.applied(memory_id, version) as adapter:
            generation = await self._generate(prompt, adapter, most_new_tokens)
            answer = generation.text.strip()
            own = without = None
            if answer:
                own, without = await self._compute.run(
                    self._scorer.log_likelihoods,
                    [prompt, prompt],
                    [answer, answer],
                    [adapter.readouts, None],
                )
        async with self._recall.applied(memory_id, adapter.version):
            pass  # forgotten meanwhile: not a word of it
        return Reply(
            answer=answer,
            version=adapter.version,
            log_likelihood=own,
            without_memory=without,
            prompt_tokens=generation.prompt_tokens,
            completion_tokens=generation.completion_tokens,
        )

    async def _generate(
        self, prompt: list[Message], adapter: AppliedAdapter, most_new_tokens: int
    ) -> Generation:
        sampling = Sampling(max_new_tokens=most_new_tokens)
        async with aclosing(self._backend.stream(prompt, adapter, sampling)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Generation):
                    return piece
        raise RuntimeError("a stream ended without its generation")
