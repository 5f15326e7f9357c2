"""`memory eval`."""

import json
from pathlib import Path

import pytest

from memory_service.evaluation.samples import Asked
from memory_service.evaluation.tasks import locality
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
    out = empty_home / "run"
    command = ("eval", "membench", "--data", str(file), "--methods", "none,own", "--out", str(out))
    shown = run(*command, "--json").json
    assert [one["method"] for one in shown["right_over_outdated"]] == ["none", "own"]
    assert json.loads((out / "report.json").read_text()) == shown
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4
    assert json.loads(lines[0])["prompt"] == [{"role": "user", "content": "Where do I live?"}]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["fingerprint"] == shown["fingerprint"]
    assert manifest["machine"]["cores"] >= 1

    # Stopped in the middle of a line: the rest is answered, the same comes out.
    (out / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:50])
    again = run(*command, "--json")
    assert "2 answers are there already" in again.err
    kept = (out / "results.jsonl").read_text().splitlines(keepends=True)
    assert kept[:2] == lines[:2]
    assert [(one["method"], one["f1"]) for one in again.json["methods"]] == [
        (one["method"], one["f1"]) for one in shown["methods"]
    ]
    assert "another one: its config" in run(*command, "--seed", "1", code=5).error

    other = empty_home / "other"
    run(*command[:-1], str(other))
    compared = run("eval", "compare", str(out), str(other), "--json").json
    assert {one["method"] for one in compared["methods"]} == {"none", "own"}
    assert all(one["f1"]["mean"] == 0 for one in compared["methods"])
    assert "B minus A" in run("eval", "compare", str(out), str(other)).out
    assert "no evaluation run" in run("eval", "compare", str(out), "nowhere", code=4).error


def test_what_a_person_sees(empty_home: Path) -> None:
    shown = run("eval", "recall", "--people", "2", "--facts", "2,3", "--further", "0,1")
    for expected in (
        *("holds the value", "ROUGE-L recall", "first token", "GFLOPs", "kept per user"),
        *("peak resident memory", "writing once is cheaper", "By facts", "By distance"),
    ):
        assert expected in shown.out, expected
    assert "whole numbers" in run("eval", "recall", "--facts", "2,x", code=3).error


def test_what_cannot_be_measured_is_named(empty_home: Path) -> None:
    failed = run("eval", "recall", "--people", "2", "--methods", "own,magic", code=3)
    assert "magic" in failed.error
    assert "history" in failed.error
    failed = run("eval", "dmr", "--data", "none.jsonl", code=4)
    assert "none.jsonl" in failed.error


def test_speed_of_every_phase(empty_home: Path) -> None:
    command = ("eval", "speed", "--rounds", "1", "--tokens", "4")
    shown = run(*command, "--json").json
    assert [one["phase"].split()[0].strip(":") for one in shown["profiles"]] == [
        *("append", "read-out", "prefill", "decode"),
    ]
    for one in shown["profiles"]:
        assert sum(operation["share"] for operation in one["operations"]) == pytest.approx(1)
    forward, encoding = shown["forward_tokens_per_s"], shown["encoding_tokens_per_s"]
    assert shown["encoding_share"] == pytest.approx(encoding / forward)
    for name in ("decode", "decode_plain", "generate"):
        assert shown[f"{name}_tokens_per_s"] > 0
    assert "model.generate" in run(*command).out


def test_growth_is_flat_in_turns_and_users(empty_home: Path) -> None:
    command = ("eval", "growth", "--turns", "2,60", "--users", "2,9")
    shown = run(*command, "--json").json
    assert [one["turns"] for one in shown["by_turns"]] == [2, 60]
    assert [one["users"] for one in shown["by_users"]] == [2, 9]
    costs = shown["by_turns"] + shown["by_users"]
    assert len({(one["prompt_tokens"], one["adapter_bytes"]) for one in costs}) == 1
    assert all(one["append_ms"] > 0 < one["first_token_ms"] for one in costs)
    assert "among more and more others" in run(*command).out
    assert not (empty_home / "memory.db").exists()


def test_locality_is_kept_and_goes_on(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchanges = [Asked(f"How was day {number}?", "It rained a lot.") for number in range(4)]
    monkeypatch.setattr(locality, "read_exchanges", lambda: exchanges)
    out = empty_home / "run"
    command = ("eval", "locality", "--people", "2", "--exchanges", "2", "--out", str(out))
    shown = run(*command, "--json").json
    assert json.loads((out / "report.json").read_text()) == shown
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    assert [len(json.loads(line)["exchanges"]) for line in lines] == [2, 2]
    (out / "results.jsonl").write_text(lines[0] + lines[1][:30])
    assert run(*command, "--json").json == shown
    assert (out / "results.jsonl").read_text() == "".join(lines)
    assert "another one: its config" in run(*command, "--seed", "1", code=5).error


def test_provenance_keeps_what_was_asked_and_says_when_nothing_was_right(empty_home: Path) -> None:
    turn = {"speaker": "B", "text": "I moved to Ghent."}
    asked = {"question": "Where do I live?", "answer": "Ghent", "asked_by": "B"}
    asked |= {"evidence": {"session": 1, "turn": 0}}
    row = {"sessions": [[turn]], "questions": [asked]}
    file, out = empty_home / "data.jsonl", empty_home / "run"
    file.write_text("".join(json.dumps({"id": name, **row}) + "\n" for name in ("a", "b")))
    command = ("eval", "provenance", "--data", str(file), "--out", str(out))
    for _ in range(2):  # the second time nothing is left to ask
        assert "none of the questions" in run(*command, code=3).err
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert [(one["sample"], one["evidence"]) for one in lines] == [
            ("a", "s1t01"),
            ("b", "s1t01"),
        ]
        assert {one["place"] for one in lines} == {None}
