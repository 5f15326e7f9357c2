"""Recall: synthetic people of values and phrasings never trained on."""

import random

from memory_service.errors import InvalidInput
from memory_service.evaluation.samples import Asked, Sample
from memory_service.training.people import Episode, Split, make_episode, twin


def recall_samples(
    people: int, *, facts: int, sessions: int, chatter: float, seed: int
) -> list[Sample]:
    """People with `facts` facts over `sessions` sessions; the swap has the same kinds of facts.

    Raises:
        InvalidInput: a count is out of range.
    """
    if people < 1:
        raise InvalidInput("people", people, "must be at least 1")
    if facts < 1:
        raise InvalidInput("facts", facts, "must be at least 1, or there is nothing to ask")
    samples = []
    for number in range(people):
        rng = random.Random(f"recall-{seed}-{number}")  # noqa: S311  # not security
        episode = make_episode(rng, Split.TEST, facts=facts, sessions=sessions, chatter=chatter)
        other = twin(rng, Split.TEST, episode, chatter=chatter)
        samples.append(_sample(number, episode, other))
    return samples


def _sample(number: int, episode: Episode, other: Episode) -> Sample:
    return Sample(
        id=f"person-{number}",
        turns=episode.turns,
        swap_turns=other.turns,
        asked=[Asked(q.text, q.answer, q.value) for q in episode.questions],
    )
