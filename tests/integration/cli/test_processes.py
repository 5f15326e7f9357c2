"""`memory` as a process of its own: Ctrl-C, SIGKILL, pipes, and how fast it starts."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command_line import run, start

PATIENCE_S = 60.0


def stored(home: Path) -> int:
    with sqlite3.connect(home / "memory.db") as database:
        return int(database.execute("SELECT count(*) FROM turns").fetchone()[0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def send(process: subprocess.Popen[bytes], *numbers: int) -> None:
    assert process.stdin is not None
    for number in numbers:
        process.stdin.write(json.dumps({"text": f"turn {number}"}).encode() + b"\n")
    process.stdin.flush()


def texts() -> list[str]:
    return [turn["text"] for turn in run("turns", "list", "ann", "--json").json]


def test_turns_of_a_slow_writer_are_stored_as_they_come_and_survive_a_kill(home: Path) -> None:
    process = start("turns", "append", "ann")
    send(process, 0)
    wait_until(lambda: stored(home) == 1)
    send(process, 1, 2)
    wait_until(lambda: stored(home) == 3)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert texts() == ["turn 0", "turn 1", "turn 2"]
    assert run("turns", "append", "ann", "turn 3").out == "ann@1: 1 new turn\n"
    assert run("users", "show", "ann", "--json").json["pending_turns"] == 0


def test_ctrl_c_while_reading_lines_says_what_is_stored(home: Path) -> None:
    process = start("turns", "append", "ann")
    send(process, 0, 1)
    wait_until(lambda: stored(home) == 2)
    assert process.stdin is not None
    process.stdin.write(b'{"text": "half a li')  # never finished, so never a turn
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert out == b""
    (line,) = err.decode().splitlines()
    told = ("interrupted: at least ", "interrupted: something may be stored already")
    assert line.startswith(told)
    assert texts() == ["turn 0", "turn 1"]


def test_ctrl_c_while_starting_or_encoding_leaves_the_turn_stored(home: Path) -> None:
    for number, delay_s in enumerate((0.0, 0.3, 0.7, 1.5), start=1):
        process = start("turns", "append", "ann", f"turn {number}")
        wait_until(lambda number=number: stored(home) == number)
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in {130, 0}  # 0 where it was quicker
        lines = err.decode().splitlines()
        assert len(lines) <= 1, lines
        told = ("interrupted: 1 new turn stored", "interrupted: something may be stored already")
        assert not lines or lines[0].startswith(told)
    assert texts() == ["turn 1", "turn 2", "turn 3", "turn 4"]
    run("turns", "append", "ann", "turn 5")
    assert run("users", "show", "ann", "--json").json["pending_turns"] == 0


def test_ctrl_c_in_a_finalizer_is_not_lost() -> None:
    code = (
        "import signal, time\n"
        "from memory_cli import interrupts, main\n"
        "class Late:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "interrupts.listen()\n"
        "with main.exits():\n"
        "    late = Late()\n"
        "    del late\n"
        "    time.sleep(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


def test_a_kill_while_encoding_loses_no_turn_and_counts_none_twice(home: Path) -> None:
    data = "".join(json.dumps({"text": f"turn {n}", "id": str(n)}) + "\n" for n in range(300))
    (home / "turns.jsonl").write_text(data)
    with (home / "turns.jsonl").open("rb") as stdin:
        process = start("turns", "append", "ann", stdin=stdin)
        wait_until(lambda: stored(home) == 300)
        time.sleep(1.5)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    again = run("turns", "append", "ann", stdin=data)
    assert "0 new turns, 300 known before" in again.out
    run("turns", "append", "bob", stdin=data)
    digests = {
        name: run("adapters", "show", name, "--json").json["state_digest"]
        for name in ("ann", "bob")
    }
    assert digests["ann"] == digests["bob"]


def test_ctrl_c_in_a_chat_over_a_pipe(home: Path) -> None:
    process = start("chat", "ann", "--max-tokens", "3")
    assert process.stdin is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    wait_until(lambda: stored(home) >= 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1].startswith("interrupted")
    assert texts()[0] == "hello"


def test_a_closed_pipe_ends_silently(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_SERVICE_BASE_MODEL", "not-pulled")  # to store without encoding
    data = "".join(json.dumps({"text": "x" * 900}) + "\n" for _ in range(400))
    run("turns", "append", "ann", stdin=data, code=4)
    for arguments in (["turns", "list", "ann"], ["turns", "list", "ann", "--json"]):
        with start(*arguments) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.wait(PATIENCE_S) == 141
            assert process.stderr.read() == b""


def test_a_full_disk_behind_stdout_is_an_error(home: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("users", "list", stdout=full)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 9
    assert err.decode() == "error: No space left on device [unavailable]\n"


def test_looking_needs_neither_torch_nor_transformers(home: Path) -> None:
    run("turns", "append", "ann", "hello")
    code = (
        "import sys; from memory_cli.main import build_app\n"
        "try: build_app()(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'litellm'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    for arguments in (
        ["turns", "list", "ann"],
        ["users", "list"],
        ["users", "show", "ann"],
        ["users", "delete", "ann", "--yes"],
        ["adapters", "list", "ann"],
        ["db", "current"],
        ["models", "list"],
        ["--help"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            check=False,
            capture_output=True,
            timeout=PATIENCE_S,
            env=os.environ,
        )
        assert done.returncode == 0, (arguments, done.stderr.decode())
