"""Side by side: one dialogue's questions asked four ways, from stored memories.

Goes the whole way: adapters come out of the database through `services.recall`. Time to first
token is that of one request alone; short prompts are then answered together, each row of the batch
with its own adapter. For scores over many dialogues see `runner`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor

from memory_service.domain.dialogues import Dialogue, DialogueQuestion
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.errors import InvalidInput
from memory_service.evaluation.methods import BEST_PROMPT
from memory_service.evaluation.scorers import token_f1, value_recall
from memory_service.inference.local import LocalBackend
from memory_service.services.compute import Compute
from memory_service.services.recall import Recall

SAMPLING = Sampling(max_new_tokens=24)
"""Greedy; answers to these questions are short."""

FIRST_TOKEN = Sampling(max_new_tokens=1)
TOGETHER = 24
"""Short prompts answered in one batch."""


class Way(StrEnum):
    """What the model has to go by."""

    NONE = "no memory"
    OWN = "own adapter"
    SWAP = "another user's adapter"
    HISTORY = "whole history in the prompt"


@dataclass(frozen=True)
class Answered:
    """One answer. `holds` and `f1` are None where the dialogue says no expected answer."""

    text: str
    prompt_tokens: int
    first_token_s: float
    holds: bool | None
    f1: float | None


@dataclass(frozen=True)
class Row:
    """One question with its answer by each way; None where the prompt did not fit."""

    question: DialogueQuestion
    answers: dict[Way, Answered | None]


@dataclass(frozen=True)
class Summary:
    """One way over all questions."""

    way: Way
    holding: int
    judged: int
    mean_f1: float | None
    mean_prompt_tokens: float | None
    mean_first_token_s: float | None
    kept_bytes: int


@dataclass(frozen=True)
class _Asked:
    """A short prompt: a question, and the adapter it is asked with."""

    row: Row
    way: Way
    readouts: Tensor | None


class _Steps:
    """Counts steps for a report."""

    def __init__(self, report: Callable[[int, int], None], total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0
        report(0, total)

    def add(self, count: int) -> None:
        """Report so many more steps as done."""
        self._done += count
        self._report(self._done, self._total)


class SideBySide:
    """Asks the questions of dialogues whose turns are remembered."""

    def __init__(self, recall: Recall, backend: LocalBackend, compute: Compute) -> None:
        self._recall = recall
        self._backend = backend
        self._compute = compute

    async def ask(
        self,
        dialogue: Dialogue,
        own: MemoryId,
        other: MemoryId,
        report: Callable[[int, int], None],
    ) -> list[Row]:
        """Ask every question every way; `report` gets steps done and steps to do."""
        readouts = {
            Way.NONE: None,
            Way.OWN: (await self._recall.adapter(own)).readouts,
            Way.SWAP: (await self._recall.adapter(other)).readouts,
        }
        rows = [Row(question, dict.fromkeys(Way)) for question in dialogue.questions]
        asked = [_Asked(row, way, readout) for row in rows for way, readout in readouts.items()]
        steps = _Steps(report, 2 * len(asked) + len(rows))
        # A process's first call is slow; it is not measured.
        await self._compute.run(self._backend.answers, [_plain(rows[0])], [None], FIRST_TOKEN)
        for first in range(0, len(asked), TOGETHER):
            part = asked[first : first + TOGETHER]
            costs = []
            for one in part:
                costs.append(await self._compute.run(self._first_token, one))
                steps.add(1)
            await self._compute.run(self._answer_together, part, costs)
            steps.add(len(part))
        for row in rows:
            await self._compute.run(self._answer_from_history, row, dialogue)
            steps.add(1)
        return rows

    def _first_token(self, one: _Asked) -> Generation:
        return self._generate(_plain(one.row), one.readouts, FIRST_TOKEN)

    def _answer_together(self, part: Sequence[_Asked], costs: Sequence[Generation]) -> None:
        texts = self._backend.answers(
            [_plain(one.row) for one in part], [one.readouts for one in part], SAMPLING
        )
        for one, cost, text in zip(part, costs, texts, strict=True):
            one.row.answers[one.way] = _judged(one.row.question, text, cost)

    def _answer_from_history(self, row: Row, dialogue: Dialogue) -> None:
        prompt = BEST_PROMPT(dialogue.turns, row.question.text)
        try:
            generation = self._generate(prompt, None, SAMPLING)
        except InvalidInput:  # longer than the base model's context
            return
        row.answers[Way.HISTORY] = _judged(row.question, generation.text, generation)

    def _generate(
        self, prompt: Sequence[Message], readouts: Tensor | None, sampling: Sampling
    ) -> Generation:
        *_, last = self._backend.stream(prompt, readouts, sampling)
        if not isinstance(last, Generation):
            raise TypeError("a stream of answers ended without its Generation")
        return last


def summarise(rows: Sequence[Row], kept_bytes: dict[Way, int]) -> list[Summary]:
    """What each way cost and how many answers hold the value."""
    summaries = []
    for way in Way:
        given = [answer for row in rows if (answer := row.answers[way]) is not None]
        judged = [answer for answer in given if answer.holds is not None]
        summaries.append(
            Summary(
                way=way,
                holding=sum(bool(answer.holds) for answer in judged),
                judged=len(judged),
                mean_f1=_mean([answer.f1 for answer in judged if answer.f1 is not None]),
                mean_prompt_tokens=_mean([answer.prompt_tokens for answer in given]),
                mean_first_token_s=_mean([answer.first_token_s for answer in given]),
                kept_bytes=kept_bytes[way],
            )
        )
    return summaries


def kv_cache_bytes(model_config: Any, bytes_per_number: int, tokens: float) -> int:
    """Bytes of keys and values that a prompt of so many tokens occupies while it is answered."""
    heads = model_config.num_key_value_heads
    width = getattr(model_config, "head_dim", None) or (
        model_config.hidden_size // model_config.num_attention_heads
    )
    numbers_per_token: int = 2 * model_config.num_hidden_layers * heads * width
    return round(numbers_per_token * bytes_per_number * tokens)


def _plain(row: Row) -> list[Message]:
    return [Message("user", row.question.text)]


def _judged(question: DialogueQuestion, text: str, cost: Generation) -> Answered:
    value = question.value or question.answer
    return Answered(
        text=text,
        prompt_tokens=cost.prompt_tokens,
        first_token_s=cost.first_token_s,
        holds=None if value is None else bool(value_recall(text, value)),
        f1=None if question.answer is None else token_f1(text, question.answer),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
