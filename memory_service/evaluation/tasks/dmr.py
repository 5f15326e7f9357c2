"""Deep Memory Retrieval: questions about real dialogues (Packer et al. 2023, MemGPT)."""

from collections.abc import Sequence

from memory_service.domain.dialogues import Dialogue
from memory_service.evaluation.samples import Sample
from memory_service.evaluation.tasks.dialogues import dialogue_samples


def dmr_samples(dialogues: Sequence[Dialogue], limit: int | None) -> list[Sample]:
    """The first dialogues with questions; groups are session and speaker of the evidence.

    Raises:
        InvalidInput: fewer than two dialogues have a question with an answer.
    """
    return dialogue_samples(dialogues, limit)
