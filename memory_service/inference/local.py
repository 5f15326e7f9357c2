"""Adapter -> chat: answers of one caller, one or several at once, blocking.

What many callers ask at the same time is answered by `engine`, with the same `Batch`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.errors import InvalidInput, MemoryServiceError
from memory_service.generator.injection import Injector
from memory_service.inference.base_models import BaseModel
from memory_service.inference.batch import Batch, Item, Row
from memory_service.inference.decoder import Decoder
from memory_service.inference.tokens import Tokens


class LocalBackend:
    """Generates with the base model in memory, for evaluations.

    Calls must come from one thread (`services.compute`).
    """

    def __init__(
        self,
        base: BaseModel,
        tokens: Tokens,
        injector: Injector,
        decoder: Decoder,
        empty_readouts: Tensor,
    ) -> None:
        self._base = base
        self._tokens = tokens
        self._injector = injector
        self._decoder = decoder
        self._empty = empty_readouts  # [layer key value], all zero: no memory

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model reads it."""
        return len(self._tokens.prompt_ids(messages))

    def stream(
        self, messages: Sequence[Message], readouts: Tensor | None, sampling: Sampling
    ) -> Iterator[str | Generation]:
        """Yield pieces of the answer's text as they come and, last, the `Generation` of them all.

        Raises:
            InvalidInput: the prompt does not fit into the base model's context.
            NumericalError: the model returned NaN or Inf.
        """
        for _, item in self._run([self._row(messages, readouts, sampling)]):
            if isinstance(item, MemoryServiceError):
                raise item
            yield item

    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        readouts: Sequence[Tensor | None],
        sampling: Sampling,
    ) -> list[str]:
        """Answer several prompts in one batch, each with its own adapter.

        Raises:
            InvalidInput: a prompt does not fit into the base model's context.
            NumericalError: the model returned NaN or Inf.
        """
        rows = [
            self._row(messages, one, sampling)
            for messages, one in zip(prompts, readouts, strict=True)
        ]
        answers: dict[Row, str] = {}
        for row, item in self._run(rows):
            if isinstance(item, MemoryServiceError):
                raise item
            if isinstance(item, Generation):
                answers[row] = item.text
        return [answers[row] for row in rows]

    @torch.inference_mode()
    def log_likelihoods(
        self,
        prompts: Sequence[Sequence[Message]],
        answers: Sequence[str],
        readouts: Sequence[Tensor | None],
    ) -> list[float]:
        """Mean log-likelihood in nats per token of an answer given its prompt, for several.

        Raises:
            InvalidInput: a prompt and its answer do not fit into the base model's context.
        """
        rows = []
        for messages, answer in zip(prompts, answers, strict=True):
            rows.append((self._tokens.prompt_ids(messages), self._tokens.ids(answer)))
        self._check_room([[*prompt, *expected] for prompt, expected in rows], new_tokens=0)
        width = max(len(prompt) + len(expected) for prompt, expected in rows)
        input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
        for row, (prompt, expected) in enumerate(rows):  # padded on the right: causal, so unseen
            input_ids[row, : len(prompt) + len(expected)] = torch.tensor([*prompt, *expected])
        with self._injector.apply(self._stack(readouts)):
            hidden = self._base.model.get_decoder()(input_ids, use_cache=False).last_hidden_state
        means = []
        for row, (prompt, expected) in enumerate(rows):
            first, last = len(prompt) - 1, len(prompt) + len(expected) - 1
            logits = self._base.model.get_output_embeddings()(hidden[row, first:last]).float()
            chosen = torch.log_softmax(logits, dim=-1).gather(
                1, torch.tensor(expected).unsqueeze(1)
            )
            means.append(float(chosen.mean()))
        return means

    def _stack(self, readouts: Sequence[Tensor | None]) -> Tensor:
        return torch.stack([self._empty if one is None else one for one in readouts])

    def _row(self, messages: Sequence[Message], readouts: Tensor | None, sampling: Sampling) -> Row:
        prompt = self._tokens.prompt_ids(messages)
        self._check_room([prompt], sampling.max_new_tokens)
        return Row(prompt, readouts, sampling)

    def _run(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Item]]:
        """Answer rows in a batch of their own."""
        batch = Batch(self._base, self._tokens, self._decoder, self._empty)
        try:
            yield from batch.step(rows, [])
            while batch.rows:
                yield from batch.step([], [])
        finally:
            batch.clear()

    def _check_room(self, prompts: Sequence[list[int]], new_tokens: int) -> None:
        context: int = self._base.model.config.max_position_embeddings
        longest = max(len(prompt) for prompt in prompts)
        if longest + new_tokens > context:
            raise InvalidInput(
                "messages",
                f"{longest} tokens",
                f"do not fit with {new_tokens} new tokens into the base model's "
                f"context of {context}; shorten them",
            )
