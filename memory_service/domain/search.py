"""What a person searches their turns for: words, "phrases", and beginnings of words (`bisc*`)."""

import re
from dataclasses import dataclass

from memory_service.errors import InvalidInput

MAX_SEARCH_CHARS = 1_000

_PIECE = re.compile(r'"([^"]*)"?|([^\s"]+)')
_BREAK = re.compile(r"[\x00-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f\s]+")
"""Where words end, here as in both databases: at ASCII characters that are no letter or digit."""


@dataclass(frozen=True)
class Term:
    """Words that must stand in a turn one after the other; of the last one perhaps only the begin.

    Case does not matter. A word has no character at which a database breaks words, so it needs no
    escaping there.
    """

    words: tuple[str, ...]
    is_beginning: bool = False


def parse_search(text: str) -> tuple[Term, ...]:
    """The terms that a turn must hold, all of them and in any order.

    Raises:
        InvalidInput: there is no word in it, or it is too long or not valid Unicode.
    """
    if len(text) > MAX_SEARCH_CHARS:
        raise InvalidInput("words", text, f"must have at most {MAX_SEARCH_CHARS:,} characters")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise InvalidInput("words", text, "is not valid Unicode (a lone surrogate)")
    terms = []
    for phrase, plain in _PIECE.findall(text):
        words = tuple(
            word
            for word in _BREAK.split(phrase or plain)
            if any(character.isalnum() for character in word)
        )
        if words:
            terms.append(Term(words, is_beginning=plain.endswith("*")))
    if not terms:
        raise InvalidInput("words", text, "must hold a word: a letter or a digit")
    return tuple(terms)
