"""`memory turns forget`."""

import json
from pathlib import Path

import pytest

from memory_cli import output
from tests.helpers.command_line import run
from tests.helpers.databases import contents_of

TURNS = [
    {"id": "a", "text": "my secret word is xylophone", "time": "2026-03-01T10:00:00Z"},
    {"id": "b", "text": "I have a dog", "time": "2026-03-01T11:00:00Z"},
    {"id": "c", "text": "he is called Rex", "time": "2026-03-02T10:00:00Z", "session": "s2"},
]


@pytest.fixture
def ann(home: Path) -> Path:
    run("turns", "append", "ann", stdin="".join(json.dumps(turn) + "\n" for turn in TURNS))
    return home


def kept() -> list[str]:
    return [turn["id"] for turn in run("turns", "list", "ann", "--json").json]


def test_a_turn_by_its_id_with_a_receipt(ann: Path) -> None:
    receipt = run("turns", "forget", "ann", "a", "--yes", "--json").json
    assert receipt["erased"] == {
        "turns": 1,
        "sessions": 0,
        "rewritten_versions": 1,
        "adapters": 1,
    }
    assert (receipt["removal"], receipt["version"]) == ("subtracted", 2)
    assert kept() == ["b", "c"]
    assert "xylophone" not in contents_of(ann)
    run("turns", "append", "bob", stdin="".join(json.dumps(turn) + "\n" for turn in TURNS[1:]))
    never_seen = run("adapters", "show", "bob", "--json").json["state_digest"]
    assert receipt["state_digest"] == never_seen
    assert run("adapters", "show", "ann", "--json").json["state_digest"] == never_seen
    earlier = run("adapters", "show", "ann@1", "--json").json
    assert (earlier["turns"], earlier["state_digest"]) == (2, None)
    assert "were forgotten since" in run("adapters", "show", "ann@1").out


def test_a_session_and_a_time(ann: Path) -> None:
    run("turns", "forget", "ann", "--session", "s2", "--yes")
    assert kept() == ["a", "b"]
    shown = run("turns", "forget", "ann", "--since", "2026-03-01T10:30", "--yes").out
    assert "exact to the last bit" in shown
    assert kept() == ["a"]


def test_what_matches_words(ann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("turns", "forget", "ann", "--matching", "secret dog", "--yes", code=4)
    run("turns", "forget", "ann", "--matching", "Rex", "--session", "default", "--yes", code=4)
    assert "must hold a word" in run("turns", "forget", "ann", "--matching", "-", code=3).error
    monkeypatch.setattr(output, "can_ask", lambda: True)
    monkeypatch.setattr(output, "confirm", lambda question: "Forget 1 turn of ann" in question)
    shown = run("turns", "forget", "ann", "--matching", "SECRET xylo*").out
    assert "my secret word is xylophone" in shown
    assert "exact to the last bit" in shown
    assert kept() == ["b", "c"]
    assert run("turns", "search", "ann", "secret", "--json").json == []
    assert "xylophone" not in contents_of(ann)


def test_appending_a_forgotten_id_again_says_so(ann: Path) -> None:
    run("turns", "forget", "ann", "a", "--yes")
    again = run("turns", "append", "ann", stdin="".join(json.dumps(turn) + "\n" for turn in TURNS))
    assert again.out == "ann@2: 0 new turns, 2 known before, 1 forgotten before\n"


def test_it_asks_and_shows_what_would_go(ann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "give --yes" in run("turns", "forget", "ann", "a", stdin="y\n", code=2).error
    monkeypatch.setattr(output, "can_ask", lambda: True)
    monkeypatch.setattr(output, "confirm", lambda question: "Forget 1 turn of ann" not in question)
    declined = run("turns", "forget", "ann", "a", code=1)
    assert "xylophone" in declined.out
    assert declined.err == "nothing was forgotten\n"
    assert kept() == ["a", "b", "c"]


def test_what_cannot_be_meant_is_refused(ann: Path) -> None:
    assert "say which" in run("turns", "forget", "ann", "--yes", code=3).error
    assert "no turn named 'x'" in run("turns", "forget", "ann", "a", "x", "--yes", code=4).error
    run("turns", "forget", "ann", "--session", "nowhere", "--yes", code=4)
    run("turns", "forget", "bob", "a", "--yes", code=4)
    assert kept() == ["a", "b", "c"]


def test_without_a_model_the_adapter_goes_with_the_turn(
    ann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MEMORY_SERVICE_BASE_MODEL", "not-pulled")
        forgotten = run("turns", "forget", "ann", "a", "--yes")
    assert "no base model" in forgotten.out
    assert "users rebuild ann" in forgotten.err
    assert "xylophone" not in contents_of(ann)
    assert "were forgotten" in run("chat", "ann", "--no-store", stdin="hi\n", code=4).err
    run("users", "rebuild", "ann")
    assert kept() == ["b", "c"]
    assert run("users", "show", "ann", "--json").json["pending_turns"] == 0
