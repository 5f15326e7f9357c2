"""Provenance: is the turn that tells a fact among those that `Why` says an answer rests on?"""

from collections.abc import Sequence
from dataclasses import dataclass

from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput
from memory_service.evaluation.intervals import Interval, mean_over_people
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.scorers import token_f1
from memory_service.services.ask import Ask
from memory_service.services.remember import Remember
from memory_service.services.why import Why

RIGHT_F1 = 0.5
"""Token F1 from which on an answer is right."""

TOP = 3


@dataclass(frozen=True)
class Parts:
    """What is needed of a service."""

    remember: Remember
    ask: Ask
    why: Why


@dataclass(frozen=True)
class Traced:
    """A question, and where its evidence turn stands among all turns, from 1.

    `place` is by what the answer loses without each turn, `place_by_share` by the cheap shares
    alone; None where the answer is not right, so that there is nothing to account for.
    """

    sample: str
    question: str
    expected: str
    answer: str
    f1: float
    evidence: str
    turns: int
    place: int | None = None
    place_by_share: int | None = None


@dataclass(frozen=True)
class FoundTurns:
    """How often the evidence turn of an answer that is right is first, and among the first three.

    By leaving turns out, by shares alone, and by chance.
    """

    questions: int
    traced: int
    first: Interval
    top: Interval
    first_by_share: Interval
    top_by_share: Interval
    first_by_chance: float
    top_by_chance: float


async def trace(parts: Parts, sample: Sample) -> list[Traced]:
    """Remember a person's turns, ask the questions that have evidence, and account for answers."""
    memory_id = MemoryId(sample.id)
    await parts.remember.append(memory_id, sample.turns)
    return [
        await _traced(parts, memory_id, sample, asked, asked.evidence)
        for asked in sample.asked
        if asked.evidence is not None
    ]


async def _traced(
    parts: Parts, memory_id: MemoryId, sample: Sample, asked: Asked, evidence: str
) -> Traced:
    reply = await parts.ask.question(memory_id, asked.question)
    f1 = token_f1(reply.answer, asked.answer)
    place = by_share = None
    if f1 >= RIGHT_F1:
        turns = (await parts.why.claim(memory_id, asked.question, reply.answer)).turns
        place = _place(evidence, [one.turn.id for one in turns])
        shared = sorted(turns, key=lambda one: -one.share)
        by_share = _place(evidence, [one.turn.id for one in shared])
    return Traced(
        sample=sample.id,
        question=asked.question,
        expected=asked.answer,
        answer=reply.answer,
        f1=f1,
        evidence=evidence,
        turns=len(sample.turns),
        place=place,
        place_by_share=by_share,
    )


def _place(evidence: str, ranked: Sequence[str]) -> int:
    if evidence not in ranked:
        raise InvalidInput("evidence", evidence, "is the id of no turn of the dialogue")
    return ranked.index(evidence) + 1


def found_turns(traced: Sequence[Traced], seed: int) -> FoundTurns:
    """The report of a run.

    Raises:
        InvalidInput: no question with evidence was answered right.
    """
    right = [one for one in traced if one.place is not None and one.place_by_share is not None]
    if not right:
        problem = "none of the questions with evidence was answered right: nothing to account for"
        raise InvalidInput("data", len(traced), problem)

    def share(places: Sequence[int | None], most: int) -> Interval:
        scores = [
            (one.sample, float(place is not None and place <= most))
            for one, place in zip(right, places, strict=True)
        ]
        return mean_over_people(scores, seed)

    places = [one.place for one in right]
    by_share = [one.place_by_share for one in right]
    return FoundTurns(
        questions=len(traced),
        traced=len(right),
        first=share(places, 1),
        top=share(places, TOP),
        first_by_share=share(by_share, 1),
        top_by_share=share(by_share, TOP),
        first_by_chance=_by_chance(right, 1),
        top_by_chance=_by_chance(right, TOP),
    )


def _by_chance(right: Sequence[Traced], most: int) -> float:
    return sum(min(1.0, most / one.turns) for one in right) / len(right)
