"""Turns from JSON lines: batches as they arrive, and errors that name the line."""

import io
import json
from collections.abc import Iterable
from datetime import timedelta

import pytest

from memory_cli.jsonl import MAX_LINE_BYTES, Line, read_turns
from memory_service.domain.turns import Role
from memory_service.errors import InvalidInput

DEFAULTS = {"role": "user", "session": "default"}


class Pieces:
    """A stream that hands over one prepared piece a time, like a slow pipe."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def read1(self, _: int, /) -> bytes:
        return next(self._pieces, b"")


def read(data: bytes, defaults: dict[str, str] = DEFAULTS) -> list[Line]:
    return [line for batch in read_turns(io.BytesIO(data), defaults) for line in batch]


def read_until_error(data: bytes) -> tuple[list[str], InvalidInput]:
    texts: list[str] = []
    with pytest.raises(InvalidInput) as caught:
        for batch in read_turns(io.BytesIO(data), DEFAULTS):
            texts += [line.turn.text for line in batch]
    return texts, caught.value


def test_all_fields_are_read_and_blank_lines_skipped() -> None:
    record = {
        "role": "assistant",
        "text": "Hello\nÅse 👋",
        "session": "s1",
        "time": "2026-03-01T18:30:00Z",
        "id": "t1",
    }
    data = b"\n" + json.dumps(record).encode() + b"\r\n\n" + b'{"text": "again"}'
    first, second = read(data)
    turn, other = first.turn, second.turn
    assert (first.number, second.number) == (2, 4)
    assert (first.is_dated, second.is_dated) == (True, False)
    assert (turn.role, turn.text, turn.session, turn.id) == (
        Role.ASSISTANT,
        "Hello\nÅse 👋",
        "s1",
        "t1",
    )
    assert turn.time.isoformat() == "2026-03-01T18:30:00+00:00"
    assert (other.role, other.session) == (Role.USER, "default")


def test_defaults_stand_in_only_for_what_is_missing() -> None:
    data = b'{"text": "a"}\n{"text": "b", "role": "user", "session": "x"}'
    turns = [line.turn for line in read(data, {"role": "assistant", "session": "s9"})]
    assert [(turn.role.value, turn.session) for turn in turns] == [
        ("assistant", "s9"),
        ("user", "x"),
    ]


def test_turns_without_a_time_keep_the_order_of_their_lines() -> None:
    turns = [line.turn for line in read(b'{"text": "same moment"}\n' * 500)]
    times = [turn.time for turn in turns]
    assert times == sorted(set(times))
    assert times[-1] - times[0] < timedelta(seconds=60)


def test_a_byte_order_mark_is_ignored() -> None:
    assert read(b'\xef\xbb\xbf{"text": "hi"}')[0].turn.text == "hi"


def test_a_batch_is_what_arrived_together() -> None:
    pieces = Pieces([b'{"text": "a"}\n{"te', b'xt": "b"}\n', b'{"text": "c"}'])
    batches = [[line.turn.text for line in batch] for batch in read_turns(pieces, DEFAULTS)]
    assert batches == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("line", "field", "problem"),
    [
        (b'{"text": "x"', "turn", "is not JSON (Expecting ',' delimiter at column 13)"),
        (b"[1, 2]", "turn", "must be a JSON object"),
        (b'"only a string"', "turn", "must be a JSON object"),
        (b"[" * 200_000, "turn", "is not JSON that can be read"),
        (b"1" * 5000, "turn", "is not JSON that can be read"),
        (b"{}", "text", "is missing"),
        (b'{"text": ""}', "text", "must not be empty"),
        (b'{"text": " \\t "}', "text", "must not be empty"),
        (b'{"text": 5}', "text", "must be a string"),
        (b'{"text": "x", "role": "robot"}', "role", "must be one of: user, assistant"),
        (b'{"text": "x", "rule": "user"}', "rule", "is not a field"),
        (b'{"text": "x", "time": "yesterday"}', "time", "must be ISO 8601"),
        (b'{"text": "x", "id": ""}', "id", "must not be empty"),
        (b'{"text": "x", "session": "a\\nb"}', "session", "control characters"),
        (b'{"text": "a\\u0000b"}', "text", "NUL"),
        (b'{"text": "a\\ud800b"}', "text", "lone surrogate"),
        (b'{"text": "\xff\xfe"}', "text", "is not valid UTF-8 at byte 11"),
    ],
)
def test_a_wrong_line_is_named_and_the_good_ones_before_it_come_first(
    line: bytes, field: str, problem: str
) -> None:
    texts, error = read_until_error(b'{"text": "one"}\n{"text": "two"}\n' + line + b"\n{}")
    assert texts == ["one", "two"]
    assert error.field == f"line 3: {field}"
    assert problem in error.problem
    assert str(error).startswith(f"line 3: {field}: ")
    assert len(str(error)) < 400


def test_a_turn_of_ten_megabytes_is_refused_without_reading_it_all() -> None:
    endless = Pieces([b'{"text": "ok"}\n{"text": "', *[b"x" * 65536] * 1000])
    seen = []
    with pytest.raises(InvalidInput, match=r"line 2: turn: is longer than 6,010,000 bytes"):
        for batch in read_turns(endless, DEFAULTS):
            seen += batch
    assert len(seen) == 1
    assert MAX_LINE_BYTES < 10_000_000
