"""Profile: how much of it is true of synthetic people, and how much of what they told is in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memory_service.domain.memory import MemoryId
from memory_service.evaluation.intervals import Interval, mean_over_people
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.scorers import value_recall
from memory_service.services.profile import Profile, ProfileLine
from memory_service.services.remember import Remember

KINDS: Mapping[str, Sequence[str]] = {
    "name": ["name", "nickname"],
    "age": ["age"],
    "birthday": ["birthday"],
    "home": ["home_town", "city", "street"],
    "origin": ["birth_country"],
    "job": ["job"],
    "employer": ["employer"],
    "studies": ["field_of_study"],
    "university": ["university"],
    "partner": ["partner_name"],
    "children": ["children"],
    "son": ["son_name"],
    "daughter": ["daughter_name"],
    "siblings": ["siblings"],
    "best friend": ["best_friend_name"],
    "dog": ["dog_name"],
    "cat": ["cat_name"],
    "hobby": ["hobby", "new_hobby"],
    "sport": ["sport"],
    "team": ["sports_team"],
    "instrument": ["instrument"],
    "food": ["favorite_food"],
    "drink": ["favorite_drink"],
    "diet": ["diet"],
    "allergy": ["allergy"],
    "book": ["favorite_book"],
    "movie": ["favorite_movie"],
    "music": ["favorite_band"],
    "color": ["favorite_color"],
    "language": ["learning_language"],
    "car": ["car"],
    "trip": ["next_trip"],
    "fear": ["fear"],
}
"""Kinds of facts that answer the question of a topic."""


@dataclass(frozen=True)
class Profiled:
    """A person's profile: lines, those that are true, told facts on its topics, those in it."""

    sample: str
    lines: int
    true: int
    told: int
    found: int


@dataclass(frozen=True)
class ProfileReport:
    """Precision over lines, recall over what was told; None where there is nothing to count."""

    people: int
    lines: int
    precision: Interval | None
    told: int
    recall: Interval | None


async def profile_person(
    remember: Remember, profile: Profile, sample: Sample
) -> tuple[Profiled, list[ProfileLine]]:
    """Remember a person's turns, and hold the profile against what they told of themselves."""
    memory_id = MemoryId(sample.id)
    await remember.append(memory_id, sample.turns)
    lines = await profile.of(memory_id)
    told = [one for one in sample.asked if one.groups["speaker"] == "user" and _topics(one)]
    found = [one for one in told if any(_tells(line, one) for line in lines)]
    true = [line for line in lines if any(_tells(line, one) for one in told)]
    return Profiled(sample.id, len(lines), len(true), len(told), len(found)), lines


def _topics(asked: Asked) -> list[str]:
    return [topic for topic, kinds in KINDS.items() if asked.groups["type"] in kinds]


def _tells(line: ProfileLine, asked: Asked) -> bool:
    value = asked.value or asked.answer
    return line.topic in _topics(asked) and value_recall(line.answer, value) == 1


def profile_report(people: Sequence[Profiled], seed: int) -> ProfileReport:
    """The rates over all people, resampled over them."""
    lines = [pair for one in people for pair in _scores(one.sample, one.true, one.lines)]
    told = [pair for one in people for pair in _scores(one.sample, one.found, one.told)]
    return ProfileReport(
        people=len(people),
        lines=len(lines),
        precision=mean_over_people(lines, seed) if lines else None,
        told=len(told),
        recall=mean_over_people(told, seed) if told else None,
    )


def _scores(sample: str, good: int, all_: int) -> list[tuple[str, float]]:
    return [(sample, 1.0)] * good + [(sample, 0.0)] * (all_ - good)
