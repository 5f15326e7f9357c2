import random
import re
from difflib import SequenceMatcher
from itertools import pairwise

import pytest

from memory_service.domain.turns import Role
from memory_service.errors import InvalidInput
from memory_service.training import people
from memory_service.training.people import (
    Episode,
    Question,
    Split,
    list_kinds,
    make_episode,
    split_of,
    twin,
)
from memory_service.training.phrasebook import capitalise, fill, fix_articles, load_kinds, voice

NEARLY = 0.85
"""Of a phrasing's words, in order: with a kind's own nouns in both, another word is less."""

SHAPES = [(1, 1, 0.0), (5, 1, 0.5), (12, 3, 1.0), (4, 6, 0.3), (0, 1, 0.5)]


def episodes(split: Split, count: int = 60) -> list[Episode]:
    rng = random.Random(f"{split}")
    return [
        make_episode(rng, split, facts=facts, sessions=sessions, chatter=chatter)
        for _ in range(count // len(SHAPES))
        for facts, sessions, chatter in SHAPES
    ]


def stated_by_owner(episode: Episode, question: Question) -> bool:
    return any(question.value in turn.text for turn in episode.turns if turn.role is question.about)


@pytest.mark.parametrize("split", Split)
def test_every_value_is_stated_by_its_owner_and_answered_exactly_once(split):
    for episode in episodes(split):
        for question in episode.questions:
            assert stated_by_owner(episode, question), (question, episode.turns)
            assert question.answer.count(question.value) == 1
            assert not re.search(rf"(?<!\w){re.escape(question.value)}(?!\w)", question.text)


@pytest.mark.parametrize("split", Split)
def test_turns_alternate_and_move_forward_in_time(split):
    for episode in episodes(split):
        assert episode.turns
        assert len({turn.id for turn in episode.turns}) == len(episode.turns)
        for before, after in pairwise(episode.turns):
            assert before.time < after.time
            if before.session == after.session:
                assert before.role is not after.role
            else:
                assert int(after.session[1:]) == int(before.session[1:]) + 1
                assert (before.role, after.role) == (Role.ASSISTANT, Role.USER)


def test_as_many_facts_and_sessions_and_questions_as_asked_for():
    episode = make_episode(random.Random(1), Split.TRAIN, facts=7, sessions=4, questions_per_fact=3)
    assert [session for session in dict.fromkeys(turn.session for turn in episode.turns)] == [
        "s1",
        "s2",
        "s3",
        "s4",
    ]
    assert len(episode.questions) == 21
    assert len({(question.kind, question.about) for question in episode.questions}) == 7
    assert len({question.value for question in episode.questions}) == 7


@pytest.mark.parametrize("split", Split)
def test_no_placeholder_is_left(split):
    for episode in episodes(split):
        texts = [turn.text for turn in episode.turns]
        texts += [
            text for question in episode.questions for text in (question.text, question.answer)
        ]
        for text in texts:
            assert not re.search(r"[{}|]|None|  ", text), text


def test_every_kind_speaks_in_both_splits_and_for_both_speakers():
    for number, kind in enumerate(list_kinds()):
        for split in Split:
            for role in Role:
                episode = make_episode(
                    random.Random(number),
                    split,
                    facts=0,
                    kinds=[(kind, role)],
                    questions_per_fact=9,
                )
                for question in episode.questions:
                    assert (question.kind, question.about) == (kind, role)
                    assert stated_by_owner(episode, question)
                    assert question.answer.count(question.value) == 1
                    assert not re.search(r"[{}|]", question.text + question.answer)


def test_kinds_are_many_and_have_enough_phrasings():
    kinds = load_kinds()
    assert len(kinds) >= 60
    for kind in kinds.values():
        assert len(kind.say + kind.chat) >= 6, kind.name
        assert len(kind.say_test) >= 2, kind.name
        assert len(kind.ask) + len(kind.pair) >= 5, kind.name
        assert len(kind.ask_test) >= 2, kind.name


def test_values_are_diverse_in_both_splits():
    rng = random.Random(3)
    for kind in load_kinds().values():
        values = {fill(rng.choice(kind.values), rng, {}) for _ in range(1500)}
        shares = [sum(split_of(value) is split for value in values) for split in Split]
        assert len(values) >= 40, (kind.name, len(values))
        assert min(shares) >= 7, (kind.name, shares)


def test_splits_share_neither_values_nor_phrasings():
    for kind in load_kinds().values():
        for field in ("say", "chat", "ask", "pair"):
            assert not set(getattr(kind, field)) & set(getattr(kind, f"{field}_test"))
    train, test = (episodes(split, 300) for split in Split)
    values = [
        {question.value for episode in part for question in episode.questions}
        for part in (train, test)
    ]
    assert not values[0] & values[1]
    asked = [
        {question.text for episode in part for question in episode.questions}
        for part in (train, test)
    ]
    assert not asked[0] & asked[1]


def test_no_training_phrasing_is_nearly_a_test_phrasing():
    for kind in load_kinds().values():
        for unseen in (*kind.say_test, *kind.chat_test, *kind.ask_test, *kind.pair_test):
            for form in (*kind.say, *kind.chat, *kind.ask, *kind.pair):
                alike = SequenceMatcher(None, form.lower().split(), unseen.lower().split())
                near = alike.quick_ratio() > NEARLY and alike.ratio() > NEARLY
                assert not near, (kind.name, form, unseen)


def test_answers_are_few_in_form():
    for episode in episodes(Split.TRAIN):
        for question in episode.questions:
            own = question.about is Role.USER
            forms = load_kinds()[question.kind].say[: people.ANSWER_FORMS]
            clauses = {voice(form, first_person=not own, v=question.value) for form in forms}
            answers = {question.value, *(f"{clause[0].upper()}{clause[1:]}." for clause in clauses)}
            answers |= {
                f"{who} told {whom} that {clause}."
                for who, whom in (("You", "me"), ("I", "you"))
                for clause in clauses
            }
            assert question.answer in answers | {f"{question.value}."}


def test_the_same_seed_makes_the_same_episode():
    make = [make_episode(random.Random(5), Split.TRAIN, facts=6, sessions=3) for _ in range(2)]
    assert make[0] == make[1]
    assert make[0] != make_episode(random.Random(6), Split.TRAIN, facts=6, sessions=3)


@pytest.mark.parametrize("split", Split)
def test_a_twin_has_the_same_kinds_and_no_shared_value(split):
    rng = random.Random(7)
    for episode in episodes(split):
        other = twin(rng, split, episode)
        kinds = [
            sorted({(question.kind, question.about) for question in one.questions})
            for one in (episode, other)
        ]
        assert kinds[0] == kinds[1]
        values = [
            {question.value.casefold() for question in one.questions} for one in (episode, other)
        ]
        assert not values[0] & values[1]
        assert len({turn.session for turn in other.turns}) == len(
            {turn.session for turn in episode.turns}
        )


def test_a_changed_fact_is_answered_with_the_later_value(monkeypatch):
    told = []
    state = people.state_fact

    def record(rng, fact, *, test):
        told.append(fact)
        return state(rng, fact, test=test)

    monkeypatch.setattr(people, "state_fact", record)
    monkeypatch.setattr(people, "RENEWED_SHARE", 1.0)
    rng = random.Random(8)
    changed = 0
    for _ in range(60):
        told.clear()
        episode = make_episode(rng, Split.TRAIN, facts=0, sessions=3, kinds=[("city", Role.USER)])
        (question,) = episode.questions
        facts = sorted(told, key=lambda fact: fact.renewed)
        sessions = [
            next(turn.session for turn in episode.turns if fact.value in turn.text)
            for fact in facts
        ]
        assert question.value == facts[-1].value
        if len(facts) == 2:
            changed += 1
            assert sessions[0] < sessions[1]
            assert facts[0].value not in question.text + question.answer
    assert changed >= 20


def test_about_one_in_twelve_long_conversations_changes_a_fact(monkeypatch):
    renewed = []
    renew = people._renew_one
    monkeypatch.setattr(people, "_renew_one", lambda *args: renewed.append(renew(*args)))
    rng = random.Random(9)
    for _ in range(300):
        make_episode(rng, Split.TRAIN, facts=3, sessions=2)
    assert 10 <= len(renewed) <= 45


def test_both_speakers_own_facts_and_the_user_more():
    owners = [
        question.about for episode in episodes(Split.TRAIN, 300) for question in episode.questions
    ]
    assert 0.5 < owners.count(Role.USER) / len(owners) < 0.7


def test_chatter_makes_it_longer():
    lengths = [
        sum(
            len(make_episode(random.Random(seed), Split.TRAIN, facts=6, chatter=chatter).turns)
            for seed in range(20)
        )
        for chatter in (0, 1, 3)
    ]
    assert lengths == sorted(lengths)
    assert lengths[1] >= lengths[0] + 20 * 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"facts": -1},
        {"facts": 10_000},
        {"facts": 1, "sessions": 0},
        {"facts": 1, "chatter": -0.1},
        {"facts": 1, "questions_per_fact": -1},
        {"facts": 0, "kinds": [("no such kind", Role.USER)]},
        {"facts": 0, "kinds": [("city", Role.USER)] * 2},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InvalidInput):
        make_episode(random.Random(0), Split.TRAIN, **wrong)


def test_person_articles_and_capitals():
    form = "{i} {am} {a} of {my} own, said {me}"
    assert voice(form, first_person=True, a="x") == "I am x of my own, said me"
    assert voice(form, first_person=False, a="x") == "you are x of your own, said you"
    assert fix_articles("a apple, a unicorn, a European, A old cat, a one-way") == (
        "an apple, a unicorn, a European, An old cat, a one-way"
    )
    assert capitalise("what is it? my dog. yes") == "What is it? My dog. Yes"
