"""Turns -> chunks: the arrow that decides what the base model reads together.

Chunks are a pure function of a session's kept turns: the same turns give the same chunks in any
order of arrival, so append, late turn, edit and forget are all "recompute the list and compare".
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from memory_service.domain.turns import Role, Turn
from memory_service.errors import InvalidInput

CountTokens = Callable[[str], int]
"""How many tokens the base model's tokenizer makes of one line."""

CHUNK_FORMAT = "date-speakers/1"
"""Name of the rendering below; part of the fingerprint, so changing it re-encodes memories."""

SPEAKERS = {Role.USER: "User", Role.ASSISTANT: "Assistant"}
"""How a chunk's text names who said a turn."""


@dataclass(frozen=True)
class Line:
    """One turn of a chunk, or one part of a turn too long for a chunk."""

    turn_id: str
    part: int
    text: str


@dataclass(frozen=True)
class Chunk:
    """Consecutive turns of one session that are encoded together.

    `header` carries the date, because a sum of updates is blind to order: for the later of two
    facts to win, time must be in the text.
    """

    session: str
    header: str
    lines: tuple[Line, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Header and lines; each is tokenized alone, so token counts add up exactly."""
        return (self.header, *(line.text for line in self.lines))

    @property
    def text(self) -> str:
        """What the base model reads."""
        return "".join(self.texts)

    @property
    def turn_ids(self) -> tuple[str, ...]:
        """The turns this chunk was made from, in order, each once."""
        return tuple(dict.fromkeys(line.turn_id for line in self.lines))

    @cached_property
    def digest(self) -> str:
        """Identity of the chunk: same session, turns and text, same digest."""
        content: list[str | int] = [self.session, self.header]
        content += [part for line in self.lines for part in (line.turn_id, line.part, line.text)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def chunk_session(
    turns: Iterable[Turn], budget_tokens: int, count_tokens: CountTokens
) -> list[Chunk]:
    """Cut the turns of one session into chunks of at most `budget_tokens` tokens.

    Greedy in (time, id) order: a chunk is closed by the turn that no longer fits. A turn longer
    than a chunk is split at word boundaries into parts, never cut.

    Raises:
        InvalidInput: the turns are of several sessions, or the budget has no room for words.
    """
    ordered = sorted(turns, key=lambda turn: turn.order)
    if len({turn.session for turn in ordered}) > 1:
        raise InvalidInput("turns", len(ordered), "must all be of one session")
    chunks: list[Chunk] = []
    lines: list[Line] = []
    header, used = "", 0
    for turn in ordered:
        turn_header = f"Date: {turn.time.day} {turn.time:%B} {turn.time.year}\n"
        room = budget_tokens - count_tokens(turn_header)
        for line in _lines_of(turn, room, count_tokens):
            cost = count_tokens(line.text)
            if lines and used + cost > budget_tokens:
                chunks.append(Chunk(turn.session, header, tuple(lines)))
                lines = []
            if not lines:
                header, used = turn_header, count_tokens(turn_header)
            lines.append(line)
            used += cost
    if lines:
        chunks.append(Chunk(ordered[0].session, header, tuple(lines)))
    return chunks


def _lines_of(turn: Turn, room: int, count_tokens: CountTokens) -> Iterable[Line]:
    """Render a turn as one line, or as several where it is longer than a chunk."""
    prefix = f"{SPEAKERS[turn.role]}: "
    rest = turn.text.strip()
    for part in count():
        line = f"{prefix}{rest}\n"
        if count_tokens(line) <= room:
            yield Line(turn.id, part, line)
            return
        cut = _longest_fit(rest, lambda text: count_tokens(f"{prefix}{text}\n") <= room)
        if cut == 0:
            raise InvalidInput("budget_tokens", room, "leaves no room for the words of a turn")
        yield Line(turn.id, part, f"{prefix}{rest[:cut].rstrip()}\n")
        rest = rest[cut:].lstrip()
        if not rest:
            return


def _longest_fit(text: str, fits: Callable[[str], bool]) -> int:
    """Length of the longest prefix that fits, at a space where there is one.

    Doubles from the start before it bisects, so the cost depends on the prefix, not on the text.
    """
    high = 1
    while high < len(text) and fits(text[:high]):
        high *= 2
    low, high = high // 2, min(high, len(text))
    while low < high:
        middle = (low + high + 1) // 2
        if fits(text[:middle]):
            low = middle
        else:
            high = middle - 1
    space = max(text.rfind(" ", 0, low), text.rfind("\n", 0, low))
    return space + 1 if space > 0 else low
