"""Updates: people whose facts change, asked for what is true now beside what was true before."""

from collections.abc import Sequence

from memory_service.domain.dialogues import Dialogue
from memory_service.errors import InvalidInput
from memory_service.evaluation.samples import Sample
from memory_service.evaluation.tasks.dialogues import dialogue_samples


def membench_samples(dialogues: Sequence[Dialogue], limit: int | None) -> list[Sample]:
    """Profiles with questions that know a wrong answer (`wrong_answer`), by type of question.

    Raises:
        InvalidInput: fewer than two have questions, or no question knows a wrong answer.
    """
    samples = dialogue_samples(dialogues, limit)
    if not any(one.outdated for sample in samples for one in sample.asked):
        raise InvalidInput(
            "data", len(samples), "has no wrong_answer beside an answer; `eval dmr` needs none"
        )
    return samples
