"""`memory demo`."""

import fcntl
import json
from pathlib import Path
from typing import Any

from tests.helpers.command_line import run


def dialogue(name: str, dog: str, questions: int = 2) -> dict[str, Any]:
    asked = {"question": "What is my dog called?", "answer": f"It is {dog}.", "value": dog}
    return {
        "id": name,
        "sessions": [
            [
                {"speaker": "B", "text": f"My dog is called {dog}."},
                {"speaker": "A", "text": "Nice."},
            ],
            [{"speaker": "B", "text": "Hello again."}],
        ],
        "questions": [{**asked, "asked_by": "B"}] * questions,
    }


def write(folder: Path, *dialogues: dict[str, Any]) -> str:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in dialogues))
    return str(file)


def test_a_dialogue_of_a_file(empty_home: Path) -> None:
    rows = (dialogue("one", "Rex"), dialogue("none", "-", 0), dialogue("two", "Fido"))
    data = write(empty_home, *rows)
    shown = run("demo", "--data", data, "--row", "two", "--json").json
    assert (shown["dialogue"], shown["swap"]) == ("two", "one")
    own, swap = shown["memories"]
    assert (own["adapter"], own["sessions"], own["turns"]) == ("two@2", 2, 3)
    assert swap["adapter"] == "one@2"
    assert own["text_bytes"] == sum(
        len(turn["text"]) for session in rows[2]["sessions"] for turn in session
    )
    assert own["adapter_bytes"] > 0
    assert own["state_bytes"] > 0
    assert len(shown["questions"]) == 2
    ways = shown["ways"]
    assert set(ways) == {"none", "own", "swap", "history"}
    for name, kept in (("none", 0), ("own", own["adapter_bytes"]), ("history", own["text_bytes"])):
        assert ways[name]["kept_bytes"] == kept
        assert ways[name]["judged"] == 2
        assert ways[name]["mean_first_token_ms"] > 0
    assert ways["none"]["mean_prompt_tokens"] == ways["own"]["mean_prompt_tokens"]
    assert ways["history"]["mean_prompt_tokens"] > ways["own"]["mean_prompt_tokens"]
    tokens = ways["history"]["mean_prompt_tokens"]
    # keys and values, two layers, two heads of width 8, float32
    assert shown["history_kv_cache_bytes"] == 2 * 2 * 2 * 8 * 4 * tokens
    for question in shown["questions"]:
        for answer in question["answers"].values():
            assert answer["holds"] == ("fido" in answer["text"].lower().split())


def test_what_a_person_sees(empty_home: Path) -> None:
    data = write(empty_home, dialogue("one", "Rex"), dialogue("two", "Fido"))
    outcome = run("demo", "--data", data)
    for expected in (
        "one@2",
        "another user's adapter",
        "whole history in the prompt",
        "What is my dog",  # and the rest of it on the next line
        "It is Rex.",
        "hold the answer",
        "first token",
    ):
        assert expected in " ".join(outcome.out.replace("│", " ").split()), expected
    assert "memory adapters show one" in outcome.err
    database = f"sqlite:///{empty_home}/cache/demo/memory.db"
    assert database in outcome.err


def test_the_database_is_fresh_each_time(empty_home: Path) -> None:
    data = write(empty_home, dialogue("one", "Rex", 1), dialogue("two", "Fido", 1))
    first = run("demo", "--data", data, "--json").json
    second = run("demo", "--data", data, "--json").json
    assert first["memories"][0]["adapter"] == second["memories"][0]["adapter"] == "one@2"
    assert not (empty_home / "memory.db").exists()


def test_the_shipped_dialogue_has_a_twin(empty_home: Path) -> None:
    shown = run("demo", "--json").json
    assert (shown["dialogue"], shown["swap"]) == ("msc-shape/1", "msc-shape/2")
    own, swap = shown["memories"]
    assert own["sessions"] == swap["sessions"] == 4
    assert len(shown["questions"]) == 8
    # The history does not fit into the tiny model's context: its newest turns are shown.
    assert shown["ways"]["history"]["judged"] == 8
    assert 3000 < shown["ways"]["history"]["mean_prompt_tokens"] <= 4096


def test_data_that_cannot_be_used_is_named(empty_home: Path) -> None:
    run("demo", "--data", "missing.jsonl", code=4)
    data = write(empty_home, dialogue("one", "Rex"), dialogue("two", "Fido"))
    assert (
        "no dialogue with questions named 'three'"
        in run("demo", "--data", data, "--row", "three", code=4).error
    )
    data = write(empty_home, dialogue("one", "Rex"))
    assert "at least two dialogues" in run("demo", "--data", data, code=3).error
    (empty_home / "data.jsonl").write_text('{"id": "x"}\n')
    assert "line 1: sessions" in run("demo", "--data", "data.jsonl", code=3).error
    (empty_home / "data.jsonl").write_bytes(b"\xff\n")
    assert "is not valid UTF-8" in run("demo", "--data", "data.jsonl", code=3).error


def test_two_demos_do_not_share_a_database(empty_home: Path) -> None:
    data = write(empty_home, dialogue("one", "Rex"), dialogue("two", "Fido"))
    (empty_home / "cache" / "demo").mkdir(parents=True)
    with (empty_home / "cache" / "demo" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another demo is using" in run("demo", "--data", data, code=9).error
