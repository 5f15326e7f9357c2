"""Questions about real dialogues: rules that turn an annotated first-person fact into questions.

The answer is the fact itself in the right person ("I own a Jeep." -> "You own a Jeep."), so a rule
says only what is asked and which words of the fact carry it. Facts no rule knows become a cloze.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from memory_service.domain.turns import Role
from memory_service.training.fact_patterns import STATES, STOP_VALUES, Rule
from memory_service.training.fact_rules import RULES
from memory_service.training.people import Question
from memory_service.training.phrasebook import PHRASES, capitalise, fix_articles, voice

CLOZE = "cloze"
"""Kind of the questions that ask to complete a sentence; the other kinds name their rule."""

TOPIC_SHARE = 0.6
"""Share of questions with a known topic that begin by recalling that talk; vague ones always do."""

VAGUE = frozenset({"likes", "self", "will", "wish_to", "not", "not_am", "never", "does", "doing"})
"""Rules whose questions fit many facts ("What do I like?") unless a topic narrows them."""

OBJECTS = frozenset({"likes", "does", "did", "doing", "have_done", "kin_does", "been_doing"})
"""Rules that ask for the object of a verb: "in a team" is not what one plays."""

CLOZE_SHARE = 0.6
"""Share of vague facts that are asked as a cloze, whose beginning says which fact is meant."""

_PAIR_FORMS = (
    "Remind me {h} {i} said {t}.",
    "Do you remember {h} {i} said {t}?",
    "{h} did {i} say {t}?",
    "{h} did {i} tell {you} {t}?",
    "{h} was it {i} said {t}?",
    "Tell me again {h} {i} said {t}.",
)
_ASK_FORMS = ("{ask}", "{ask}", "{ask}", "Quick question: {ask}", "{ask} I can't recall.")
_OPENERS = (
    "Hey, remember that time we talked about {topic}?",
    "Hey, remember when we talked about {topic}?",
    "Hey, remember our chat about {topic}?",
    "Hi! We talked about {topic} a while ago.",
    "I was thinking about when we discussed {topic}.",
    "You know how we were talking about {topic} the other day?",
)
_TOPIC_PAIR_FORMS = ("{h} was it {i} said {t}?", "{h} did {i} say {t}?")
_CLOZE_FORMS = (
    'Complete what {i} told {you}: "{start}"',
    'Finish {my} sentence: "{start}"',
    'How did {my} sentence go on? "{start} ..."',
    'What comes next in what {i} said? "{start} ..."',
)

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Za-z])|\s*;\s*")
_UNUSABLE = re.compile(
    r"^(?:he|she|they|it|her|his|their|this|that|these|those|there|one)\b"
    r"|^(?:has|have|had|lives|likes|loves|enjoys|never|works|wants|owns|was|is|did|plays|am)\b"
    r"|\b(?:you|your|yours|speaker|user|other person|same)\b|[\[\]{}]",
    re.I,
)
_QUOTES = re.compile(r"[\"\u201c\u201d]|(?<!\w)'|'(?!\w)")
_PREPOSITION = re.compile(
    r"(?:in|on|over|more|out|up|than|to|with|at|for|from|by|of|about|off|around|as|like)\b", re.I
)
_TAIL = re.compile(r",| (?:but|because|so|since|although|though|and|which|who)\b")
_LEADING = re.compile(r"^(?:an?|the|some|any|that|being)\s+", re.I)
_ENDS_BADLY = re.compile(
    r"\b(?:a|an|the|to|of|and|or|my|your|with|very|so|not|is|are|in|at)$", re.I
)
_SHIFTS = (
    (r"\bI( (?:also|never|always|just|really|still|usually|often|only))? was\b", r"you\1 were"),
    (r"\bwas I\b", "were you"),
    (r"\bI wasn't\b", "you weren't"),
    (r"\b(?:I|[Ww]e)'m\b", "you're"),
    (r"\b(?:I|[Ww]e)'(ve|d|ll|re)\b", r"you'\1"),
    (r"(?<!\d)(?<!\d )\bam\b", "are"),
    (r"\b(?:I|[Ww]e|[Mm]e|[Uu]s)\b", "you"),
    (r"\b(?:[Mm]y|[Oo]ur)\b", "your"),
    (r"\b(?:mine|ours)\b", "yours"),
    (r"\bmyself\b", "yourself"),
    (r"\bourselves\b", "yourselves"),
)


@dataclass(frozen=True)
class _Asked:
    """A rule's reading of a fact: how it can be asked, and the words that answer it."""

    kind: str
    asks: tuple[str, ...]
    pairs: tuple[str, ...]
    value: str


def questions_from_fact(rng: random.Random, fact: str, about: Role) -> list[Question]:
    """Make one question per usable sentence of a fact like "I own a Jeep. I live in Ohio.".

    Sentences that speak of the other person, or say too little, give no question.
    """
    questions = []
    for sentence in _split_sentences(fact):
        question = _by_rule(rng, sentence, about) or _by_cloze(rng, sentence, about)
        if question is not None:
            questions.append(question)
    return questions


def shift_person(text: str) -> str:
    """Turn first-person text into second person: "I am with my dog" -> "you are with your dog"."""
    for pattern, replacement in _compiled_shifts():
        text = pattern.sub(replacement, text)
    return text


def find_topic(text: str) -> str | None:
    """Name what a fact is about ("pets"), from its words, or nothing."""
    words = set(re.findall(r"[a-z']+", text.lower()))
    words |= {word[:-1] for word in words if word.endswith("s")}
    found = [topic for topic, keys in _topic_keys().items() if words & keys]
    return found[0] if found else None


@cache
def _compiled_shifts() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in _SHIFTS)


