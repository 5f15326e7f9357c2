"""Turns from JSON lines, as they arrive; whatever is wrong is named with its line."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from memory_service.domain.turns import MAX_TURN_BYTES, Turn, turn_from_record
from memory_service.errors import InvalidInput

MAX_LINE_BYTES = 6 * MAX_TURN_BYTES + 10_000
"""Longest line: every byte of the longest turn written as an escape, and the other fields."""

READ_BYTES = 1 << 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """A turn and where it stood; `is_dated` where its time was given, not filled in."""

    number: int
    turn: Turn
    is_dated: bool


class Source(Protocol):
    """A binary stream that hands over what is there instead of waiting for more."""

    def read1(self, size: int, /) -> bytes:
        """At least one byte and at most `size`; none at the end."""
        ...


def read_turns(source: Source, defaults: Mapping[str, str]) -> Iterator[list[Line]]:
    """Yield turns batch by batch, until a line is wrong.

    A batch is what arrived together: a slow writer's turns are handed over one by one. The good
    lines before a wrong one are yielded first. `defaults` stand in for what a line does not say;
    turns without a time get the present one, each a little later than the one before.

    Raises:
        InvalidInput: names the line, the field and the value.
    """
    latest = datetime.min.replace(tzinfo=UTC)
    for lines in numbered_lines(source):
        batch: list[Line] = []
        for number, line in lines:
            if not line.strip():
                continue
            latest = max(datetime.now(UTC), latest + timedelta(microseconds=1))
            try:
                batch.append(_read(number, line, {**defaults, "time": latest.isoformat()}))
            except InvalidInput as error:
                if batch:
                    yield batch
                raise at_line(number, error) from None
        if batch:
            yield batch


def at_line(number: int, error: InvalidInput) -> InvalidInput:
    """The same error, naming the line."""
    named = InvalidInput(f"line {number}: {error.field}", "", error.problem)
    named.value = error.value
    named.args = (f"{named.field}: {error.problem} (got {error.value})",)
    return named


def numbered_lines(source: Source) -> Iterator[list[tuple[int, bytes]]]:
    """Lines with their numbers, as many together as arrived together.

    Raises:
        InvalidInput: a line is longer than any turn may be.
    """
    number, rest = 0, b""
    while data := source.read1(READ_BYTES):
        *whole, rest = (rest + data).split(b"\n")
        yield [(number + index, line) for index, line in enumerate(whole, start=1)]
        number += len(whole)
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidInput(
                f"line {number + 1}: turn",
                rest[:40],
                f"is longer than {MAX_LINE_BYTES:,} bytes; a turn's text has at most "
                f"{MAX_TURN_BYTES:,}",
            )
    if rest:
        yield [(number + 1, rest)]


def _read(number: int, line: bytes, defaults: Mapping[str, str]) -> Line:
    record = decoded(line)
    if not isinstance(record, Mapping):
        return Line(number, turn_from_record(record), is_dated=False)  # which refuses it
    return Line(number, turn_from_record({**defaults, **record}), is_dated="time" in record)


def decoded(line: bytes) -> object:
    """The JSON value of one line.

    Raises:
        InvalidInput: it is not UTF-8 or not JSON.
    """
    line = line.removeprefix(BYTE_ORDER_MARK)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        problem = f"is not valid UTF-8 at byte {error.start + 1}"
        raise InvalidInput("text", line[error.start : error.start + 8], problem) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"is not JSON ({error.msg} at column {error.colno})"
        raise InvalidInput("turn", text.strip(), problem) from None
    except (ValueError, RecursionError):
        raise InvalidInput("turn", text.strip(), "is not JSON that can be read") from None
