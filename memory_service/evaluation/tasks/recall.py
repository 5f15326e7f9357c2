"""Recall: synthetic people of values and phrasings never trained on."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import product

from memory_service.domain.turns import Role, Turn
from memory_service.errors import InvalidInput
from memory_service.evaluation.samples import Asked, Sample
from memory_service.training.people import Episode, Split, list_kinds, make_episode, twin


def recall_grid(
    people: int,
    *,
    facts: Sequence[int],
    sessions: Sequence[int],
    distances: Sequence[int],
    chatter: float,
    seed: int,
) -> list[Sample]:
    """People of every combination; a distance is how many sessions lie between telling and asking.

    Raises:
        InvalidInput: a count is out of range.
    """
    samples = []
    for some, over, after in product(facts, sessions, distances):
        cell = {"facts": f"{some:3}", "sessions": f"{over:3}", "distance": f"{after:3}"}
        for one in recall_samples(
            people, facts=some, sessions=over, chatter=chatter, seed=seed, further=after
        ):
            asked = [replace(each, groups={**each.groups, **cell}) for each in one.asked]
            name = f"{some}-facts-{over}-sessions-{after}-after-{one.id}"
            samples.append(replace(one, id=name, asked=asked))
    return samples


def recall_samples(
    people: int, *, facts: int, sessions: int, chatter: float, seed: int, further: int = 0
) -> list[Sample]:
    """People with `facts` facts over `sessions` sessions; the swap has the same kinds of facts.

    `further` sessions follow in which other facts are told, about one in each: what is asked then
    is how much of the first ones is left.

    Raises:
        InvalidInput: a count is out of range.
    """
    if people < 1:
        raise InvalidInput("people", people, "must be at least 1")
    if facts < 1:
        raise InvalidInput("facts", facts, "must be at least 1, or there is nothing to ask")
    if further < 0:
        raise InvalidInput("further", further, "must not be negative")
    samples = []
    for number in range(people):
        rng = random.Random(f"recall-{seed}-{number}")  # noqa: S311  # not security
        episode = make_episode(rng, Split.TEST, facts=facts, sessions=sessions, chatter=chatter)
        other = twin(rng, Split.TEST, episode, chatter=chatter)
        later = _later(rng, episode, further, chatter)
        samples.append(_sample(number, episode, other, later))
    return samples


def _later(rng: random.Random, episode: Episode, further: int, chatter: float) -> tuple[Turn, ...]:
    """Turns of further sessions, about kinds of facts that were not told before."""
    if further == 0:
        return ()
    told = {question.kind for question in episode.questions}
    free = [kind for kind in list_kinds() if kind not in told]
    kinds = [(kind, rng.choice((Role.USER, Role.ASSISTANT))) for kind in rng.sample(free, further)]
    later = make_episode(
        rng, Split.TEST, facts=further, sessions=further, chatter=chatter, kinds=kinds
    )
    wait = episode.turns[-1].time - later.turns[0].time + timedelta(days=1)
    return tuple(
        replace(turn, session=f"later-{turn.session}", id=f"later-{turn.id}", time=turn.time + wait)
        for turn in later.turns
    )


def _sample(number: int, episode: Episode, other: Episode, later: tuple[Turn, ...]) -> Sample:
    return Sample(
        id=f"person-{number}",
        turns=episode.turns + later,
        swap_turns=other.turns + later,
        asked=[
            Asked(
                q.text,
                q.answer,
                q.value,
                groups={"type": q.kind, "speaker": "user" if q.about is Role.USER else "assistant"},
            )
            for q in episode.questions
        ],
    )
