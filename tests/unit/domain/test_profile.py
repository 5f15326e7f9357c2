"""An answer is known only where a turn of the person says it."""

from dataclasses import replace

import pytest

from memory_service.domain.profile import (
    QUESTIONS,
    ProfileQuestion,
    turns_that_say,
    words_that_tell,
)
from memory_service.domain.turns import Role, Turn
from tests.helpers.histories import turn

BY_TOPIC = {one.topic: one for one in QUESTIONS}
DOG, NAME = BY_TOPIC["dog"], BY_TOPIC["name"]


def said(*texts: str) -> list[Turn]:
    return [replace(turn(2 * number), text=text) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("Your dog is called Biscuit.", {"biscuit"}),
        ("You told me that your dog's name is Max Power.", {"max", "power"}),
        ("Your dog", set()),
        ("", set()),
    ],
)
def test_what_an_answer_adds_to_its_question(answer: str, told: set[str]):
    assert words_that_tell(answer, DOG.text) == told


@pytest.mark.parametrize(
    ("question", "answer", "text"),
    [
        (DOG, "Your dog is called Biscuit.", "I walked my dog, Biscuit's tired."),
        (NAME, "Your name is Ana.", "My name is Ana, by the way."),
        (NAME, "You are called Ana.", "I’m called Ana."),
    ],
)
def test_a_turns_that_say_so(question: ProfileQuestion, answer: str, text: str):
    turns = said("It rains.", text, text)
    assert turns_that_say(answer, question, turns) == turns[1:]


@pytest.mark.parametrize(
    ("question", "answer", "text"),
    [
        (DOG, "Your dog is called Biscuit.", "My cat is called Biscuit."),
        (DOG, "Your dog is called Biscuit.", "I have a dog."),
        (DOG, "Your dog is called Max Power.", "My dog is Max."),
        (NAME, "You are called Ana.", "My sister's name is Ana."),
        (DOG, "You have a dog.", "I have a dog."),
        (BY_TOPIC["job"], "You do work for a living.", "My job is work and makes a living."),
    ],
)
def test_what_no_turn_says_is_not_known(question: ProfileQuestion, answer: str, text: str):
    assert turns_that_say(answer, question, said(text)) == []


def test_what_the_assistant_said_is_not_about_the_person():
    (one,) = said("My dog is Biscuit.")
    assert turns_that_say("Biscuit", DOG, [replace(one, role=Role.ASSISTANT)]) == []


def test_topics_are_named_once():
    assert len(BY_TOPIC) == len(QUESTIONS)
    assert all(one.cues for one in QUESTIONS)
