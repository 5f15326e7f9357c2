"""Clients that no one here wrote, and some that behave badly, against a real server."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.helpers.command_line import run
from tests.helpers.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SAID = [{"role": "user", "content": "My dog is called Rex."}]
DEADLINE_S = 6.0


@pytest.fixture
def address(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MEMORY_SERVICE_DEADLINE_S", str(DEADLINE_S))
    monkeypatch.setenv("MEMORY_SERVICE_BATCH_ROWS", "1")
    with serving() as (_, address):
        yield address


@pytest.fixture
def ask(address: str) -> dict:
    model = httpx.get(f"{address}/v1/models").json()["data"][0]["id"]
    return {"model": model, "messages": SAID, "max_tokens": 6, "temperature": 0}


def test_the_openai_sdk_sync_async_and_streaming(address: str, ask: dict) -> None:
    client = openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0)
    whole = client.chat.completions.create(**ask)
    text = whole.choices[0].message.content
    chunks = [*client.chat.completions.create(**ask, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text

    async def asynchronous() -> list[str | None]:
        async with openai.AsyncOpenAI(api_key="none", base_url=f"{address}/v1") as client:
            made = await client.chat.completions.create(**ask)
            stream = await client.chat.completions.create(**ask, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [made.choices[0].message.content, "".join(pieces)]

    assert asyncio.run(asynchronous()) == [text, text]


LITELLM = """
import json, sys, litellm
ask = json.loads(sys.argv[1])
whole = litellm.completion(**ask)
chunks = [*litellm.completion(**ask, stream=True)]
pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
print(json.dumps([whole.choices[0].message.content or "", "".join(pieces)]))
"""


def test_litellm_as_of_any_openai_compatible_server(address: str, ask: dict) -> None:
    # In a process of its own, as it leaves event loops open. It sends `user=` only for models that
    # it knows; what is in `extra_body` it always sends.
    asked = ask | {"model": f"openai/{ask['model']}", "extra_body": {"user": "ann"}}
    asked |= {"api_base": f"{address}/v1", "api_key": "none"}
    command = [sys.executable, "-c", LITELLM, json.dumps(asked)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, streamed = json.loads(done.stdout)
    texts = [one["text"] for one in run("turns", "list", "ann", "--json").json]
    assert SAID[0]["content"] in texts
    assert whole in texts
    assert isinstance(streamed, str)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(address: str, ask: dict) -> None:
    def curl(body: dict) -> str:
        url = f"{address}/v1/chat/completions"
        command = ["curl", "-sS", url, "-H", "Content-Type: application/json"]
        command += ["-d", json.dumps(body)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    text = json.loads(curl(ask))["choices"][0]["message"]["content"]
    lines = [line for line in curl(ask | {"stream": True}).splitlines() if line]
    assert lines.pop() == "data: [DONE]"
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines]
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_a_body_of_20_megabytes_is_refused(address: str) -> None:
    body = b'{"model": "' + b"x" * 20_000_000 + b'"}'
    answer = httpx.post(
        f"{address}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "invalid_input"


def test_a_client_that_stops_reading_holds_up_nobody_for_long(address: str, ask: dict) -> None:
    parts = urlsplit(address)
    body = json.dumps(ask | {"max_tokens": 3500, "stream": True}).encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((parts.hostname, parts.port))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        time.sleep(0.5)
        assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
        made = {"turns": [{"text": "Hi"}]}
        assert httpx.post(f"{address}/v1/memory/users/ann/turns", json=made).is_success
        waiting = httpx.post(f"{address}/v1/chat/completions", json=ask, timeout=60)
        if waiting.status_code == 504:  # it waited as long as the deaf one may take: then no more
            waiting = httpx.post(f"{address}/v1/chat/completions", json=ask, timeout=60)
        assert waiting.status_code == 200
