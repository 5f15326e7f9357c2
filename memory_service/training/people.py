"""Synthetic people: conversations that state facts, and questions whose answers only they hold.

The training data of the generator. Values are many and mostly arbitrary, so that guessing does not
pay and copying from the adapter does; `twin` makes the swap control (same kinds, other values).
"""

import random
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from memory_service.domain.turns import Role, Turn
from memory_service.errors import InvalidInput
from memory_service.training.conversation import (
    Exchange,
    Fact,
    make_filler,
    state_fact,
    weave,
)
from memory_service.training.phrasebook import Kind, capitalise, fill, load_kinds, voice

USER_SHARE = 0.6
"""Share of facts that are the user's own; the others are the assistant's."""

SAME_KIND_SHARE = 0.12
"""Share of facts of a kind that the other speaker has too: the memory must keep them apart."""

RENEWED_SHARE = 0.08
"""Share of episodes of several sessions in which a later turn changes a fact of the user."""

UNTOLD = 2
"""Questions about an episode that it does not answer."""

SHORT_SHARE = 0.12
"""Share of questions that ask for the bare value."""

TOLD_SHARE = 0.12
"""Share of full answers that say who told it."""

TEST_ONE_IN = 5
"""One value in so many belongs to the test split, chosen by a checksum of its text."""

ANSWER_FORMS = 4
"""So many of a kind's phrasings, the plainest, are also answers: what is told in many ways is
answered in few, or the wording of an answer could not be learnt."""

_PAIR_FORMS = (
    "Remind me {h} {t}.",
    "Remind me {h} {i} said {t}.",
    "Do you remember {h} {t}?",
    "Can you tell me {h} {t}?",
    "Tell me again {h} {t}.",
    "{h} did {i} say {t}?",
    "{h} did {i} tell {you} {t}?",
    "I forgot {h} {t}. Do you know?",
    "Hey, remember that time we talked about {topic}? {h} was it {i} said {t}?",
    "Hey, remember when we were talking about {topic}? {h} did {i} say {t}?",
    "It has slipped my mind {h} {t}. Help me out?",
    "I'd like to hear from {you} {h} {t}.",
    "Do you happen to know {h} {t}?",
    "Let's see whether you know {h} {t}.",
    "I'm trying to think {h} {t}. What was it?",
    "On the subject of {topic}, do you still know {h} {t}?",
    "Somebody asked me {h} {t}. What should I say?",
    "I wonder {h} {t}.",
    "Earlier I mentioned {h} {t}. What was that again?",
    "About {topic}: please tell me {h} {t}.",
)
_ASK_FORMS = (
    "{ask}",
    "{ask}",
    "{ask}",
    "Quick question: {ask}",
    "{ask} I can't recall.",
    "Hey, remember that time we talked about {topic}? {ask}",
    "We talked about {topic} a while ago. {ask}",
    "I was thinking about our chat about {topic}. {ask}",
    "Speaking of {topic}, {asks}",
    "Back to {topic} for a moment. {ask}",
    "One thing about {topic}: {asks}",
    "Yesterday I was going on about {topic}. {ask}",
    "A friend and I got onto {topic}. {ask}",
    "Here is a little quiz for you. {ask}",
    "I want to see how good your memory is. {ask}",
    "Sorry, I have to ask again: {asks}",
    "Before we go on, {asks}",
    "{ask} Think back.",
)
_SHORT_FORMS = (
    "In a few words, {asks}",
    "{ask} Just the answer, please.",
    "Short answer: {asks}",
    "Briefly, {asks}",
    "{ask} Keep it brief.",
    "{ask} Reply in as few words as you can.",
    "{ask} I want the fact itself and nothing around it.",
    "Please be terse: {asks}",
    "{ask} Leave out everything else.",
    "No small talk, please: {asks}",
    "{ask} Don't write it out, the bare answer will do.",
    "As a keyword: {asks}",
    "{ask} Say it and stop.",
    "Without any explanation, {asks}",
)
_WORD_FORMS = ("In one word, {asks}", "{ask} One word is enough.", *_SHORT_FORMS)

_PAIR_FORMS_TEST = (
    "Could you refresh my memory on {h} {t}?",
    "Any idea {h} {t}?",
    "In a previous chat {topic} came up. Could you repeat {h} {t}?",
)
_ASK_FORMS_TEST = ("{ask}", "Let me test you. {ask}", "The other day {topic} came up. {ask}")
_SHORT_FORMS_TEST = ("Without a full sentence, {asks}", "{ask} Only name it, no sentence.")

_UNTOLD_FORMS = {
    Role.USER: ("You haven't told me that.", "I don't know, you haven't told me."),
    Role.ASSISTANT: ("I haven't told you that.", "I haven't told you about that."),
}
_NOW_FORMS = ("{question}", "As things stand now: {question}", "{question} I mean now.")


class Split(StrEnum):
    """Training and test people share neither values nor phrasings."""

    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True)
class Question:
    """What the user asks later; `answer` holds `value` verbatim exactly once.

    `renewed` marks a fact that a later turn changed: the answer is the newer value.
    """

    text: str
    answer: str
    value: str
    kind: str
    about: Role
    renewed: bool = False


