import random
import re

import pytest

from memory_service.domain.turns import Role
from memory_service.training.dialogue_facts import (
    CLOZE,
    find_topic,
    questions_from_fact,
    shift_person,
)
from memory_service.training.fact_rules import RULES

FACTS = {
    "I own a yellow canoe.": "yellow canoe",
    "I work as a glass blower.": "glass blower",
    "I work at a print shop in Leeds.": "print shop",
    "I live in a lighthouse.": "lighthouse",
    "I live with my aunt Petra.": "aunt Petra",
    "I grew up in Tromso.": "Tromso",
    "I am from Uruguay.": "Uruguay",
    "I moved to Ghent.": "Ghent",
    "I used to work in the shipping trade.": "shipping trade",
    "I used to have an Opel.": "Opel",
    "I want to restore a windmill.": "restore a windmill",
    "I would like to see the fjords.": "see the fjords",
    "I am allergic to walnuts.": "walnuts",
    "I am a piano teacher.": "piano teacher",
    "I am 47 years old.": "47",
    "I am married to a sailor.": "married to a sailor",
    "I have two older sisters.": "two",
    "I have a ferret named Olaf.": "Olaf",
    "My cat's name is Dorothea.": "Dorothea",
    "My name is Ingrid.": "Ingrid",
    "My favorite color is teal.": "teal",
    "Nettle soup is my favorite dish.": "Nettle soup",
    "My brother owns a bakery.": "bakery",
    "My mother works in a museum.": "museum",
    "My grandmother is 91.": "91",
    "My uncle was a famous clown.": "famous clown",
    "I play the oboe with my cousin.": "oboe",
    "I like eating dumplings.": "dumplings",
    "I bought a loom.": "loom",
    "I don't like cilantro.": "cilantro",
    "I've never been on a ferry.": "been on a ferry",
    "I have been fencing for six years.": "six years",
    "I have been to Iceland.": "Iceland",
    "I think winter is cozy.": "cozy",
    "I went to the aquarium.": "aquarium",
    "I volunteer at a food bank.": "food bank",
    "I am learning Basque.": "Basque",
    "I know how to juggle.": "juggle",
}


def ask_often(fact, about, times=12):
    return [
        question
        for seed in range(times)
        for question in questions_from_fact(random.Random(seed), fact, about)
    ]


@pytest.mark.parametrize("about", Role)
@pytest.mark.parametrize("fact", FACTS)
def test_a_rule_asks_for_the_words_that_carry_the_fact(fact, about):
    by_rule = [question for question in ask_often(fact, about) if question.kind != CLOZE]
    assert by_rule
    expected = FACTS[fact].replace("my ", "your ") if about is Role.USER else FACTS[fact]
    assert {question.value.removeprefix("your ").removeprefix("my ") for question in by_rule} == {
        expected
    }
    assert len({question.text for question in by_rule}) >= 2


@pytest.mark.parametrize("about", Role)
@pytest.mark.parametrize("fact", [*FACTS, "Running marathons keeps me sane.", "I like gravel."])
def test_questions_are_sound(fact, about):
    for question in ask_often(fact, about):
        assert question.answer.count(question.value) == 1
        assert question.about is about
        assert not re.search(r"[{}|]|  ", question.text + question.answer)
        assert not re.search(rf"(?<!\w){re.escape(question.value)}(?!\w)", question.text)
        assert question.text[0].isupper()
        assert question.text[-1] in '?."'


def test_a_users_fact_is_asked_in_the_first_person_and_answered_in_the_second():
    texts = {question.text for question in ask_often("I own a loom.", Role.USER, 60)}
    assert any(re.search(r"\bI own\b|do I own\b", text) for text in texts)
    assert not any("you own" in text or "you said" in text for text in texts)
    assert {question.answer for question in ask_often("I own a loom.", Role.USER)} == {
        "You own a loom."
    }


def test_the_assistants_fact_is_asked_in_the_second_person_and_answered_in_the_first():
    questions = ask_often("I am looking after my dog Ole.", Role.ASSISTANT, 60)
    assert {question.answer for question in questions} == {"I am looking after my dog Ole."}
    assert not any(re.search(r"did I say|I said|my dog", question.text) for question in questions)


def test_some_questions_recall_the_talk_by_its_topic():
    texts = [question.text for question in ask_often("I bought a violin.", Role.USER, 40)]
    assert any("music" in text and ("remember" in text or "talk" in text) for text in texts)
    assert any("music" not in text for text in texts)


def test_what_no_rule_knows_is_a_cloze():
    (question,) = questions_from_fact(
        random.Random(1), "Running long distances keeps me sane in winter.", Role.USER
    )
    assert question.kind == CLOZE
    assert question.answer == "Running long distances keeps you sane in winter."
    assert question.answer.endswith(f"{question.value}.")
    assert '"Running long' in question.text


def test_every_sentence_gives_a_question_but_not_those_without_a_referent():
    fact = "I live in Ghent. She is kind. I like your hat. Ok. I drive a red tram."
    questions = questions_from_fact(random.Random(2), fact, Role.ASSISTANT)
    assert [question.answer for question in questions] == [
        "I live in Ghent.",
        "I drive a red tram.",
    ]
    assert questions_from_fact(random.Random(2), "", Role.USER) == []


def test_the_same_seed_gives_the_same_questions():
    fact = " ".join(FACTS)
    first, second = (questions_from_fact(random.Random(3), fact, Role.USER) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("I am with my dog", "you are with your dog"),
        ("I was there and I wasn't amused", "you were there and you weren't amused"),
        ("I'm sure we've met me and myself", "you're sure you've met you and yourself"),
        ("at 10 am I left the US", "at 10 am you left the US"),
        ("was I late", "were you late"),
    ],
)
def test_person_is_shifted(first, second):
    assert shift_person(first) == second


def test_topics_come_from_words():
    assert find_topic("I have two kittens") == "pets"
    assert find_topic("I repair violins") == "music"
    assert find_topic("I like gravel") is None


def test_rules_are_many_and_never_ask_in_the_second_person():
    assert len(RULES) >= 40
    for rule in RULES:
        assert rule.asks
        for text in (*rule.asks, *rule.pairs):
            assert not re.search(r"\byour?\b(?!})", text), text
        assert all(pair.count("|") == 1 for pair in rule.pairs)
