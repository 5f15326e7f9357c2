import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.domain.turns import (
    MAX_NAME_CHARS,
    MAX_TURN_BYTES,
    Role,
    Turn,
    check_name,
    new_turn,
    parse_role,
    parse_time,
    turn_from_record,
)
from memory_service.errors import InvalidInput

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD = Turn("s", Role.USER, "My dog is called Rex.", NOON, "t1")

BAD_NAMES = {
    "empty": "",
    "spaces": "  ",
    "leading space": " a",
    "trailing newline": "a\n",
    "too long": "a" * (MAX_NAME_CHARS + 1),
    "NUL": "a\0b",
    "newline inside": "a\nb",
    "escape": "a\x1b[31mb",
    "lone surrogate": "a\ud800b",
}
BAD_TEXTS = {
    "empty": "",
    "spaces": " \t\n\u00a0",
    "NUL": "a\0b",
    "lone surrogate": "a\udfffb",
    "too long": "a" * (MAX_TURN_BYTES + 1),
    "too long in bytes": "é" * (MAX_TURN_BYTES // 2 + 1),
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_text(text):
    with pytest.raises(InvalidInput, match=r"^text: "):
        replace(GOOD, text=text)


@pytest.mark.parametrize("field", ["session", "id"])
@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_bad_name(field, name):
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        replace(GOOD, **{field: name})


@pytest.mark.parametrize("text", ["a", "\n é 😀 \r\n", "é" * (MAX_TURN_BYTES // 2)])
def test_good_text_is_kept_as_it_is(text):
    assert replace(GOOD, text=text).text == text


def test_text_in_an_error_is_shortened():
    with pytest.raises(InvalidInput) as caught:
        replace(GOOD, text="secret " * 200_000)
    assert len(str(caught.value)) < 300


def test_time_without_zone():
    with pytest.raises(InvalidInput, match=r"^time: .*time zone"):
        replace(GOOD, time=NOON.replace(tzinfo=None))


def test_order_is_time_then_id():
    earlier = replace(GOOD, time=NOON - timedelta(seconds=1), id="z")
    same_time = replace(GOOD, id="t2")
    assert sorted([same_time, GOOD, earlier], key=lambda turn: turn.order) == [
        earlier,
        GOOD,
        same_time,
    ]


# new_turn


def test_new_turn_fills_in_time_and_a_fresh_id():
    before = datetime.now(UTC)
    first, second = new_turn("Hi."), new_turn("Hi.")
    assert (first.role, first.session) == (Role.USER, "default")
    assert before <= first.time <= datetime.now(UTC)
    assert first.id != second.id


def test_new_turn_keeps_what_is_given():
    made = new_turn("Hi.", role="assistant", session="s", time="2026-03-01T12:00Z", turn_id="t1")
    assert made == Turn("s", Role.ASSISTANT, "Hi.", NOON, "t1")


def test_new_turn_with_an_empty_id_is_refused():
    with pytest.raises(InvalidInput, match=r"^id: "):
        new_turn("Hi.", turn_id="")


@pytest.mark.parametrize("role", ["", "User", "system", "user ", "tool", None, 1, ["user"]])
def test_unknown_role(role):
    with pytest.raises(InvalidInput, match=r"^role: must be one of: user, assistant"):
        parse_role(role)


@pytest.mark.parametrize(
    ("given_time", "utc"),
    [
        ("2026-03-01T12:00:00Z", NOON),
        ("2026-03-01T13:30:00+01:30", NOON),
        ("2026-03-01T12:00:00", NOON),
        ("2026-03-01", NOON.replace(hour=0)),
        (NOON.replace(tzinfo=None), NOON),
        (datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2))), NOON),
    ],
)
def test_times_are_read_as_utc(given_time, utc):
    parsed = parse_time(given_time)
    assert parsed == utc
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "2026-13-01", "2026-02-30", "25:00", "1772366400", "2026-03-01T12:00+25:00"),
        *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"),
        *("2026-03-01T12:00\ud800", "2026-03-01\x00", "10000-01-01"),
    ],
)
def test_bad_time(text):
    with pytest.raises(InvalidInput, match=r"^time: "):
        parse_time(text)


# turn_from_record


def test_record_with_text_only():
    made = turn_from_record({"text": "Hi."})
    assert (made.text, made.role, made.session) == ("Hi.", Role.USER, "default")


def test_record_with_every_field():
    record = {
        "role": "assistant",
        "text": "Hi.",
        "session": "s",
        "time": "2026-03-01T12:00:00Z",
        "id": "t1",
    }
    assert turn_from_record(record) == Turn("s", Role.ASSISTANT, "Hi.", NOON, "t1")


@pytest.mark.parametrize("record", [None, [], "text", 5, True, [{"text": "Hi."}]])
def test_record_that_is_no_object(record):
    with pytest.raises(InvalidInput, match=r"^turn: must be a JSON object"):
        turn_from_record(record)


@pytest.mark.parametrize(
    ("record", "field", "problem"),
    [
        ({}, "text", "is missing"),
        ({"role": "user"}, "text", "is missing"),
        ({"text": "Hi.", "user": "ann"}, "user", "is not a field of a turn"),
        ({"text": "Hi.", "Text": "Hi."}, "Text", "is not a field of a turn"),
        ({"text": None}, "text", "must be a string"),
        ({"text": 5}, "text", "must be a string"),
        ({"text": ["Hi."]}, "text", "must be a string"),
        ({"text": "Hi.", "session": 1}, "session", "must be a string"),
        ({"text": "Hi.", "time": 1772366400}, "time", "must be a string"),
        ({"text": "Hi.", "id": None}, "id", "must be a string"),
        ({"text": "Hi.", "role": True}, "role", "must be a string"),
        ({"text": "Hi.", "role": "system"}, "role", "must be one of"),
        ({"text": "Hi.", "time": "soon"}, "time", "must be ISO 8601"),
        ({"text": "Hi.", "id": ""}, "id", "must not be empty"),
        ({"text": "Hi.", "session": " s"}, "session", "must not be empty or begin"),
        ({"text": " "}, "text", "must not be empty"),
    ],
)
def test_record_with_a_bad_field(record, field, problem):
    with pytest.raises(InvalidInput, match=f"^{field}: {problem}"):
        turn_from_record(record)


@given(
    st.dictionaries(
        st.sampled_from(["role", "text", "session", "time", "id", "other"]),
        st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.just("user"),
    )
)
def test_any_record_makes_a_turn_or_an_error_that_names_its_field(record):
    try:
        made = turn_from_record(record)
    except InvalidInput as error:
        assert error.field in {*record, "text"}
        str(error).encode()  # can be printed, whatever the value was
    else:
        assert made.text == record["text"]
        json.dumps([made.session, made.text, made.id]).encode()


@given(st.text(st.characters(), max_size=MAX_NAME_CHARS + 5))
def test_any_name_is_returned_or_refused(name):
    try:
        assert check_name("user", name) == name
    except InvalidInput as error:
        assert error.field == "user"
    else:
        name.encode()