@dataclass(frozen=True)
class Episode:
    """A conversation over one or more sessions, and the questions it answers.

    `untold` are questions that it does not answer, `upcoming` what was said afterwards.
    """

    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    untold: tuple[Question, ...] = ()
    upcoming: tuple[Turn, ...] = ()


def list_kinds() -> tuple[str, ...]:
    """Name all attribute kinds."""
    return tuple(load_kinds())


def split_of(value: str) -> Split:
    """Tell which split a value belongs to: a function of its text alone, in any case."""
    mark = zlib.crc32(value.casefold().encode()) % TEST_ONE_IN
    return Split.TEST if mark == 0 else Split.TRAIN


def make_episode(
    rng: random.Random,
    split: Split,
    *,
    facts: int,
    sessions: int = 1,
    chatter: float = 0.5,
    kinds: Sequence[tuple[str, Role]] | None = None,
    questions_per_fact: int = 1,
) -> Episode:
    """Make one conversation of a user and an assistant, both human-like, with questions.

    Args:
        rng: the only source of randomness.
        split: which values and phrasings to use.
        facts: how many facts are stated; ignored where `kinds` is given.
        sessions: how many sittings they are spread over.
        chatter: filler exchanges (two turns each) per fact, on average.
        kinds: attribute kind and owner of every fact, to make people who can be compared.
        questions_per_fact: how many differently worded questions each fact gets.

    Raises:
        InvalidInput: a count is out of range, or a kind is unknown.
    """
    chosen = _choose_kinds(rng, facts) if kinds is None else _find_kinds(kinds)
    people = _give_values(rng, split, chosen, taken=frozenset(), text="")
    return _make(rng, split, people, _Shape(sessions, chatter, questions_per_fact))


def twin(
    rng: random.Random,
    split: Split,
    episode: Episode,
    *,
    chatter: float = 0.5,
    questions_per_fact: int = 1,
) -> Episode:
    """Make another conversation about the same kinds of facts, all with other values.

    Raises:
        InvalidInput: a count is out of range.
    """
    asked = dict.fromkeys((question.kind, question.about) for question in episode.questions)
    taken = frozenset(question.value.casefold() for question in episode.questions)
    text = "\n".join(turn.text for turn in episode.turns).casefold()
    people = _give_values(rng, split, _find_kinds(list(asked)), taken=taken, text=text)
    sessions = len({turn.session for turn in episode.turns})
    return _make(rng, split, people, _Shape(sessions, chatter, questions_per_fact))


@dataclass(frozen=True)
class _Shape:
    sessions: int
    chatter: float
    questions_per_fact: int

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise InvalidInput("sessions", self.sessions, "must be at least 1")
        if self.chatter < 0:
            raise InvalidInput("chatter", self.chatter, "must not be negative")
        if self.questions_per_fact < 0:
            raise InvalidInput(
                "questions_per_fact", self.questions_per_fact, "must not be negative"
            )


def _choose_kinds(rng: random.Random, facts: int) -> list[tuple[Kind, Role]]:
    kinds = load_kinds()
    if not 0 <= facts <= len(kinds):
        raise InvalidInput("facts", facts, f"must be between 0 and {len(kinds)}")
    weights = [kind.weight for kind in kinds.values()]
    chosen: dict[tuple[str, Role], None] = {}
    while len(chosen) < facts:
        if chosen and rng.random() < SAME_KIND_SHARE:
            name, owner = rng.choice(list(chosen))
            owner = Role.ASSISTANT if owner is Role.USER else Role.USER
        else:
            name = rng.choices(list(kinds), weights)[0]
            owner = Role.USER if rng.random() < USER_SHARE else Role.ASSISTANT
        chosen[name, owner] = None
    return _find_kinds(list(chosen))


def _find_kinds(names: Sequence[tuple[str, Role]]) -> list[tuple[Kind, Role]]:
    kinds = load_kinds()
    for name, _ in names:
        if name not in kinds:
            raise InvalidInput("kinds", name, "is no attribute kind; see list_kinds()")
    if len(set(names)) < len(names):
        raise InvalidInput("kinds", names, "must not repeat a kind of the same owner")
    return [(kinds[name], owner) for name, owner in names]


def _give_values(
    rng: random.Random,
    split: Split,
    chosen: Sequence[tuple[Kind, Role]],
    *,
    taken: Collection[str],
    text: str,
) -> list[Fact]:
    used = set(taken)
    facts = []
    for kind, owner in chosen:
        value = _draw_value(rng, split, kind, used, text)
        used.add(value.casefold())
        facts.append(Fact(kind, owner, value))
    return facts


def _draw_value(
    rng: random.Random, split: Split, kind: Kind, used: Collection[str], text: str
) -> str:
    """Draw a value of the split that is not used; at first also none that `text` mentions."""
    for attempt in range(3000):
        value = fill(rng.choice(kind.values), rng, {})
        key = value.casefold()
        if split_of(value) is not split or key in used:
            continue
        if attempt < 100 and text and key in text:
            continue
        return value
    raise InvalidInput("kinds", kind.name, f"has no unused value left in split {split}")


def _make(rng: random.Random, split: Split, facts: Sequence[Fact], shape: _Shape) -> Episode:
    test = split is Split.TEST
    sessions: list[list[Exchange]] = [[] for _ in range(shape.sessions)]
    homes = [rng.randrange(shape.sessions) for _ in facts]
    now = list(facts)
    late: tuple[int, Exchange] | None = None
    if shape.sessions > 1 and rng.random() < RENEWED_SHARE:
        late = _renew_one(rng, split, now, homes, shape.sessions)
    for fact, home in zip(facts, homes, strict=True):
        sessions[home].append(state_fact(rng, fact, test=test))
    if late is not None:
        sessions[late[0]].append(late[1])
    for exchanges in sessions:
        wanted = sum(_round(rng, shape.chatter) for _ in exchanges) or (not exchanges)
        exchanges += [make_filler(rng) for _ in range(wanted)]
        rng.shuffle(exchanges)
    turns = weave(rng, sessions)
    questions = [
        _ask(rng, fact, test=test, renewed=fact.renewed)
        for fact in rng.sample(now, len(now))
        for _ in range(shape.questions_per_fact)
    ]
    return Episode(turns, tuple(questions), untold=tuple(_untold(rng, facts, test=test)))


def _untold(rng: random.Random, facts: Sequence[Fact], *, test: bool) -> Iterator[Question]:
    """Questions about kinds of facts that nobody stated."""
    told = {fact.kind.name for fact in facts}
    free = [kind for kind in load_kinds().values() if kind.name not in told]
    for kind in rng.sample(free, min(UNTOLD, len(free))):
        owner = rng.choice((Role.USER, Role.ASSISTANT))
        text = _question_text(rng, Fact(kind, owner, "what"), test=test, short=False)
        answer = rng.choice(_UNTOLD_FORMS[owner])
        yield Question(text, answer, "haven't told", kind.name, owner)


def _renew_one(
    rng: random.Random, split: Split, now: list[Fact], homes: Sequence[int], sessions: int
) -> tuple[int, Exchange] | None:
    """Give a fact of the user a new value in a later session; `now` gets the new one."""
    able = [
        index
        for index, fact in enumerate(now)
        if fact.owner is Role.USER and fact.kind.changes and homes[index] < sessions - 1
    ]
    if not able:
        return None
    index = rng.choice(able)
    old = now[index]
    used = {fact.value.casefold() for fact in now}
    value = _draw_value(rng, split, old.kind, used, old.value.casefold())
    now[index] = Fact(old.kind, old.owner, value, renewed=True)
    home = rng.randrange(homes[index] + 1, sessions)
    return home, state_fact(rng, now[index], test=split is Split.TEST)


def _round(rng: random.Random, number: float) -> int:
    whole = int(number)
    return whole + (rng.random() < number - whole)


def _ask(rng: random.Random, fact: Fact, *, test: bool, renewed: bool) -> Question:
    short = rng.random() < SHORT_SHARE
    text = _question_text(rng, fact, test=test, short=short)
    if renewed:
        text = rng.choice(_NOW_FORMS).replace("{question}", text)
    answer = fact.value if short else _answer_text(rng, fact)
    return Question(text, answer, fact.value, fact.kind.name, fact.owner, renewed)


def _question_text(rng: random.Random, fact: Fact, *, test: bool, short: bool) -> str:
    own = fact.owner is Role.USER
    kind = fact.kind
    ask = voice(rng.choice(kind.ask_test if test else kind.ask), first_person=own)
    asks = ask[0].lower() + ask[1:]
    head, tail = rng.choice(kind.pair_test if test else kind.pair).split("|")
    forms: tuple[str, ...]
    if short:
        word = " " not in fact.value
        forms = _SHORT_FORMS_TEST if test else _WORD_FORMS if word else _SHORT_FORMS
    elif rng.random() < 0.5:
        forms = _ASK_FORMS_TEST if test else _ASK_FORMS
    else:
        forms = _PAIR_FORMS_TEST if test else _PAIR_FORMS
    form = rng.choice(forms).replace("{h}", head).replace("{t}", tail).replace("{ask}", ask)
    form = form.replace("{asks}", asks).replace("{topic}", kind.topic)
    return capitalise(voice(form, first_person=own, you="you" if own else "me"))


def _answer_text(rng: random.Random, fact: Fact) -> str:
    """Answer in a full sentence, in the person of who owns the fact."""
    own = fact.owner is Role.USER
    forms = [*fact.kind.say[:2], *fact.kind.say[:ANSWER_FORMS]]
    rng.shuffle(forms)
    for form in forms:
        clause = voice(form, first_person=not own, v=fact.value)
        if clause.count(fact.value) != 1:
            continue
        answer = clause[0].upper() + clause[1:] + "."
        if rng.random() < TOLD_SHARE:
            told = f"{'You told me' if own else 'I told you'} that {clause}."
            answer = told if told.count(fact.value) == 1 else answer
        return answer
    return f"{fact.value}."
