"""`memory users`."""

import json
import sqlite3
from pathlib import Path

import pytest

from memory_cli import output
from tests.helpers.command_line import run


def test_list_pages_by_name(home: Path) -> None:
    for name in ("cid", "ann", "bob"):
        run("turns", "append", name, f"I am {name}")
    first = run("users", "list", "--limit", "2", "--json")
    assert [user["user"] for user in first.json] == ["ann", "bob"]
    assert first.err == "there may be more: --after bob\n"
    rest = run("users", "list", "--after", "bob", "--json")
    assert [user["user"] for user in rest.json] == ["cid"]
    counts = {"turns", "pending_turns", "quarantined_turns"}
    assert set(rest.json[0]) == {"user", "version", "created_at"} | counts
    assert "cid" in run("users", "list").out


def test_show_counts_what_is_stored(home: Path) -> None:
    data = "".join(json.dumps({"text": "12345", "session": s}) + "\n" for s in ("a", "a", "b"))
    run("turns", "append", "ann", stdin=data)
    shown = run("users", "show", "ann", "--json").json
    assert (shown["turns"], shown["sessions"], shown["chunks"], shown["text_chars"]) == (
        3,
        2,
        2,
        15,
    )
    assert shown["state_bytes"] > 0
    assert shown["adapters_bytes"] > 0
    assert "ann@1" in run("users", "show", "ann").out
    assert "no user named 'bob'" in run("users", "show", "bob", code=4).error


def test_delete_leaves_nothing_and_tells_what_went(home: Path) -> None:
    run("turns", "append", "ann", "my secret word is xylophone")
    run("turns", "append", "bob", "something else")
    receipt = run("users", "delete", "ann", "--yes", "--json").json
    assert receipt == {
        "user": "ann",
        "deleted": {
            "turns": 1,
            "sessions": 1,
            "chunks": 1,
            "versions": 1,
            "states": 1,
            "adapters": 1,
            "tombstones": 0,
        },
    }
    assert [user["user"] for user in run("users", "list", "--json").json] == ["bob"]
    run("users", "delete", "ann", "--yes", code=4)
    assert b"xylophone" not in b"".join(file.read_bytes() for file in home.glob("memory.db*"))


def test_delete_asks_and_does_nothing_without_a_yes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("turns", "append", "ann", "hello")
    assert "give --yes" in run("users", "delete", "ann", stdin="y\n", code=2).error
    asked: list[str] = []

    def decline(question: str) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr(output, "can_ask", lambda: True)
    monkeypatch.setattr(output, "confirm", decline)
    assert run("users", "delete", "ann", code=1).err == "nothing was deleted\n"
    assert asked == ["Delete 1 turn and the adapter of ann for good?"]
    assert len(run("users", "list", "--json").json) == 1
    monkeypatch.setattr(output, "confirm", lambda _: True)
    run("users", "delete", "ann")
    assert run("users", "list", "--json").json == []


def test_rebuild_gives_the_same_adapter(home: Path) -> None:
    for text in ("one", "two", "three"):
        run("turns", "append", "ann", text)
    before = run("adapters", "show", "ann", "--json").json
    assert run("users", "rebuild", "ann", "--json").json == {"user": "ann", "version": 4}
    after = run("adapters", "show", "ann", "--json").json
    assert after["state_digest"] == before["state_digest"]
    assert after["reason"] == "rebuild"
    run("users", "rebuild", "bob", code=4)


def test_users_of_another_tenant_are_not_seen(home: Path) -> None:
    run("turns", "append", "ann", "hello")
    with sqlite3.connect(home / "memory.db") as database:
        database.execute("UPDATE tenants SET name = 'other'")
    assert run("users", "list", "--json").json == []
    run("users", "show", "ann", code=4)
