"""Profile: what is asked of a memory to know a person, and when an answer counts as known."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memory_service.domain.turns import Role, Turn


@dataclass(frozen=True)
class ProfileQuestion:
    """One thing to know about a person; a turn that tells it names the topic by one of the cues.

    A cue is a word, or several in a row.
    """

    topic: str
    text: str
    cues: tuple[str, ...]


def _question(topic: str, text: str, cues: str) -> ProfileQuestion:
    return ProfileQuestion(topic, text, tuple(cue.replace("_", " ") for cue in cues.split()))


QUESTIONS = (
    _question("name", "What is my name?", "my_name call_me i_am_called i'm_called known_as"),
    _question("age", "How old am I?", "old age years turned"),
    _question("birthday", "When is my birthday?", "birthday born"),
    _question("home", "Where do I live?", "live living home moved house apartment"),
    _question("origin", "Which country was I born in?", "born grew raised country"),
    _question("job", "What do I do for a living?", "job work working living profession career"),
    _question("employer", "Who do I work for?", "work job employer company boss"),
    _question("studies", "What did I study?", "study studied studying degree major majored"),
    _question(
        "university", "Which university did I go to?", "university college school alma graduated"
    ),
    _question(
        "partner",
        "What is my partner's name?",
        "partner husband wife boyfriend girlfriend spouse fiance fiancee married",
    ),
    _question("children", "How many children do I have?", "children kids child kid sons daughters"),
    _question("son", "What is my son's name?", "son boy"),
    _question("daughter", "What is my daughter's name?", "daughter girl"),
    _question(
        "siblings", "What siblings do I have?", "sibling siblings brother brothers sister sisters"
    ),
    _question("best friend", "What is my best friend's name?", "friend buddy"),
    _question("dog", "What is my dog's name?", "dog dogs puppy"),
    _question("cat", "What is my cat's name?", "cat cats kitten"),
    _question("hobby", "What is my hobby?", "hobby hobbies spare free"),
    _question("sport", "Which sport do I play?", "sport sports play"),
    _question("team", "Which sports team do I support?", "team support fan root cheer"),
    _question("instrument", "Which instrument do I play?", "instrument play music"),
    _question("food", "What is my favorite food?", "food eat dish meal"),
    _question("drink", "What is my favorite drink?", "drink drinking"),
    _question("diet", "What is my diet?", "diet vegan vegetarian eat"),
    _question("allergy", "What am I allergic to?", "allergic allergy allergies"),
    _question("book", "What is my favorite book?", "book read reading novel"),
    _question("movie", "What is my favorite movie?", "movie movies film films"),
    _question("music", "What is my favorite band?", "band bands music"),
    _question("color", "What is my favorite color?", "color colors colour"),
    _question("language", "Which language am I learning?", "language learning teaching studying"),
    _question("car", "Which car do I drive?", "car drive"),
    _question(
        "trip", "Where is my next trip going?", "trip travel traveling going vacation holiday"
    ),
    _question("fear", "What am I afraid of?", "afraid fear scares scared frightens terrified"),
)

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_FUNCTION_WORDS = """
    a about am an and are as at be been by called did do does for from go going goes had has have he
    her hers him his how i i'm in is it its like liked me mentioned my name named of on or our
    said say she so some that the their them there they this to told too was we were what when where
    which who whose with you you're you've your yours
"""
_SAY_NOTHING = frozenset(_FUNCTION_WORDS.split())


def words_that_tell(answer: str, question: str) -> frozenset[str]:
    """The words of an answer that a question does not give away."""
    return frozenset(_words(answer)) - frozenset(_words(question)) - _SAY_NOTHING


def turns_that_say(answer: str, question: ProfileQuestion, turns: Iterable[Turn]) -> list[Turn]:
    """The person's own turns that name the topic and hold every word that tells.

    An answer is known only where such a turn can be shown: adapters seldom say that they do not
    know, and put what they remember under the wrong name.
    """
    wanted = words_that_tell(answer, question.text)
    if wanted <= frozenset(question.cues):  # "you do work"
        return []
    own = ((turn, _words(turn.text)) for turn in turns if turn.role is Role.USER)
    return [turn for turn, said in own if wanted <= frozenset(said) and _names(said, question.cues)]


def _names(said: Sequence[str], cues: Sequence[str]) -> bool:
    spaced = f" {' '.join(said)} "
    return any(f" {cue} " in spaced for cue in cues)


def _words(text: str) -> list[str]:
    """In lower case, without what makes them a possessive."""
    words = (word.lower().replace("’", "'") for word in _WORD.findall(text))
    return [word.removesuffix("'s") for word in words]
