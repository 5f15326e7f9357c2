"""`memory inspect` and `memory why`."""

from pathlib import Path

import pytest

from memory_service.domain.messages import Generation
from memory_service.inference.local import LocalBackend
from memory_service.services.ask import Ask
from tests.helpers.command_line import run

TEXTS = {"dog": "My dog is called Rex.", "rain": "It rains.", "move": "I moved to Oslo."}


@pytest.fixture
def ann(home: Path) -> Path:
    for name, text in TEXTS.items():
        run("turns", "append", "ann", text, "--id", name, "--session", name)
    return home


def test_inspect_tells_what_a_memory_is_made_of(ann: Path) -> None:
    found = run("inspect", "ann", "--strongest", "2", "--json").json
    assert (found["version"], found["turns"], found["pending_turns"]) == (3, 3, 0)
    assert {one["session"]: one["turns"] for one in found["by_session"]} == dict.fromkeys(TEXTS, 1)
    assert all(0 < one["value"] <= 100 for one in found["fullness"]["modules"])
    shares = [one["share"] for one in found["strongest"]]
    assert len(shares) == 2
    assert shares == sorted(shares, reverse=True)
    shown = run("inspect", "ann").out
    for text in (*TEXTS.values(), "ann@3", "fullness", "strongest turns", "fingerprint"):
        assert text in shown
    assert "strongest" not in run("inspect", "ann", "--strongest", "0").out
    run("inspect", "bob", code=4)


def test_why_ranks_the_turns_by_what_the_answer_loses_without_them(ann: Path) -> None:
    found = run("why", "ann", "Who is my dog?", "--answer", "Rex.", "--json").json
    assert found["answer"] == "Rex."
    assert {one["id"] for one in found["turns"]} == set(TEXTS)
    losses = [one["loss"] for one in found["turns"]]
    assert losses == sorted(losses, reverse=True)
    assert len(run("why", "ann", "Who?", "--turns", "1", "--json").json["turns"]) == 1
    shown = run("why", "ann", "Who is my dog?", "--answer", "Rex.")
    assert shown.out.startswith("Rex.\n")
    assert "nats a token by the memory (ann@3)" in shown.err
    assert TEXTS["dog"] in shown.out
    run("why", "ann", "Who?", "--answer", " ", code=3)
    run("why", "bob", "Who?", code=4)


def test_a_profile_is_of_lines_that_turns_say(ann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing that a turn" in run("profile", "ann").out  # the tiny model says no words
    monkeypatch.setattr(LocalBackend, "log_likelihoods", lambda *_: [-0.1, -2.0])  # own, alone
    monkeypatch.setattr(Ask, "_generate", a_dog_called_rex)
    lines = run("profile", "ann", "--json").json["lines"]
    assert [(one["topic"], one["turn"]["id"]) for one in lines] == [("dog", "dog")]
    shown = run("profile", "ann").out
    assert "90%" in shown
    assert TEXTS["dog"] in shown
    run("profile", "bob", code=4)


async def a_dog_called_rex(*_: object) -> Generation:
    return Generation("Your dog is called Rex.", 5, 5, 0.1, 0.2)
