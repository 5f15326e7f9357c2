"""The whole way by the command line; what must survive a restart in a process of its own."""

import json
from pathlib import Path

from tests.helpers.command_line import run, start

PATIENCE_S = 90.0
CHAT = ("chat", "ann", "--no-store", "--max-tokens", "8", "--json", "--once", "Who am I?")


def memory(*arguments: str, stdin: str = "") -> str:
    process = start(*arguments)
    out, err = process.communicate(stdin.encode(), timeout=PATIENCE_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


def test_remember_restart_chat_forget(empty_home: Path) -> None:
    assert memory("db", "upgrade").startswith("from nothing to ")
    said = [
        {"role": "user", "text": "My dog is called Biscuit.", "session": "monday", "id": "1"},
        {"role": "assistant", "text": "What a name!", "session": "monday", "id": "2"},
    ]
    appended = memory("turns", "append", "ann", stdin="\n".join(json.dumps(one) for one in said))
    assert appended == "ann@1: 2 new turns\n"

    restarted = json.loads(memory(*CHAT))
    again, without = run(*CHAT).json, run(*CHAT, "--no-memory").json
    assert restarted["adapter"] == "ann@1"
    assert restarted["answer"] == again["answer"]  # the same adapter in another process
    assert restarted["answer"] != without["answer"]  # and it is applied
    assert restarted["prompt_tokens"] == without["prompt_tokens"]  # and is not in the prompt

    run("chat", "ann", "--max-tokens", "4", stdin="one\ntwo\n")
    shown = run("adapters", "show", "ann", "--json").json
    assert shown["version"] == 3
    sessions = {chunk["session"] for chunk in shown["made_from"]}
    assert len(sessions) == 2
    assert "monday" in sessions

    run("adapters", "export", "ann", "lora")
    assert (empty_home / "lora" / "adapter_model.safetensors").stat().st_size > 0
    memory("users", "delete", "ann", "--yes")
    assert run("users", "list", "--json").json == []
