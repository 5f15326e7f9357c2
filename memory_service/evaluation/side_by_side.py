"""Side by side: one dialogue's questions asked by four of the methods, from stored memories.

Goes the whole way: adapters come out of the database through `services.recall`. Otherwise it is the
runner's answering, of methods that `methods` defines. Every question is asked alone, so that the
time to its first token is that of one request. For scores over many dialogues see `runner`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory_service.domain.dialogues import Dialogue, DialogueQuestion
from memory_service.domain.memory import MemoryId
from memory_service.evaluation.answering import Answered, answer_all
from memory_service.evaluation.methods import Kept, keep_adapter, keep_nothing, keep_turns
from memory_service.evaluation.samples import Asked
from memory_service.evaluation.scorers import token_f1, value_recall
from memory_service.inference.reading import Reader
from memory_service.services.compute import Compute
from memory_service.services.recall import Recall

LABELS: Mapping[str, str] = {
    "none": "no memory",
    "own": "own adapter",
    "swap": "another user's adapter",
    "history": "whole history in the prompt",
}
"""The methods that are shown, and how people read them."""


@dataclass(frozen=True)
class Judged:
    """One answer. `holds` and `f1` are None where the dialogue says no expected answer."""

    text: str
    prompt_tokens: int
    first_token_s: float
    holds: bool | None
    f1: float | None


@dataclass(frozen=True)
class Row:
    """One question with its answer by each method."""

    question: DialogueQuestion
    answers: dict[str, Judged]


@dataclass(frozen=True)
class Summary:
    """One method over all questions."""

    method: str
    holding: int
    judged: int
    mean_f1: float | None
    mean_prompt_tokens: float | None
    mean_first_token_s: float | None
    kept_bytes: int


class SideBySide:
    """Asks the questions of dialogues whose turns are remembered."""

    def __init__(self, recall: Recall, reader: Reader, compute: Compute) -> None:
        self._recall = recall
        self._reader = reader
        self._compute = compute

    async def ask(
        self,
        dialogue: Dialogue,
        own: MemoryId,
        other: MemoryId,
        report: Callable[[int, int], None],
    ) -> list[Row]:
        """Ask every question by every method; `report` gets steps done and steps to do."""
        kept = {
            "none": keep_nothing(),
            "own": await self._keep(own),
            "swap": await self._keep(other),
            "history": keep_turns(dialogue.turns),
        }
        rows = [Row(question, {}) for question in dialogue.questions]
        steps = len(rows) * len(LABELS)
        report(0, steps)
        # A process's first call is slow; it is not measured.
        await self._compute.run(self._answer, kept["none"], rows[0].question)
        for number, row in enumerate(rows):
            for position, method in enumerate(LABELS, start=1):
                answered = await self._compute.run(self._answer, kept[method], row.question)
                row.answers[method] = _judged(row.question, answered)
                report(number * len(LABELS) + position, steps)
        return rows

    async def _keep(self, memory_id: MemoryId) -> Kept:
        async with self._recall.applied(memory_id) as adapter:
            return keep_adapter(adapter.readouts)

    def _answer(self, kept: Kept, question: DialogueQuestion) -> Answered:
        (answered,) = answer_all(kept, [Asked(question.text, "")], self._reader)
        return answered


def summarise(rows: Sequence[Row], kept_bytes: Mapping[str, int]) -> list[Summary]:
    """What each method cost and how many answers hold the value."""
    summaries = []
    for method in LABELS:
        given = [row.answers[method] for row in rows]
        judged = [answer for answer in given if answer.holds is not None]
        summaries.append(
            Summary(
                method=method,
                holding=sum(bool(answer.holds) for answer in judged),
                judged=len(judged),
                mean_f1=_mean([answer.f1 for answer in judged if answer.f1 is not None]),
                mean_prompt_tokens=_mean([answer.prompt_tokens for answer in given]),
                mean_first_token_s=_mean([answer.first_token_s for answer in given]),
                kept_bytes=kept_bytes[method],
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


def _judged(question: DialogueQuestion, answered: Answered) -> Judged:
    value = question.value or question.answer
    return Judged(
        text=answered.text,
        prompt_tokens=answered.prompt_tokens,
        first_token_s=answered.first_token_s or 0.0,
        holds=None if value is None else bool(value_recall(answered.text, value)),
        f1=None if question.answer is None else token_f1(answered.text, question.answer),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
