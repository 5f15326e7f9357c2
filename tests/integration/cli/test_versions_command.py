"""`memory history`, `memory rollback`, `memory adapters diff`, `memory turns edit`."""

from pathlib import Path

import pytest

from tests.helpers.command_line import run

DAYS = {"one": "2026-03-01T10:00:00Z", "two": "2026-03-02T10:00:00Z", "six": "2026-03-03T10:00:00Z"}


@pytest.fixture
def ann(home: Path) -> Path:
    for text, time in DAYS.items():
        run("turns", "append", "ann", text, "--id", text, "--time", time)
    return home


def digest(name: str) -> str:
    return str(run("adapters", "show", name, "--json").json["state_digest"])


def marks() -> dict[str, bool]:
    return {turn["id"]: turn["set_aside"] for turn in run("turns", "list", "ann", "--json").json}


def test_history_tells_what_each_version_changed(ann: Path) -> None:
    run("rollback", "ann", "1")
    entries = run("history", "ann", "--json").json
    told = [
        (entry["version"], entry["reason"], entry["added"], entry["removed"]) for entry in entries
    ]
    assert told == [
        (4, "rollback to 1", 0, 2),
        (3, "append", 1, 0),
        (2, "append", 1, 0),
        (1, "append", 1, 0),
    ]
    page = run("history", "ann", "--before", "4", "--limit", "2")
    assert "ann@3" in page.out
    assert "ann@4" not in page.out
    assert page.err == "there is more: --before 2\n"
    run("turns", "forget", "ann", "two", "--yes")
    assert "rewritten: turns were forgotten" in run("history", "ann").out
    run("history", "bob", code=4)


def test_rollback_and_forward_again(ann: Path) -> None:
    newest = digest("ann")
    assert run("rollback", "ann", "1").out == "ann@4: holds the turns of ann@1\n"
    assert digest("ann") == digest("ann@1")
    assert marks() == {"one": False, "two": True, "six": True}
    assert "set aside" in run("turns", "list", "ann").out
    assert run("users", "show", "ann", "--json").json["pending_turns"] == 0
    run("rollback", "ann", "3")
    assert digest("ann") == newest
    assert marks() == {"one": False, "two": False, "six": False}


def test_rollback_to_a_time(ann: Path) -> None:
    rolled = run("rollback", "ann", "--as-of", "2026-03-02T12:00:00Z", "--json").json
    assert rolled["state_digest"] == digest("ann@2")
    assert marks() == {"one": False, "two": False, "six": True}


def test_rollback_needs_one_target(ann: Path) -> None:
    for arguments in (["ann"], ["ann", "1", "--as-of", "2026-03-02"]):
        assert "--as-of TIME" in run("rollback", *arguments, code=2).error
    assert "ann@9" in run("rollback", "ann", "9", code=4).error
    run("rollback", "bob", "1", code=4)


def test_diff_names_turns_and_distances(ann: Path) -> None:
    found = run("adapters", "diff", "ann", "1", "3", "--json").json
    assert (found["added"], found["removed"]) == (["six", "two"], [])
    assert all(module["value"] > 0 for module in found["distance"]["modules"])
    shown = run("adapters", "diff", "ann", "3", "1")
    assert "removed: 2 turns" in shown.out
    assert "distance" in shown.out
    for _ in range(3):
        run("rollback", "ann", "1")
    assert run("adapters", "diff", "ann", "1", "3", "--json").json["distance"] is None


def test_edit_forgets_the_old_text(ann: Path) -> None:
    edited = run("turns", "edit", "ann", "two", "three", "--new-id", "new", "--json").json
    assert (edited["removal"], edited["version"]) == ("subtracted", 4)
    turns = run("turns", "list", "ann", "--json").json
    assert [(turn["id"], turn["text"]) for turn in turns] == [
        ("one", "one"),
        ("new", "three"),
        ("six", "six"),
    ]
    again = run("turns", "append", "ann", "two", "--id", "two", "--time", DAYS["two"])
    assert "1 forgotten before" in again.out
    assert "no turn named 'two'" in run("turns", "edit", "ann", "two", "x", code=4).error
