"""`memory turns import`, on a tiny model and a real database."""

import json
import os
import sqlite3
import time
from pathlib import Path

import pytest

from memory_cli import import_turns
from tests.helpers.command_line import run, start

DIALOGUE = {
    "id": "cid",
    "sessions": [[{"speaker": "B", "text": "I keep bees."}, {"speaker": "A", "text": "How many?"}]],
    "questions": [],
}


def write(folder: Path, *records: object, name: str = "history.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / name)


def texts(user: str) -> list[str]:
    return [turn["text"] for turn in run("turns", "list", user, "--json").json]


def digest(user: str) -> str:
    return str(run("adapters", "show", user, "--json").json["state_digest"])


def test_turns_and_dialogues_of_many_users(home: Path) -> None:
    file = write(
        home,
        {"text": "one", "user": "ann", "id": "1"},
        {"text": "two", "user": "bob", "session": "s", "time": "2026-03-01T18:30:00Z"},
        DIALOGUE,
        {"text": "three", "user": "ann", "role": "assistant"},
    )
    imported = run("turns", "import", file, "--json").json
    assert imported == {
        "new": 5,
        "known": 0,
        "forgotten": 0,
        "versions": {"ann": 1, "bob": 1, "cid": 1},
    }
    assert texts("ann") == ["one", "three"]
    assert texts("cid") == ["I keep bees.", "How many?"]
    assert run("turns", "import", file).out == "3 users: 0 new turns, 5 known before\n"


def test_the_same_turn_twice_in_a_file_is_two_turns_and_again_none(home: Path) -> None:
    file = write(home, {"text": "yes"}, {"text": "yes"}, {"text": "no"})
    assert run("turns", "import", file, "--user", "ann").out == "1 user: 3 new turns\n"
    os.utime(file, (1_000_000, 1_000_000))  # copied: the time it gives to turns is another
    assert "3 known before" in run("turns", "import", file, "--user", "ann").out
    assert texts("ann") == ["yes", "yes", "no"]


def test_a_bad_line_keeps_what_came_before_and_the_mended_file_brings_the_rest(home: Path) -> None:
    good = [{"text": f"turn {number}", "id": str(number)} for number in range(5)]
    file = write(home, *good[:3], {"text": 7}, *good[3:])
    outcome = run("turns", "import", file, "--user", "ann", code=3)
    assert "line 4: text: must be a string" in outcome.error
    assert "3 new turns stored; run it again" in outcome.err
    write(home, *good)
    assert "2 new turns, 3 known" in run("turns", "import", file, "--user", "ann").out
    run("turns", "append", "bob", stdin=Path(file).read_text())
    assert len(texts("ann")) == 5


@pytest.mark.parametrize(
    ("record", "options", "told"),
    [
        ({"text": "hi"}, [], "line 1: user: is missing"),
        ({"text": "hi", "user": "bob"}, ["--user", "ann"], "line 1: user: is not ann"),
        ({"text": "hi", "user": 3}, [], "line 1: user: must be a string"),
        (["hi"], ["--user", "ann"], "line 1: turn: must be a JSON object"),
        ({"id": "x", "sessions": 3}, [], "line 1: sessions: must be a list"),
    ],
)
def test_what_is_wrong_is_named(home: Path, record: object, options: list[str], told: str) -> None:
    assert told in run("turns", "import", write(home, record), *options, code=3).error
    assert run("users", "list", "--json").json == []


def test_a_conflict_names_the_line(home: Path) -> None:
    file = write(home, {"text": "a", "id": "1"}, {"text": "b", "id": "1"})
    outcome = run("turns", "import", file, "--user", "ann", code=5)
    assert "line 2: turn 1: is already known with another text" in outcome.error
    assert "/missing" in run("turns", "import", "/missing", code=9).error
    assert "holds no turns" in run("turns", "import", write(home), code=3).error


def test_transactions_are_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_turns, "TURNS_AT_ONCE", 2)
    file = write(home, *({"text": f"{number}", "id": f"{number}"} for number in range(5)))
    assert run("turns", "import", file, "--user", "ann").out == "1 user: 5 new turns\n"


def rows(home: Path, table: str) -> int:
    with sqlite3.connect(home / "memory.db") as database:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.mark.parametrize("table", ["turns", "versions"])
def test_killed_and_run_again_is_the_state_of_an_undisturbed_import(home: Path, table: str) -> None:
    file = write(
        home, *({"text": f"{number}", "session": f"s{number // 50}"} for number in range(600))
    )
    process = start("turns", "import", file, "--user", "ann")
    while not rows(home, table):  # killed while it stores, and between two steps of encoding
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    again = run("turns", "import", file, "--user", "ann").out
    assert "known before" in again
    run("turns", "import", file, "--user", "bob")
    assert len(texts("ann")) == 600
    assert digest("ann") == digest("bob")
    assert run("users", "show", "ann", "--json").json["pending_turns"] == 0
