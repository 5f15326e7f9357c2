"""Answering: questions about one person by one method, with what each of them cost.

The first question of a person is answered alone and timed. The others may go on from what it read
of the history, as a server that keeps keys and values would, and are answered together.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.evaluation.methods import Kept
from memory_service.evaluation.samples import Asked
from memory_service.inference.reading import Reading

SAMPLING = Sampling(max_new_tokens=24)
"""Greedy; answers of these tasks are short."""

BATCH_PROMPT_TOKENS = 8192
"""Questions are answered together while their prompts fit into this."""


class Reads(Protocol):
    """What is needed of `inference.reading.Reader`."""

    def fits(self, messages: Sequence[Message], new_tokens: int) -> bool:
        """Whether prompt and answer are within the context."""

    def read(
        self, messages: Sequence[Message], readouts: Tensor | None, like: Reading | None = None
    ) -> Reading:
        """Read a prompt, going on from where it is like another."""

    def answer(self, readings: Sequence[Reading], sampling: Sampling) -> list[Generation]:
        """Answer prompts in one batch."""

    def log_likelihood(self, reading: Reading, answer: str) -> float:
        """Mean log-likelihood of an answer, nats per token."""


@dataclass(frozen=True)
class Answered:
    """One answer.

    Times are None where the question was not asked alone with nothing read before. `again_s` is the
    time to the first token where the beginning of the prompt was still kept as keys and values.
    """

    text: str
    prompt: list[Message]
    prompt_tokens: int
    answer_tokens: int
    first_token_s: float | None
    again_s: float | None
    total_s: float | None
    log_likelihood: float | None
    outdated_log_likelihood: float | None


def answer_all(kept: Kept, asked: Sequence[Asked], reader: Reads) -> list[Answered]:
    """Answers in the order of the questions; an empty expected answer has no likelihood.

    Raises:
        InvalidInput: a question is longer than the base model's context.
    """
    answered = []
    first: Reading | None = None
    for part in _parts(kept, asked, reader):
        readings, prompts, searched = [], [], []
        for one in part:
            started = time.perf_counter()
            prompts.append(kept.prompt(one.question, partial(_fits, reader, one)))
            searched.append(time.perf_counter() - started)
            readings.append(reader.read(prompts[-1], kept.readouts, first))
            first = first or readings[-1]
        generations = reader.answer(readings, SAMPLING)
        for one, prompt, reading, search_s, generation in zip(
            part, prompts, readings, searched, generations, strict=True
        ):
            is_first, token_s = reading is first, search_s + reading.first_token_s
            answered.append(
                Answered(
                    text=generation.text,
                    prompt=prompt,
                    prompt_tokens=reading.prompt_tokens,
                    answer_tokens=generation.completion_tokens,
                    first_token_s=token_s if is_first else None,
                    again_s=None if is_first else token_s,
                    total_s=token_s + generation.total_s if is_first else None,
                    log_likelihood=_likelihood(reader, reading, one.answer),
                    outdated_log_likelihood=_likelihood(reader, reading, one.outdated),
                )
            )
    return answered


def _parts(kept: Kept, asked: Sequence[Asked], reader: Reads) -> list[Sequence[Asked]]:
    """The first question alone, then as many together as is fitting for prompts of its length."""
    if len(asked) < 2:
        return [asked] if asked else []
    prompt = kept.prompt(asked[0].question, partial(_fits, reader, asked[0]))
    words = sum(len(message.content.split()) for message in prompt)
    together = max(1, BATCH_PROMPT_TOKENS // (2 * words))  # about two tokens a word at most
    rest = range(1, len(asked), together)
    return [asked[:1], *(asked[start : start + together] for start in rest)]


def _fits(reader: Reads, asked: Asked, messages: Sequence[Message]) -> bool:
    """With room for what is said and for what is scored; no token is shorter than a byte."""
    scored = [len(text.encode()) for text in (asked.answer, asked.outdated) if text]
    return reader.fits(messages, max([SAMPLING.max_new_tokens, *scored]))


def _likelihood(reader: Reads, reading: Reading, answer: str | None) -> float | None:
    return reader.log_likelihood(reading, answer) if answer else None
