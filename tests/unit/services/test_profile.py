"""Profile on fakes: what is asked, what is told, and in which order."""

import math

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.profile import QUESTIONS
from memory_service.errors import NotFound
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.tasks.profile import KINDS, Profiled, profile_person, profile_report
from memory_service.services.ask import Reply
from memory_service.services.profile import Profile
from memory_service.services.why import Reasons, TurnWeight
from memory_service.training.people import list_kinds
from tests.helpers.fakes import FakeStore
from tests.helpers.histories import turn

ANN = MemoryId("ann")
TURNS = [turn(0, "My dog is Rex."), turn(2, "I live in Leeds."), turn(4, "We have a dog and Rex")]
ANSWERS = {
    "dog": ("Your dog is called Rex.", -0.1, -3.0),
    "home": ("You live in Leeds.", -0.2, -3.0),
    "cat": ("Your cat is called Rex.", -0.1, -3.0),  # no turn says so
    "job": ("You live in Leeds.", -2.0, -1.0),  # likelier without the memory
    "age": ("", None, None),
}


class FakeMemory:
    """Answers as above; the later a turn, the larger its share."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.claimed: list[str] = []

    async def append(self, memory_id, turns) -> None:
        assert turns == TURNS

    async def question(self, memory_id, text, *, most_new_tokens) -> Reply:
        if memory_id != ANN:
            raise NotFound("user", memory_id.user)
        self.asked.append(text)
        topic = next(one.topic for one in QUESTIONS if one.text == text)
        answer, own, alone = ANSWERS.get(topic, ("I do not know that.", -1.0, -1.0))
        return Reply(answer, 1, own, alone, 5, 5)

    async def claims(self, memory_id, claims, depth) -> list[Reasons]:
        self.claimed += [claim.answer for claim in claims]
        ranked = [TurnWeight(one, share=0.1 * number) for number, one in enumerate(TURNS)]
        return [Reasons(claim, 1, -0.1, -3.0, ranked) for claim in claims]


async def stored() -> FakeStore:
    store = FakeStore()
    async with store() as unit:
        await unit.memories.add_turns(ANN, TURNS)
        await unit.commit()
    return store


async def test_lines_are_what_a_turn_says_surest_first():
    memory, steps = FakeMemory(), []
    profile = Profile(await stored(), memory, memory)
    lines = await profile.of(ANN, report=lambda *step: steps.append(step))
    assert [(one.topic, one.answer) for one in lines] == [
        ("dog", "Your dog is called Rex."),
        ("home", "You live in Leeds."),
    ]
    assert lines[0].turn == TURNS[2]  # of two that name topic and value the one of larger share
    assert memory.claimed == ["Your dog is called Rex."]
    assert lines[0].confidence == pytest.approx(math.exp(-0.1))
    assert lines[0].gain == pytest.approx(2.9)
    assert sorted(memory.asked) == sorted(one.text for one in QUESTIONS)
    assert steps[-1] == (len(QUESTIONS), len(QUESTIONS))


async def test_who_is_not_there_is_told_as_such():
    with pytest.raises(NotFound, match="bob"):
        await Profile(await stored(), FakeMemory(), FakeMemory()).of(MemoryId("bob"))


async def test_precision_and_recall_are_of_what_the_person_told():
    asked = [
        Asked("?", "Rex", "Rex", groups={"type": "dog_name", "speaker": "user"}),
        Asked("?", "York", "York", groups={"type": "home_town", "speaker": "user"}),
        Asked("?", "Tom", "Tom", groups={"type": "cat_name", "speaker": "assistant"}),
        Asked("?", "size 9", "size 9", groups={"type": "shoe_size", "speaker": "user"}),
    ]
    memory = FakeMemory()
    found, _ = await profile_person(
        memory, Profile(await stored(), memory, memory), Sample("ann", TURNS, TURNS, asked)
    )
    assert found == Profiled("ann", lines=2, true=1, told=2, found=1)
    report = profile_report([found, Profiled("bob", 0, 0, 1, 0)], seed=0)
    assert (report.lines, report.told) == (2, 3)
    assert report.precision is not None
    assert report.recall is not None
    assert (report.precision.mean, report.recall.mean) == (0.5, pytest.approx(1 / 3))
    assert profile_report([Profiled("bob", 0, 0, 1, 0)], seed=0).precision is None


def test_every_topic_is_some_kind_of_fact():
    assert set(KINDS) == {one.topic for one in QUESTIONS}
    assert {kind for kinds in KINDS.values() for kind in kinds} <= set(list_kinds())
