"""Tokens of one answer -> its text, piece by piece, up to a stop string."""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""How a character looks of which some tokens are still to come."""

ToText = Callable[[Sequence[int]], str]


class AnswerText:
    """Grows by tokens and gives text away as soon as it cannot change any more.

    Held back are a character that is not whole, a space before no word, and what may be the
    beginning of a stop string. The tokens before the last given ones are decoded only once.
    """

    def __init__(self, to_text: ToText, stop: Sequence[str]) -> None:
        self._to_text = to_text
        self._stop = stop
        self._tokens: list[int] = []
        self._decoded = 0  # tokens whose text is in `_text`
        self._context = 0  # tokens before those, decoded along because spaces depend on them
        self._text = ""
        self._given = 0
        self.is_stopped = False

    @property
    def text(self) -> str:
        """All of it so far that counts."""
        return self._text.rstrip()

    def add(self, token: int) -> str:
        """The text that is certain now; empty where nothing is."""
        self._tokens.append(token)
        before = self._to_text(self._tokens[self._context : self._decoded])
        after = self._to_text(self._tokens[self._context :])
        if after.endswith(UNFINISHED) or len(after) <= len(before):
            return ""
        self._grow(after[len(before) :])
        return self._give(self._certain())

    def finish(self) -> str:
        """The rest, when no token follows."""
        if not self.is_stopped:
            before = self._to_text(self._tokens[self._context : self._decoded])
            after = self._to_text(self._tokens[self._context :])
            self._grow(after[len(before) :])
        return self._give(len(self.text))

    def _grow(self, text: str) -> None:
        self._context, self._decoded = self._decoded, len(self._tokens)
        searched = max(0, len(self._text) - max(map(len, self._stop), default=0))
        self._text = (self._text + text).lstrip() if not self._text else self._text + text
        found = [
            (at + len(stop), at)
            for stop in self._stop
            if (at := self._text.find(stop, searched)) >= 0
        ]
        if found:  # the one that was complete first, wherever tokens begin and end
            self._text = self._text[: min(found)[1]]
            self.is_stopped = True

    def _certain(self) -> int:
        """How many characters can no longer become part of a stop string, or trailing space."""
        if self.is_stopped:
            return len(self.text)
        end = len(self._text)
        for stop in self._stop:
            longest = min(len(stop) - 1, len(self._text))
            held = (n for n in range(longest, 0, -1) if self._text.endswith(stop[:n]))
            end = min(end, len(self._text) - next(held, 0))
        return len(self._text[:end].rstrip())

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece
