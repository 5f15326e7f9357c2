"""`memory turns`, on a tiny model and a real database."""

import json
import sqlite3
from pathlib import Path

import pytest
import torch

from memory_service.generator.checkpoint import save_generator
from tests.helpers.command_line import ENCODING, run
from tests.helpers.tiny_generator import tiny_config, tiny_generator


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def texts(user: str = "ann") -> list[str]:
    return [turn["text"] for turn in run("turns", "list", user, "--json").json]


def test_one_turn_is_appended_encoded_and_listed(home: Path) -> None:
    assert run("turns", "append", "ann", "My dog is Biscuit.").out == "ann@1: 1 new turn\n"
    appended = run(
        "turns", "append", "ann", "Nice name!", "--role", "assistant", "--session", "s2",
        "--time", "2026-03-01T18:30:00Z", "--id", "t2", "--json",
    )  # fmt: skip
    assert appended.json == {"user": "ann", "version": 2, "new": 1, "known": 0, "forgotten": 0}
    earlier, later = run("turns", "list", "ann", "--json").json
    assert earlier == {
        "id": "t2",
        "session": "s2",
        "role": "assistant",
        "time": "2026-03-01T18:30:00+00:00",
        "text": "Nice name!",
        "expires_at": None,
        "pending": False,
        "quarantined": False,
        "set_aside": False,
    }
    assert (later["text"], later["session"], later["role"]) == (
        "My dog is Biscuit.",
        "default",
        "user",
    )
    table = run("turns", "list", "ann").out
    assert "2026-03-01 18:30:00  s2       assistant  Nice name!" in table


def test_json_lines_of_several_sessions(home: Path) -> None:
    data = lines(
        {"text": "a", "session": "s1", "id": "1"},
        {"text": "b", "session": "s2", "id": "2", "role": "assistant"},
        {"text": "c", "session": "s1", "id": "3"},
    )
    assert run("turns", "append", "ann", stdin=data).out == "ann@1: 3 new turns\n"
    again = run("turns", "append", "ann", stdin=data)
    assert again.out == "ann@1: 0 new turns, 3 known before\n"
    assert texts() == ["a", "b", "c"]
    only = run("turns", "list", "ann", "--session", "s1", "--json").json
    assert [turn["text"] for turn in only] == ["a", "c"]
    newest = run("turns", "list", "ann", "--limit", "2", "--json").json
    assert [turn["text"] for turn in newest] == ["b", "c"]


def test_a_wrong_line_is_named_and_the_good_ones_before_it_stay_pending(home: Path) -> None:
    data = lines({"text": "one"}, {"text": "two"}) + '{"text": \n' + lines({"text": "never"})
    outcome = run("turns", "append", "ann", stdin=data, code=3)
    assert "2 new turns stored" in outcome.err
    assert "line 3: turn: is not JSON" in outcome.error
    listed = run("turns", "list", "ann", "--json").json
    assert [(turn["text"], turn["pending"]) for turn in listed] == [("one", True), ("two", True)]
    assert "pending" in run("turns", "list", "ann").out
    assert run("turns", "append", "ann", "three").out == "ann@1: 1 new turn\n"
    assert not any(turn["pending"] for turn in run("turns", "list", "ann", "--json").json)


def test_a_turn_sent_again_without_a_time_is_no_conflict(home: Path) -> None:
    run("turns", "append", "ann", "hello", "--id", "t")
    assert "1 known before" in run("turns", "append", "ann", "hello", "--id", "t").out
    assert "another text" in run("turns", "append", "ann", "bye", "--id", "t", code=5).error
    dated = ("--id", "t", "--time", "2020-01-01")
    assert "another time" in run("turns", "append", "ann", "hello", *dated, code=5).error
    twice = lines({"text": "hello", "id": "t"}, {"text": "new", "id": "u"}) * 2
    assert "1 new turn, 3 known before" in run("turns", "append", "ann", stdin=twice).out
    fresh = lines({"text": "x", "id": "t"}, {"text": "x", "id": "t"})
    assert "1 new turn, 1 known before" in run("turns", "append", "bob", stdin=fresh).out


def test_a_conflict_is_named_with_its_line_and_the_lines_before_it_stay(home: Path) -> None:
    run("turns", "append", "ann", stdin=lines({"text": "first", "id": "t"}))
    data = lines({"text": "good", "id": "u"}, {"text": "xylophone", "id": "t"}, {"text": "z"})
    outcome = run("turns", "append", "ann", stdin=data, code=5)
    assert "line 2: turn t: is already known with another" in outcome.error
    assert "xylophone" not in outcome.err
    assert texts() == ["first", "good"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "problem"),
    [
        (["ann", ""], b"", 3, "text: must not be empty"),
        (["ann", "  \n"], b"", 3, "text: must not be empty"),
        (["ann", "a\0b"], b"", 3, "NUL"),
        (["ann", "a\udcffb"], b"", 3, "lone surrogate"),
        (["ann", "hi", "--role", "robot"], b"", 3, "role: must be one of: user, assistant"),
        (["ann", "hi", "--time", "soon"], b"", 3, "time: must be ISO 8601"),
        (["ann", "hi", "--id", " "], b"", 3, "id: must not be empty"),
        (["ann", "hi", "--session", "a\x1bb"], b"", 3, "session: must not hold control"),
        ([" ann", "hi"], b"", 3, "user: must not be empty or begin or end with spaces"),
        (["ann@3", "hi"], b"", 3, "user: must not end like a version"),
        (["x" * 201, "hi"], b"", 3, "user: must have at most 200 characters"),
        (["ann"], b"", 3, "standard input: holds no turns"),
        (["ann"], b"\n \n", 3, "standard input: holds no turns"),
        (["ann"], b'{"text": "\xff"}\n', 3, "line 1: text: is not valid UTF-8 at byte 11"),
        (["ann"], b'{"text": "' + b"x" * 10_000_000, 3, "line 1: turn: is longer than"),
        (["ann"], b'{"text": "' + b"x" * 1_000_001 + b'"}', 3, "more than 1,000,000"),
        (["ann", "--id", "t"], b"{}", 2, "--time, --id, --expires go with one TEXT"),
        (["ann", "--role", "robot"], b"{}", 3, "role: must be one of"),
    ],
)
def test_bad_input_is_named_and_nothing_is_stored(
    home: Path, arguments: list[str], stdin: bytes, code: int, problem: str
) -> None:
    outcome = run("turns", "append", *arguments, stdin=stdin, code=code)
    assert problem in outcome.error
    assert len(outcome.error) < 400
    assert outcome.out == ""
    assert run("users", "list", "--json").json == []


def test_a_long_turn_is_split_into_chunks_not_cut(home: Path) -> None:
    words = " ".join(f"word{number}" for number in range(2000))
    run("turns", "append", "ann", stdin=lines({"text": words, "id": "long"}))
    shown = run("adapters", "show", "ann", "--json").json
    assert shown["turns"] == 1
    assert shown["chunks"] > 100
    assert {tuple(chunk["turn_ids"]) for chunk in shown["made_from"]} == {("long",)}
    assert texts() == [words]


def test_hostile_text_is_shown_harmlessly(home: Path) -> None:
    hostile = "[red]x[/red] \x1b[2J\x1b]0;title\x07 \u202egnp.exe"
    run("turns", "append", "ann", stdin=lines({"text": hostile}))
    assert texts() == [hostile]
    out = run("turns", "list", "ann").out
    assert "[red]x[/red] ␛[2J␛]0;title␇" in out
    assert not set("\x1b\x07\u202e") & set(out)


def test_an_unknown_user_is_named(home: Path) -> None:
    assert "no user named 'bob'" in run("turns", "list", "bob", code=4).error


def test_a_missing_model_leaves_the_turn_stored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_SERVICE_BASE_MODEL", "smollm2-135m-instruct")
    outcome = run("turns", "append", "ann", "hello", code=4)
    assert "run `memory models pull`" in outcome.error
    assert "1 new turn stored" in outcome.err
    assert run("turns", "list", "ann", "--json").json[0]["pending"]


def test_another_generator_is_refused_until_a_rebuild(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("turns", "append", "ann", "one")
    save_generator(
        tiny_generator(tiny_config(encoding=ENCODING), seed=9),
        home / "other.safetensors",
        {},
        torch.float32,
    )
    monkeypatch.setenv("MEMORY_SERVICE_GENERATOR", str(home / "other.safetensors"))
    outcome = run("turns", "append", "ann", "two", code=6)
    assert "memory users migrate" in outcome.error
    assert "1 new turn stored" in outcome.err
    assert run("chat", "ann", "--once", "hi", code=6).error
    assert run("users", "rebuild", "ann").out == "ann@2: encoded anew\n"
    assert texts() == ["one", "two"]
    assert run("turns", "append", "ann", "three").out == "ann@3: 1 new turn\n"


def test_an_unmigrated_database_names_the_command(empty_home: Path) -> None:
    missing = run("turns", "list", "ann", code=8)
    assert "memory.db does not exist" in missing.error
    assert "memory db upgrade" in missing.error
    assert not (empty_home / "memory.db").exists()
    sqlite3.connect(empty_home / "memory.db").executescript("CREATE TABLE other (x)")
    assert "memory db upgrade" in run("turns", "append", "ann", "hi", code=8).error


def test_the_default_database_is_created_at_first_use(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMORY_SERVICE_DATABASE_URL")
    file = empty_home / "data" / "memory-service" / "memory.db"
    first = run("users", "list", "--json")
    assert first.json == []
    assert first.err == f"created the database {file}\n"
    assert run("users", "list").err == ""


def test_a_corrupted_database_is_left_as_it_is(home: Path) -> None:
    damage = b"this is not a database at all" * 400
    (home / "memory.db").write_bytes(damage)
    assert "is not a SQLite database, or is damaged" in run("turns", "list", "ann", code=9).error
    run("turns", "append", "ann", "hi", code=9)
    assert (home / "memory.db").read_bytes() == damage


def test_search_shows_the_newest_first_and_the_way_to_more(home: Path) -> None:
    data = lines(
        {"text": "My dog is Biscuit", "id": "a", "time": "2026-03-01"},
        {"text": "The DOG likes biscuits", "id": "b", "time": "2026-03-02", "session": "s2"},
        {"text": "I have a cat", "id": "c", "time": "2026-03-03"},
    )
    run("turns", "append", "ann", stdin=data)
    found = run("turns", "search", "ann", "dog bisc*", "--json").json
    assert [turn["id"] for turn in found] == ["b", "a"]
    assert found[0]["session"] == "s2"
    shown = run("turns", "search", "ann", "dog", "--limit", "1")
    assert "b   2026-03-02 00:00:00  s2       user  The DOG likes biscuits" in shown.out
    assert "--before b" in shown.err
    rest = run("turns", "search", "ann", "dog", "--before", "b", "--json").json
    assert [turn["id"] for turn in rest] == ["a"]
    assert run("turns", "search", "ann", "horse", "--json").json == []
    assert "words: must hold a word" in run("turns", "search", "ann", "?!", code=3).error
    run("turns", "search", "bob", "dog", code=4)
    run("turns", "search", "ann", "dog", "--before", "x", code=4)
