"""Counting where evidence turns stand, and tracing them with the real encoder."""

from dataclasses import replace

import pytest

from memory_service.domain.dialogues import dialogue_from_record
from memory_service.domain.turns import Role
from memory_service.errors import InvalidInput
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.tasks.provenance import Parts, Traced, found_turns, trace
from memory_service.services.ask import Reply
from memory_service.services.why import Claim, Reasons, TurnWeight
from tests.helpers.histories import turn

TURNS = [turn(number, f"{number} word") for number in range(6)]


class FakeService:
    """Remembers nothing; answers always the same, and ranks turns from the last to the first."""

    def __init__(self, answer: str) -> None:
        self.answer, self.explained = answer, 0

    async def append(self, memory_id, turns) -> None:
        assert list(turns) == TURNS

    async def question(self, memory_id, question) -> Reply:
        return Reply(self.answer, 1, -1.0, -2.0, 5, 5)

    async def claim(self, memory_id, question, answer) -> Reasons:
        self.explained += 1
        ranked = [TurnWeight(one, share=number) for number, one in enumerate(TURNS)]
        return Reasons(
            Claim(question, answer), 1, -1.0, -2.0, [ranked[2], *ranked[:2], *ranked[3:]]
        )


async def traced(answer: str, evidence: str | None) -> tuple[list[Traced], FakeService]:
    service = FakeService(answer)
    sample = Sample("p", TURNS, TURNS, [Asked("Which dog?", "a big dog", evidence=evidence)])
    return await trace(Parts(service, service, service), sample), service


async def test_the_place_of_the_evidence_by_both_rankings():
    (found,), _ = await traced("a big dog", TURNS[2].id)
    assert (found.f1, found.place, found.place_by_share, found.turns) == (1.0, 1, 4, 6)
    (found,), _ = await traced("dog", TURNS[1].id)
    assert (found.place, found.place_by_share) == (3, 5)


async def test_only_right_answers_with_evidence_are_accounted_for():
    (found,), service = await traced("no idea at all", TURNS[2].id)
    assert (found.place, service.explained) == (None, 0)
    assert (await traced("a big dog", None))[0] == []
    with pytest.raises(InvalidInput, match="t99"):
        await traced("a big dog", "t99")


def test_rates_are_of_those_answered_right():
    one = Traced("a", "q", "e", "x", 1.0, "t", turns=10, place=1, place_by_share=4)
    lines = [one, replace(one, sample="b", place=3), replace(one, sample="c", place=9)]
    lines += [replace(one, sample="d", place=None, place_by_share=None)]
    found = found_turns(lines, seed=0)
    assert (found.questions, found.traced) == (4, 3)
    assert found.first.mean == pytest.approx(1 / 3)
    assert found.top.mean == pytest.approx(2 / 3)
    assert (found.first_by_share.mean, found.top_by_share.mean) == (0, 0)
    assert (found.first_by_chance, found.top_by_chance) == pytest.approx((0.1, 0.3))
    with pytest.raises(InvalidInput, match="nothing to account for"):
        found_turns(lines[3:], seed=0)


def test_the_evidence_of_a_record_is_a_turn_of_it():
    record = {
        "id": "d",
        "sessions": [
            [{"speaker": "A", "text": "Hello."}],
            [{"speaker": "B", "text": "Hi."}, {"speaker": "A", "text": "My dog is Rex."}],
        ],
        "questions": [
            {"question": "?", "answer": "Rex", "evidence": {"session": 2, "turn": 1}},
            {"question": "?", "answer": "Rex", "evidence": {"session": 2}},
        ],
    }
    dialogue = dialogue_from_record(record)
    first, second = dialogue.questions
    (said,) = [one for one in dialogue.turns if one.id == first.evidence_turn]
    assert (said.text, said.role, second.evidence_turn) == ("My dog is Rex.", Role.ASSISTANT, None)
    record["questions"][0]["evidence"]["turn"] = "1"
    with pytest.raises(InvalidInput, match=r"evidence\.turn"):
        dialogue_from_record(record)
