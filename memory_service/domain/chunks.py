"""Turns -> chunks: the arrow that decides what the base model reads together.

Chunks are a pure function of a session's kept turns: the same turns give the same chunks in any
order of arrival, so append, late turn, edit and forget are all "recompute the list and compare".
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
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

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
"""Not `strftime`'s, which depend on the process's locale."""

_TRIED_CHARS_PER_TOKEN = 8
"""A text longer than this many characters per token of room is tried by its beginning first."""


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
        turn_header = _header(turn)
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


def without_turn(chunk: Chunk, turn_id: str, turns: Mapping[str, Turn]) -> Chunk | None:
    """What is left of a chunk without one of its turns; None where nothing is.

    `turns` are the chunk's, by id: the date is that of the first one left.
    """
    lines = tuple(line for line in chunk.lines if line.turn_id != turn_id)
    if not lines:
        return None
    return Chunk(chunk.session, _header(turns[lines[0].turn_id]), lines)


def in_order_said(chunks: Iterable[Chunk], turns: Iterable[Turn]) -> list[Chunk]:
    """Chunks of several sessions by their first turns, which sequential encoding follows."""
    orders = {turn.id: turn.order for turn in turns}
    return sorted(chunks, key=lambda chunk: orders[chunk.turn_ids[0]])


def _header(turn: Turn) -> str:
    day = turn.time.astimezone(UTC)
    return f"Date: {day.day} {MONTHS[day.month - 1]} {day.year}\n"


def _lines_of(turn: Turn, room: int, count_tokens: CountTokens) -> Iterable[Line]:
    """Render a turn as one line, or as several where it is longer than a chunk."""
    prefix = f"{SPEAKERS[turn.role]}: "

    def render(text: str) -> str:
        return f"{prefix}{text.rstrip()}\n"

    rest = turn.text.strip()
    for part in count():
        cut = _longest_fit(rest, lambda text: count_tokens(render(text)) <= room, room)
        if cut == 0:
            raise InvalidInput("budget_tokens", room, "leaves no room for the words of a turn")
        yield Line(turn.id, part, render(rest[:cut]))
        rest = rest[cut:].lstrip()
        if not rest:
            return


def _longest_fit(text: str, fits: Callable[[str], bool], room: int) -> int:
    """Length of the longest prefix that fits, at a space where there is one.

    Doubles from the beginning before it bisects, so the cost depends on the prefix, not on the
    text: a turn of a megabyte is not tokenized whole for every part of it.
    """
    low, high = 0, min(len(text), max(1, room * _TRIED_CHARS_PER_TOKEN))
    while fits(text[:high]):
        if high == len(text):
            return high
        low, high = high, min(len(text), 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(text[:middle]):
            low = middle
        else:
            high = middle
    space = max(text.rfind(" ", 0, low), text.rfind("\n", 0, low))
    return space + 1 if space > 0 and fits(text[:space]) else low
