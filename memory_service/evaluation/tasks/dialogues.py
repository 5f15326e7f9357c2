"""What tasks made of recorded dialogues share."""

from collections.abc import Callable, Sequence

from memory_service.domain.dialogues import Dialogue, DialogueQuestion
from memory_service.errors import InvalidInput
from memory_service.evaluation.samples import Asked, Sample


def asked_as_written(question: DialogueQuestion) -> Asked:
    """A question as the dialogue has it, with all that a report can break down by."""
    known = {
        "session": question.evidence_session,
        "speaker": question.speaker or question.about,
        "type": question.kind,
    }
    return Asked(
        question=question.text,
        answer=question.answer or "",
        value=question.value,
        outdated=question.outdated,
        evidence=question.evidence_turn,
        groups={name: str(value) for name, value in known.items() if value is not None},
    )


def dialogue_samples(
    dialogues: Sequence[Dialogue],
    limit: int | None,
    ask: Callable[[DialogueQuestion], Asked] = asked_as_written,
) -> list[Sample]:
    """Dialogues with questions; the swap is the next such dialogue of the file.

    Raises:
        InvalidInput: fewer than two dialogues have a question with an answer.
    """
    asked = [one for one in dialogues if any(q.answer for q in one.questions)]
    if len(asked) < 2:
        raise InvalidInput("data", len(asked), "needs at least two dialogues with questions")
    samples = [
        Sample(
            id=dialogue.id,
            turns=dialogue.turns,
            swap_turns=asked[(number + 1) % len(asked)].turns,
            asked=[ask(question) for question in dialogue.questions if question.answer],
        )
        for number, dialogue in enumerate(asked)
    ]
    return samples[:limit]
