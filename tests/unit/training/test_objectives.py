import random
from dataclasses import replace

import pytest

from memory_service.domain.turns import Role
from memory_service.training.config import KNOWN_OBJECTIVES
from memory_service.training.objectives import (
    OBJECTIVES,
    UNRELATED,
    abstention,
    can_ask,
    chatter,
    choose,
    completion,
    locality,
    questions,
    recitation,
    reconstruction,
    update,
)
from memory_service.training.people import Episode, Split, make_episode
from tests.helpers.histories import turn

PEOPLE = [
    make_episode(random.Random(seed), Split.TRAIN, facts=6, sessions=3, chatter=0.5)
    for seed in range(20)
]
EMPTY = Episode((), ())


def test_config_knows_every_objective():
    assert set(KNOWN_OBJECTIVES) == {*OBJECTIVES, *UNRELATED}


@pytest.mark.parametrize("name", [*OBJECTIVES, "locality"])
def test_nothing_to_ask_of_an_empty_episode(name):
    assert {**OBJECTIVES, **UNRELATED}[name](random.Random(0), EMPTY) is None


def test_questions_are_the_episodes():
    for person in PEOPLE:
        asked = questions(random.Random(0), person)
        assert (asked.messages[0].content, asked.answer) in {
            (one.text, one.answer) for one in person.questions
        }


def test_recitation_goes_on_in_the_words_that_were_said():
    found = [recitation(random.Random(0), person) for person in PEOPLE]
    assert all(found)
    for person, asked in zip(PEOPLE, found, strict=True):
        start = asked.messages[0].content.partition('"')[2].rstrip('"')
        assert any(f"{start} {asked.answer}" in one.text for one in person.turns)
        assert asked.answer.startswith(asked.value)


def test_reconstruction_is_the_next_turn():
    person = PEOPLE[0]
    asked = reconstruction(random.Random(1), person)
    (place,) = [n for n, one in enumerate(person.turns) if one.text.startswith(asked.answer)]
    assert person.turns[place - 1].text.split()[0] in asked.messages[0].content


def test_completion_asks_only_what_came_afterwards():
    person = replace(
        PEOPLE[0], upcoming=(turn(0, "How is Rex?"), turn(1, "He is doing very well."))
    )
    asked = completion(random.Random(0), person)
    assert (asked.messages[0].content, asked.answer) == ("How is Rex?", "He is doing very well.")
    assert completion(random.Random(0), PEOPLE[0]) is None


def test_abstention_asks_what_was_never_told():
    for person in PEOPLE:
        told = {one.kind for one in person.questions}
        assert person.untold
        assert all(one.kind not in told for one in person.untold)
        asked = abstention(random.Random(0), person)
        assert "haven't told" in asked.answer
        assert asked.value is None


def test_updates_are_facts_that_changed():
    changed = [person for person in PEOPLE if any(one.renewed for one in person.questions)]
    assert changed
    for person in PEOPLE:
        asked = update(random.Random(0), person)
        assert (asked is not None) == (person in changed)
    for person in changed:
        asked = update(random.Random(0), person)
        last = [one for one in person.turns if asked.value in one.text][-1]
        assert last.session == max(
            (one.session for one in person.turns if asked.value in one.text),
            key=lambda name: int(name[1:]),
        )


def test_locality_is_another_persons_talk():
    asked = locality(random.Random(0), PEOPLE[0])
    texts = [one.text for one in PEOPLE[0].turns]
    assert asked.messages[0].content in texts
    assert asked.value is None
    assert asked.messages[0].role == Role.USER.value


def test_completion_is_always_the_assistants_reply():
    # From a turn of the assistant to one of the user: one reply is the assistant's.
    upcoming = tuple(turn(number, f"This is what {number} said.") for number in (1, 2, 3, 4))
    for seed in range(10):
        asked = completion(random.Random(seed), replace(EMPTY, upcoming=upcoming))
        assert asked.answer == "This is what 3 said."


def test_chatter_is_the_same_whoever_the_person_is():
    facts = {question.value for person in PEOPLE for question in person.questions}
    for seed in range(20):
        asked = [chatter(random.Random(seed), person) for person in (EMPTY, *PEOPLE[:3])]
        assert len(set(asked)) == 1
        assert asked[0].value is None
        assert asked[0].answer not in facts
        assert asked[0].messages[0].role == Role.USER.value
    assert len({chatter(random.Random(seed), EMPTY) for seed in range(20)}) > 10


def test_who_can_be_asked():
    silent = replace(PEOPLE[0], questions=(), untold=())
    assert can_ask({"questions": 1.0}, PEOPLE[0])
    assert not can_ask({"questions": 1.0, "update": 1.0, "completion": 1.0}, silent)
    assert not can_ask({"questions": 1.0, "reconstruction": 0.0}, silent)
    assert can_ask({"questions": 1.0, "reconstruction": 0.1}, silent)
    assert not can_ask({"chatter": 1.0}, PEOPLE[0])


def test_objectives_are_drawn_by_their_weights():
    rng = random.Random(0)
    weights = {"questions": 3.0, "update": 1.0, "recitation": 0.0}
    drawn = [choose(rng, weights, OBJECTIVES) for _ in range(400)]
    assert set(drawn) == {questions, update}
    assert 250 < drawn.count(questions) < 350
    assert choose(rng, {"questions": 1.0}, UNRELATED) is None
