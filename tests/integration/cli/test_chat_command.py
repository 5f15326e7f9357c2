"""`memory chat` without a terminal: one message, or a message a line."""

import io
import json
import sys
from pathlib import Path

import pytest

from memory_cli import output
from tests.helpers.command_line import run

FEW = ("--max-tokens", "5")


def turns(user: str = "ann") -> list[tuple[str, str]]:
    listed = run("turns", "list", user, "--json").json
    return [(turn["role"], turn["text"]) for turn in listed]


def test_one_message_is_answered_and_both_sides_are_remembered(home: Path) -> None:
    first = run("chat", "ann", "--once", "Hello there", *FEW, "--json").json
    assert (first["message"], first["adapter"], first["stored_as"]) == (
        "Hello there",
        None,
        "ann@1",
    )
    assert first["prompt_tokens"] > 0
    assert first["first_token_ms"] > 0
    assert turns()[0] == ("user", "Hello there")
    second = run("chat", "ann", "--once", "Hello again", *FEW, "--json").json
    assert (second["adapter"], second["stored_as"]) == ("ann@1", "ann@2")


def test_the_answer_goes_to_stdout_and_its_cost_to_stderr(home: Path) -> None:
    outcome = run("chat", "ann", "--once", "Hello", *FEW)
    (_, _), *answered = turns()
    assert outcome.out.strip() == (output.visible(answered[0][1]) if answered else "")
    assert "prompt tokens" in outcome.err
    assert "no memory  now ann@1" in outcome.err


def test_a_message_a_line_in_one_session(home: Path) -> None:
    outcome = run("chat", "ann", "--session", "s", *FEW, "--json", stdin="one\n\ntwo\n")
    first, second = (json.loads(line) for line in outcome.out.splitlines())
    assert (first["message"], second["message"]) == ("one", "two")
    assert second["prompt_tokens"] > first["prompt_tokens"]
    listed = run("turns", "list", "ann", "--session", "s", "--json").json
    assert [turn["text"] for turn in listed if turn["role"] == "user"] == ["one", "two"]


def test_a_continued_session_comes_into_the_prompt_another_does_not(home: Path) -> None:
    def tokens(session: str, *options: str) -> int:
        command = ("chat", "ann", "--session", session, "--once", "hi", *FEW, "--json")
        return int(run(*command, *options).json["prompt_tokens"])

    alone = tokens("a")
    assert tokens("a") > alone
    assert tokens("b") == alone
    assert tokens("a", "--window", "1") == alone


def test_incognito_reads_the_memory_and_stores_nothing(home: Path) -> None:
    run("turns", "append", "ann", "My dog is Biscuit.")
    answer = run("chat", "ann", "--no-store", "--once", "hi", *FEW, "--json").json
    assert (answer["adapter"], answer["stored_as"]) == ("ann@1", None)
    assert turns() == [("user", "My dog is Biscuit.")]
    run("chat", "nobody", "--no-store", "--once", "hi", *FEW)
    run("users", "show", "nobody", code=4)


def test_memory_can_be_left_out(home: Path) -> None:
    run("turns", "append", "ann", "My dog is Biscuit.")
    answer = run("chat", "ann", "--no-memory", "--once", "hi", *FEW, "--json").json
    assert (answer["adapter"], answer["stored_as"]) == (None, "ann@2")


def test_pending_turns_are_encoded_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without_model:
        without_model.setenv("MEMORY_SERVICE_BASE_MODEL", "not-pulled")
        run("turns", "append", "ann", "My dog is Biscuit.", code=4)
    answer = run("chat", "ann", "--once", "hi", "--no-memory", *FEW, "--json").json
    assert answer["stored_as"] == "ann@2"
    assert run("users", "show", "ann", "--json").json["pending_turns"] == 0


def test_bad_messages_are_named(home: Path) -> None:
    assert "text: must not be empty" in run("chat", "ann", "--once", " ", code=3).error
    assert "surrogate" in run("chat", "ann", "--once", "a\udcff", code=3).error
    outcome = run("chat", "ann", *FEW, stdin=b"fine\n\xff\xfe\n", code=3)
    assert "line 2: is not valid UTF-8 at byte 1" in outcome.error
    assert turns()[0] == ("user", "fine")
    long = run("chat", "bob", "--once", "x" * 5000, *FEW, code=3)
    assert "context" in long.error
    run("users", "show", "bob", code=4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_conversation_with_commands(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(
        ["hello", "/history", "/memory off", "x" * 5000, "two", "/memory on", "/memory", "/what",
         "/help", "", "/quit", "never"]
    )  # fmt: skip
    prompts: list[str] = []

    def read_message(prompt: str) -> str:
        prompts.append(prompt)
        return next(said)

    monkeypatch.setattr(output, "is_interactive", lambda: True)
    monkeypatch.setattr(output, "read_message", read_message)
    outcome = run("chat", "ann", *FEW)
    assert next(said) == "never"
    assert set(prompts) == {"ann> "}
    assert "nothing remembered yet" in outcome.err
    assert "user: hello" in outcome.out
    assert "memory is off" in outcome.err
    assert "no memory  now ann@2" in outcome.err
    assert "memory is on" in outcome.err
    assert "no command /what" in outcome.err
    assert "leave; Ctrl-D too" in outcome.err
    assert "context" in outcome.error
    assert [text for role, text in turns() if role == "user"] == ["hello", "two"]


def test_ctrl_d_leaves(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_message(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(output, "is_interactive", lambda: True)
    monkeypatch.setattr(output, "read_message", read_message)
    run("chat", "ann")


def test_ctrl_c_at_the_prompt_and_while_answering(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "is_interactive", lambda: True)
    monkeypatch.setattr(output, "read_message", interrupt)
    assert run("chat", "ann", code=130).err.splitlines()[-1] == "interrupted"
    monkeypatch.setattr(output, "read_message", lambda _: "hello")
    monkeypatch.setattr(output, "show_piece", interrupt)
    err = run("chat", "ann", code=130).err.splitlines()[-1]
    assert err == "interrupted: this exchange was not stored"
    run("users", "show", "ann", code=4)


def test_reading_a_message_reads_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a line\n"))
    assert output.read_message("") == "a line"
    with pytest.raises(EOFError):
        output.read_message("")


@pytest.mark.parametrize(("answer", "meant"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_question_is_asked_on_a_terminal(
    answer: str, meant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert output.confirm("Sure?") is meant
