"""Prompts read once, for all that an evaluation wants to know of them.

A `Reading` keeps the keys and values of a prompt: answering it, the likelihood of expected answers
and further prompts that begin the same go on from there, instead of reading it again.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.errors import InvalidInput, MemoryServiceError
from memory_service.generator.injection import Injector
from memory_service.inference.base_models import BaseModel
from memory_service.inference.batch import PIECE_TOKENS, Batch, Row
from memory_service.inference.decoder import Decoder
from memory_service.inference.key_values import KeyValues
from memory_service.inference.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt that was read under an adapter; `key_values` are of all its tokens but the last.

    `first_token_s` is the time until the answer's first token was known, for this prompt alone;
    `kept_tokens` of its tokens had been read before.
    """

    prompt: tuple[int, ...]
    readouts: Tensor | None  # [layer key value]; None is no memory
    key_values: KeyValues
    kept_tokens: int
    first_token_s: float

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt as the model reads it."""
        return len(self.prompt)

    @property
    def kept_bytes(self) -> int:
        """What the keys and values of the prompt occupy."""
        return self.key_values.size_bytes(len(self.prompt))


class Reader:
    """Reads prompts one by one and goes on from them.

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
        self._empty = empty_readouts

    def fits(self, messages: Sequence[Message], new_tokens: int) -> bool:
        """Whether a prompt and so many tokens of an answer are within the base model's context."""
        return len(self._tokens.prompt_ids(messages)) + new_tokens <= self._context

    @torch.inference_mode()
    def read(
        self, messages: Sequence[Message], readouts: Tensor | None, like: Reading | None = None
    ) -> Reading:
        """Read a prompt; what it has in common with the beginning of `like` is not read again.

        Raises:
            InvalidInput: the prompt does not fit into the base model's context, or `like` was read
                under another adapter.
        """
        started = time.perf_counter()
        prompt = tuple(self._tokens.prompt_ids(messages))
        if len(prompt) >= self._context:
            raise InvalidInput(
                "messages",
                f"{len(prompt)} tokens",
                f"leave no room in the base model's context of {self._context}; shorten them",
            )
        key_values, kept = KeyValues(), 0
        if like is None:
            key_values.open(1)
        else:
            if like.readouts is not readouts:
                raise InvalidInput("like", "a reading", "was read under another adapter")
            kept = _common(like.prompt[:-1], prompt[:-1])
            copied_since = time.perf_counter()
            key_values.take(like.key_values, 0)
            key_values.cut(0, kept)
            started += time.perf_counter() - copied_since  # a server shares it without a copy
        for first in range(kept, len(prompt), PIECE_TOKENS):
            piece = torch.tensor([prompt[first : first + PIECE_TOKENS]])
            hidden = self._forward(piece, key_values, readouts)
        int(self._logits(hidden[:, -1]).argmax())
        first_token_s = time.perf_counter() - started
        key_values.cut(0, len(prompt) - 1)
        return Reading(prompt, readouts, key_values, kept, first_token_s)

    def answer(self, readings: Sequence[Reading], sampling: Sampling) -> list[Generation]:
        """Answer prompts in one batch, each under its own adapter; times are those of the batch.

        Raises:
            InvalidInput: a prompt has no room for its answer in the base model's context.
            NumericalError: the model returned NaN or Inf.
        """
        rows = []
        for one in readings:
            if len(one.prompt) + sampling.max_new_tokens > self._context:
                problem = f"have no room for {sampling.max_new_tokens} new tokens; shorten them"
                raise InvalidInput("messages", f"{len(one.prompt)} tokens", problem)
            row = Row(list(one.prompt), one.readouts, sampling)
            row.read, row.kept = len(one.prompt) - 1, one.key_values
            rows.append(row)
        batch = Batch(self._base, self._tokens, self._decoder, self._empty)
        answers: dict[Row, Generation] = {}
        joining = rows
        try:
            while joining or batch.rows:
                for row, item in batch.step(joining, []):
                    if isinstance(item, MemoryServiceError):
                        raise item
                    if isinstance(item, Generation):
                        answers[row] = item
                joining = []
        finally:
            batch.clear()
        return [answers[row] for row in rows]

    @torch.inference_mode()
    def log_likelihood(self, reading: Reading, answer: str) -> float:
        """Mean log-likelihood of an answer after a prompt, in nats per token.

        Raises:
            InvalidInput: the answer is empty, or has no room in the base model's context.
        """
        expected = self._tokens.ids(answer)
        if not expected or len(reading.prompt) + len(expected) > self._context:
            raise InvalidInput(
                "answer",
                answer,
                f"must have a token, and room after the {len(reading.prompt)} of its prompt",
            )
        key_values = KeyValues()
        key_values.take(reading.key_values, 0)
        read = torch.tensor([[reading.prompt[-1], *expected[:-1]]])
        logits = self._logits(self._forward(read, key_values, reading.readouts)[0]).float()
        chosen = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(expected).unsqueeze(1))
        return float(chosen.mean())

    @property
    def _context(self) -> int:
        context: int = self._base.model.config.max_position_embeddings
        return context

    def _forward(self, ids: Tensor, key_values: KeyValues, readouts: Tensor | None) -> Tensor:
        """Hidden states [1 token d_model] of the next tokens."""
        positions = key_values.expect(*ids.shape)
        with nullcontext() if readouts is None else self._injector.apply(readouts.unsqueeze(0)):
            output = self._base.model.get_decoder()(
                input_ids=ids,
                attention_mask=key_values.mask(self._base.model.dtype),
                position_ids=positions,
                past_key_values=key_values,
                use_cache=True,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._base.model.get_output_embeddings()(hidden)
        return logits


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
