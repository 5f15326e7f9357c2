"""Words and phrasings of synthetic people: JSON pools, templates, and grammatical person.

A template is written once, in the first person, with slots for what changes when somebody
else says it (`{my} dog is called {v}`); see `voice`. All is a function of the `rng` passed in.
"""

import importlib
import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PHRASES = Path(__file__).parent / "phrases"

FIRST = dict(i="I", my="my", me="me", mine="mine", myself="myself", am="am", was="was")
SECOND = dict(i="you", my="your", me="you", mine="yours", myself="yourself", am="are", was="were")

NAME_LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "sv_SE", "en_IN")

_FORMS = ("say", "say_test", "chat", "chat_test", "ask", "ask_test", "pair", "pair_test")
_SLOT = re.compile(r"\{([a-z_]+)(\d?)(?:\.(\d))?(?::(\d+):(\d+))?\}")
_ARTICLE = re.compile(
    r"\b([Aa]) (?=[aeiouAEIOU])(?!(?:uni(?!m|n)|use|usu|eu|Eu|ukulele|one\b|once))"
)
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")
_IRREGULAR = {"wolf": "wolves", "snow leopard": "snow leopards", "bison": "bison", "moose": "moose"}


@dataclass(frozen=True)
class Kind:
    """One attribute kind with its phrasings; the `_test` ones are never seen in training.

    The first of `say` are the plainest: answers are made of them (`people.ANSWER_FORMS`).
    """

    name: str
    topic: str
    values: tuple[str, ...]
    say: tuple[str, ...]
    say_test: tuple[str, ...]
    chat: tuple[str, ...]
    chat_test: tuple[str, ...]
    ask: tuple[str, ...]
    ask_test: tuple[str, ...]
    pair: tuple[str, ...]
    pair_test: tuple[str, ...]
    changes: bool
    weight: float


@cache
def load_kinds() -> dict[str, Kind]:
    """Read all attribute kinds, one per member of a family such as `{x}_name`."""
    kinds = [kind for family in _read("attributes.json")["families"] for kind in _members(family)]
    return {kind.name: kind for kind in kinds}


@cache
def load_chatter() -> dict[str, Any]:
    """Read the frames, acknowledgements and filler exchanges."""
    return _read("chatter.json")


def fill(template: str, rng: random.Random, memo: dict[str, str] | None = None) -> str:
    """Replace every slot of pools, numbers and names by random words.

    With a `memo` the same slot gets the same words again (`{dish}` in question and reply), and a
    numbered one (`{dish2}`) gets others.
    """

    def replace(match: re.Match[str]) -> str:
        name, copy, field, low, high = match.groups()
        if low is not None:
            return _number(name, rng.randint(int(low), int(high)))
        key = name + copy
        if memo is None or key not in memo:
            words = _word(name, rng)
            if memo is None:
                return words
            while copy and words == memo.get(name):
                words = _word(name, rng)
            memo[key] = words
        return memo[key].split("|")[int(field)] if field else memo[key]

    return fix_articles(_SLOT.sub(replace, template))


def voice(template: str, *, first_person: bool, **slots: str) -> str:
    """Put a template into the first or second person and fill the given slots.

    `{my} dog` becomes "my dog" when its owner speaks (or asks about it) and "your dog" otherwise.
    """
    text = template
    for name, word in ((FIRST if first_person else SECOND) | slots).items():
        text = text.replace("{" + name + "}", word)
    return fix_articles(text)


def capitalise(text: str) -> str:
    """Begin every sentence with a capital letter."""
    return _SENTENCE_START.sub(lambda match: match.group().upper(), text)


def fix_articles(text: str) -> str:
    """Turn "a apple" into "an apple"."""
    return _ARTICLE.sub(r"\1n ", text)


def _members(family: dict[str, Any]) -> list[Kind]:
    kinds = []
    for x, spec in family["x"].items():
        topic, *values = spec.split("|")
        forms = {
            field: tuple(_put_x(text, x) for text in family.get(field, ())) for field in _FORMS
        }
        kinds.append(
            Kind(
                name=family["name"].replace("{x}", x.replace(" ", "_").replace("-", "_")).lower(),
                topic=topic,
                values=tuple(value.replace("{a}", "a") for value in values),
                changes=family.get("changes", False),
                weight=len(family["x"]) ** -0.5,
                **forms,
            )
        )
    return kinds


def _put_x(text: str, x: str) -> str:
    return text.replace("{x}", x).replace("{a}", "a")


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((PHRASES / name).read_text(encoding="utf-8"))
    return content


@cache
def _pool(name: str) -> tuple[str, ...]:
    attributes = _read_attributes()
    if name in attributes["composites"]:
        return tuple(attributes["composites"][name])
    if name in attributes["pools"]:
        return tuple(dict.fromkeys(attributes["pools"][name].split(", ")))
    chatter = load_chatter()["lists"]
    if name in chatter:
        return tuple(chatter[name])
    return _faker_pool(name)


@cache
def _read_attributes() -> dict[str, Any]:
    return _read("attributes.json")


def _faker_pool(name: str) -> tuple[str, ...]:
    if name == "job":
        jobs = importlib.import_module("faker.providers.job.en_US").Provider.jobs
        plain = [job for job in jobs if not re.search(r"[,(/]|programme|fast stream", job)]
        return tuple(dict.fromkeys(_lower_words(job) for job in plain))
    field = f"{name}_names" if name in ("first", "last") else f"first_names_{name}"
    names: dict[str, None] = {}
    for locale in NAME_LOCALES:
        provider = importlib.import_module(f"faker.providers.person.{locale}").Provider
        known = list(getattr(provider, field))
        names |= dict.fromkeys(word for word in known if re.fullmatch(r"[^\W\d_]{3,12}", word))
    return tuple(names)


def _lower_words(text: str) -> str:
    return " ".join(word if word[1:2].isupper() else word.lower() for word in text.split())


def _word(name: str, rng: random.Random) -> str:
    if name == "time":
        return f"{rng.randint(1, 12)}:{rng.randrange(0, 60, 5):02d} {rng.choice(('am', 'pm'))}"
    if name.endswith("_cap"):
        return " ".join(word[0].upper() + word[1:] for word in _word(name[:-4], rng).split())
    if name.endswith("_p"):
        return _plural(_word(name[:-2], rng))
    word = rng.choice(_pool(name))
    return fill(word, rng, {}) if "{" in word else word


def _plural(noun: str) -> str:
    return _IRREGULAR.get(noun) or noun + ("es" if noun.endswith(("s", "x", "fish")) else "s")


def _number(name: str, number: int) -> str:
    if name == "int":
        return str(number)
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