@cache
def _read_topics() -> dict[str, dict[str, str]]:
    content: dict[str, dict[str, str]] = json.loads((PHRASES / "topics.json").read_text("utf-8"))
    return content


@cache
def _topic_keys() -> dict[str, frozenset[str]]:
    return {topic: frozenset(keys.split()) for topic, keys in _read_topics()["topics"].items()}


def _split_sentences(fact: str) -> Iterator[str]:
    for part in _SENTENCE.split(" ".join(fact.split())):
        text = re.sub(r"\bi\b(?!\.)", "I", _QUOTES.sub("", part).strip(" .!?,;"))
        if len(text.split()) >= 3 and not _UNUSABLE.search(text):
            yield text[0].upper() + text[1:]


def _by_rule(rng: random.Random, sentence: str, about: Role) -> Question | None:
    for rule in RULES:
        asked = _apply(rule, sentence)
        if asked is None:
            continue
        if _is_vague(asked, sentence) and rng.random() < CLOZE_SHARE:
            return None
        question = _word(rng, sentence, asked, about)
        if question is not None:
            return question
    return None


def _is_vague(asked: _Asked, sentence: str) -> bool:
    """Tell whether much else of what a person says would answer this question too."""
    return asked.kind in VAGUE and find_topic(sentence) is None


def _apply(rule: Rule, sentence: str) -> _Asked | None:
    match = rule.pattern.match(sentence)
    if match is None:
        return None
    groups = {name: words or "" for name, words in match.groupdict().items()}
    value = _LEADING.sub("", groups.pop("v").strip(" ,"))
    if value.lower() in STOP_VALUES or _ENDS_BADLY.search(value):
        return None
    if rule.name in OBJECTS and _PREPOSITION.match(value):
        return None
    rest = _TAIL.split(groups.pop("rest", "").strip(" ,"))[0].strip(" ,\"'")
    if not re.match(r"(?:with|on|at|in|for|every|when|after|before|during|near|from)\b", rest):
        rest = ""
    groups["verb"] = groups.get("verb", "").lower()
    aspect = _read_topics()["aspects"].get(find_topic(value) or "")
    asks = rule.asks
    if groups["verb"] in ("have", "own") and aspect not in ("animal", "vehicle"):
        aspect = None
    if rule.by_aspect and aspect and not rest and aspect not in sentence.lower():
        asks = tuple(ask.replace("What ", f"What {aspect} ", 1) for ask in asks)
    return _Asked(
        rule.name,
        tuple(_put(ask, groups, rest) for ask in asks),
        tuple(_put(pair, groups, rest) for pair in rule.pairs),
        value,
    )


def _put(template: str, groups: dict[str, str], rest: str) -> str:
    """Put the fact's own words, still in the first person, into a question."""
    for name, words in groups.items():
        if words.startswith(("My ", "Our ", "One ")):
            lower = words[0].lower() + words[1:]
        else:
            lower = STATES.get(words, words)
        template = template.replace("{" + name + "}", lower)
    if not rest:
        return template
    return f"{template[:-1]} {rest}?" if template.endswith("?") else f"{template} {rest}"


def _word(rng: random.Random, sentence: str, asked: _Asked, about: Role) -> Question | None:
    own = about is Role.USER
    answer = _answer(sentence, about)
    value = shift_person(asked.value) if own else asked.value
    text = _question_text(rng, sentence, asked, own=own)
    told = re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.I)
    if told or answer.count(value) != 1 or not value:
        return None
    return Question(text, answer, value, asked.kind, about)


def _question_text(rng: random.Random, sentence: str, asked: _Asked, *, own: bool) -> str:
    """Join opener, frame and the fact's own words; only those are shifted to the second person."""
    topic = find_topic(sentence)
    recall = topic is not None and (asked.kind in VAGUE or rng.random() < TOPIC_SHARE)
    if not asked.pairs or rng.random() < 0.4:
        ask = rng.choice(asked.asks)
        ask = ask if own else shift_person(ask)
        text = ask if recall else rng.choice(_ASK_FORMS).replace("{ask}", ask)
    else:
        pair = rng.choice(asked.pairs)
        head, tail = (pair if own else shift_person(pair)).split("|")
        form = rng.choice(_TOPIC_PAIR_FORMS if recall else _PAIR_FORMS)
        text = form.replace("{h}", head).replace("{t}", tail)
    if recall and topic is not None:
        text = f"{rng.choice(_OPENERS).replace('{topic}', topic)} {text}"
    text = voice(text, first_person=own, you="you" if own else "me")
    return capitalise(fix_articles(text))


def _by_cloze(rng: random.Random, sentence: str, about: Role) -> Question | None:
    own = about is Role.USER
    answer = _answer(sentence, about)
    words = sentence.split()
    cuts = list(range(max(2, len(words) // 2), len(words)))
    rng.shuffle(cuts)
    for cut in cuts:
        rest = " ".join(words[cut:])
        value = shift_person(rest) if own else rest
        if not _says_something(rest) or answer.count(value) != 1:
            continue
        start = " ".join(words[:cut])
        form = voice(rng.choice(_CLOZE_FORMS), first_person=own, you="you" if own else "me")
        return Question(capitalise(form).replace("{start}", start), answer, value, CLOZE, about)
    return None


def _says_something(words: str) -> bool:
    """Tell whether words hold at least one that carries content."""
    found = re.findall(r"[\w']+", words.lower())
    return any(word not in STOP_VALUES and (len(word) > 3 or word.isdigit()) for word in found)


def _answer(sentence: str, about: Role) -> str:
    text = shift_person(sentence) if about is Role.USER else sentence
    return f"{text[0].upper()}{text[1:]}."
