"""Deep Memory Retrieval: questions about real dialogues (Packer et al. 2023, MemGPT)."""

from collections.abc import Sequence

from memory_service.domain.dialogues import Dialogue
from memory_service.errors import InvalidInput
from memory_service.evaluation.samples import Asked, Sample


def dmr_samples(dialogues: Sequence[Dialogue], limit: int | None) -> list[Sample]:
    """Dialogues with questions; the swap is the next dialogue of the file.

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
            asked=[
                Asked(q.text, q.answer, q.value, q.outdated) for q in dialogue.questions if q.answer
            ],
        )
        for number, dialogue in enumerate(asked)
    ]
    return samples[:limit]
