"""LongMemEval's evidence turns (Wu et al. 2024): five abilities of a memory, and abstention."""

from collections.abc import Sequence
from dataclasses import replace

from memory_service.domain.chunks import MONTHS
from memory_service.domain.dialogues import Dialogue, DialogueQuestion
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.tasks.dialogues import asked_as_written, dialogue_samples

ABSTENTION = "_abs"
"""How LongMemEval marks the ids of questions that the dialogue cannot answer."""


def longmemeval_samples(dialogues: Sequence[Dialogue], limit: int | None) -> list[Sample]:
    """Questions spread evenly over the file, which is sorted by type.

    Raises:
        InvalidInput: fewer than two dialogues have a question with an answer.
    """
    samples = [_marked(one) for one in dialogue_samples(dialogues, None, _asked_today)]
    if limit is None or limit >= len(samples):
        return samples
    return [samples[number * len(samples) // limit] for number in range(limit)]


def _asked_today(question: DialogueQuestion) -> Asked:
    """The question after the date on which it is asked: "how long ago" needs it."""
    asked = asked_as_written(question)
    if question.asked_at is None:
        return asked
    day = question.asked_at
    today = f"Today is {day.day} {MONTHS[day.month - 1]} {day.year}. "
    return replace(asked, question=today + asked.question)


def _marked(sample: Sample) -> Sample:
    if not sample.id.endswith(ABSTENTION):
        return sample
    asked = [replace(one, groups={**one.groups, "type": "abstention"}) for one in sample.asked]
    return replace(sample, asked=asked)
