"""`memory eval`."""

import json
from pathlib import Path

from tests.helpers.command_line import run


def test_recall_as_json(empty_home: Path) -> None:
    shown = run("eval", "recall", "--people", "2", "--facts", "2", "--json").json
    assert (shown["task"], shown["n"]) == ("recall", 4)
    methods = {one["method"]: one for one in shown["methods"]}
    assert {"none", "own", "swap", "history"} <= set(methods)
    for one in methods.values():
        assert one["f1_low"] <= one["f1"] <= one["f1_high"]
        assert 0 <= one["value_recall"] <= 1
        assert one["log_likelihood"] < 0
    assert methods["history"]["prompt_tokens"] > methods["own"]["prompt_tokens"]
    compared = shown["own_against_swap"]
    assert compared["f1_difference"]["low"] <= compared["f1_difference"]["high"]
    assert 0 <= compared["likelier"]["mean"] <= 1


def test_a_file_that_knows_what_is_outdated(empty_home: Path) -> None:
    turn = {"speaker": "B", "text": "I moved to Ghent."}
    asked = {
        "question": "Where do I live?",
        "answer": "Ghent",
        "wrong_answer": "Bruges",
        "asked_by": "B",
    }
    row = {"sessions": [[turn]], "questions": [asked]}
    file = empty_home / "data.jsonl"
    file.write_text("".join(json.dumps({"id": name, **row}) + "\n" for name in ("a", "b")))
    out = empty_home / "answers.jsonl"
    command = ("eval", "dmr", "--data", str(file), "--methods", "none,own", "--out", str(out))
    shown = run(*command, "--json").json
    assert [one["method"] for one in shown["right_over_outdated"]] == ["none", "own"]
    assert len(out.read_text().splitlines()) == 4


def test_what_cannot_be_measured_is_named(empty_home: Path) -> None:
    failed = run("eval", "recall", "--people", "2", "--methods", "own,magic", code=3)
    assert "magic" in failed.error
    assert "history" in failed.error
    failed = run("eval", "dmr", "--data", str(empty_home / "none.jsonl"), code=4)
    assert "none.jsonl" in failed.error
