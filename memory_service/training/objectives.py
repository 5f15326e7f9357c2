"""Objectives: what is asked of a memory in training, each a function, mixed by weight.

An objective turns an episode into one thing to ask, or None where the episode has nothing for it.
The first group teaches to answer from the adapter; the second, `UNRELATED`, asks what has nothing
to do with the person: there the adapter must leave the frozen model's distribution as it is.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memory_service.domain.messages import Message
from memory_service.domain.turns import Role, Turn
from memory_service.training.conversation import make_filler
from memory_service.training.people import Episode, Question

RECITED_WORDS = 40
"""Reconstruction asks for so many words at a time."""


@dataclass(frozen=True)
class Ask:
    """A conversation and the answer wanted; `value` is the part of it that carries a fact."""

    messages: tuple[Message, ...]
    answer: str
    value: str | None = None


Objective = Callable[[random.Random, Episode], Ask | None]


def questions(rng: random.Random, episode: Episode) -> Ask | None:
    """A question about a fact."""
    return _ask(rng.choice(episode.questions)) if episode.questions else None


def recitation(rng: random.Random, episode: Episode) -> Ask | None:
    """The words in which a fact was stated, given how the sentence began."""
    for question in rng.sample(episode.questions, len(episode.questions)):
        for turn in episode.turns:
            for sentence in re.split(r"(?<=[.!?])\s+", turn.text):
                start, value, rest = sentence.partition(question.value)
                if value and len(start.split()) >= 2:
                    who = "my" if turn.role is Role.USER else "your"
                    prompt = f'Complete {who} sentence: "{start.rstrip()}"'
                    return Ask((Message("user", prompt),), value + rest, value)
    return None


def reconstruction(rng: random.Random, episode: Episode) -> Ask | None:
    """A turn, word by word, given the turn before it (the paper's first objective)."""
    place = _reply(rng, episode.turns)
    if place is None:
        return None
    before, turn = place
    who = "you" if turn.role is Role.ASSISTANT else "I"
    prompt = f'What exactly did {who} reply to "{_shorten(before.text)}"?'
    return Ask((Message("user", prompt),), _shorten(turn.text))


def completion(rng: random.Random, episode: Episode) -> Ask | None:
    """What was said next, after the conversations that are remembered (its second objective)."""
    place = _reply(rng, episode.upcoming, Role.ASSISTANT)
    return (
        None if place is None else Ask((Message("user", place[0].text),), _shorten(place[1].text))
    )


def abstention(rng: random.Random, episode: Episode) -> Ask | None:
    """A question whose answer was never told.

    Its answer carries no fact and weighs like any other words: weighted as a value, it became the
    safest answer to everything (docs/decisions/0012).
    """
    if not episode.untold:
        return None
    asked = rng.choice(episode.untold)
    return Ask((Message("user", asked.text),), asked.answer)


def update(rng: random.Random, episode: Episode) -> Ask | None:
    """A question about a fact that a later turn changed: the newer value wins."""
    renewed = [question for question in episode.questions if question.renewed]
    return _ask(rng.choice(renewed)) if renewed else None


def locality(rng: random.Random, episode: Episode) -> Ask | None:
    """A piece of somebody else's conversation; `episode` is that other person's."""
    place = _reply(rng, episode.turns)
    return (
        None if place is None else Ask((Message("user", place[0].text),), _shorten(place[1].text))
    )


def chatter(rng: random.Random, episode: Episode) -> Ask | None:
    """Small talk that concerns nobody."""
    (_, asked), (_, said) = make_filler(rng)
    return Ask((Message("user", asked),), said)


OBJECTIVES: Mapping[str, Objective] = {
    one.__name__: one
    for one in (questions, recitation, reconstruction, completion, abstention, update)
}
UNRELATED: Mapping[str, Objective] = {one.__name__: one for one in (locality, chatter)}


def choose(
    rng: random.Random, weights: Mapping[str, float], among: Mapping[str, Objective]
) -> Objective | None:
    """Draw an objective by its weight; None where all of them weigh nothing."""
    names = [name for name in among if weights.get(name, 0) > 0]
    return among[rng.choices(names, [weights[name] for name in names])[0]] if names else None


def can_ask(weights: Mapping[str, float], episode: Episode) -> bool:
    """Whether an objective that weighs something finds something to ask about the person."""
    return any(
        weights.get(name, 0) > 0 and objective(random.Random(0), episode) is not None  # noqa: S311
        for name, objective in OBJECTIVES.items()
    )


def _ask(question: Question) -> Ask:
    return Ask((Message("user", question.text),), question.answer, question.value)


def _reply(
    rng: random.Random, turns: Sequence[Turn], role: Role | None = None
) -> tuple[Turn, Turn] | None:
    """Two neighbouring turns of one session, the second one of a role if that is given."""
    places = [
        (first, second)
        for first, second in pairwise(turns)
        if first.session == second.session
        and len(second.text.split()) > 3
        and role in (None, second.role)
    ]
    return rng.choice(places) if places else None


def _shorten(text: str) -> str:
    return " ".join(text.split()[:RECITED_WORDS])
