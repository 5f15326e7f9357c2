"""`memory serve` as a process: real sockets, a kill in the middle, a graceful stop."""

import os
import signal
from pathlib import Path

import httpx
import openai
import pytest

from tests.helpers.command_line import run
from tests.helpers.serving import serving

START_S = 300


@pytest.mark.slow
@pytest.mark.timeout(2 * START_S)
def test_what_was_acknowledged_survives_a_kill_and_a_stream_a_stop(home: Path) -> None:
    acknowledged = []
    with serving() as (process, address):
        client = openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0)
        (model,) = [one.id for one in client.models.list()]
        ask = {"model": model, "user": "ann", "temperature": 0, "max_tokens": 5}
        for number in range(5):
            text = f"Fact {number}."
            client.chat.completions.create(messages=[{"role": "user", "content": text}], **ask)
            acknowledged.append(text)
        url = f"{address}/v1/memory/users/ann/turns"
        assert httpx.post(url, json={"turns": [{"text": "By the way.", "id": "x"}]}).is_success
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    texts = [one["text"] for one in run("turns", "list", "ann", "--json").json]
    assert [text for text in texts if text.startswith("Fact")] == acknowledged
    assert "By the way." in texts

    with serving() as (process, address):
        client = openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0)
        stream = client.chat.completions.create(
            messages=[{"role": "user", "content": "Go on."}],
            stream=True,
            **(ask | {"max_tokens": 60, "temperature": 1}),
        )
        first = next(iter(stream))
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason in {"stop", "length"}
        assert {first.id} == {chunk.id for chunk in rest}
        assert process.wait(timeout=60) == 0
    assert "Go on." in [one["text"] for one in run("turns", "list", "ann", "--json").json]


@pytest.mark.slow
@pytest.mark.timeout(START_S)
def test_a_memory_deleted_by_another_process_says_no_further_token(home: Path) -> None:
    run("turns", "append", "ann", "My dog is called Rex.")
    with serving() as (_, address):
        body = {
            "model": httpx.get(f"{address}/v1/models").json()["data"][0]["id"],
            "user": "ann",
            "messages": [{"role": "user", "content": "Go on."}],
            "max_tokens": 3000,
            "temperature": 0,  # of the tiny model, without an end
            "memory": {"mode": "read"},
            "stream": True,
        }
        url = f"{address}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            assert response.headers["X-Memory-Version"] == "1"
            run("users", "delete", "ann", "--yes")
            rest = [line for line in lines if line]
        assert "was forgotten while it answered" in rest[-1]
        again = httpx.post(url, json=body | {"stream": False, "max_tokens": 3}, timeout=60)
        assert "X-Memory-Version" not in again.headers


def test_nobody_else_is_served_without_a_key(home: Path) -> None:
    outcome = run("serve", "--host", "0.0.0.0", code=8)
    assert "memory keys create" in outcome.error


def test_keys_are_made_listed_and_revoked(home: Path) -> None:
    made = run("keys", "create", "acme", "--scope", "read,admin", "--json").json
    (listed,) = run("keys", "list", "--json").json
    assert listed == {name: made[name] for name in listed}
    assert made["scopes"] == ["admin", "read"]
    assert made["key"] not in run("keys", "list").out
    run("keys", "revoke", made["id"])
    assert run("keys", "list", "--json").json[0]["revoked_at"]
    assert "no key named" in run("keys", "revoke", "nothing", code=4).error
    assert "read, write, admin" in run("keys", "create", "acme", "--scope", "all", code=3).error
