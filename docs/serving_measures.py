"""What `make bench-serve` measures, one function a part; each gives its figures by name.

Whatever is compared is measured in turns in one process, so that both sides meet the same machine.
"""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import torch

from memory_service.bootstrap import Inference, load_inference, models_folder, open_service
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Message, Sampling
from memory_service.domain.turns import new_turn
from memory_service.generator.adapter import lora_of_readouts, write_peft
from memory_service.inference import base_models
from memory_service.inference.batch import Batch, Row
from memory_service.inference.key_values import KeyValues
from memory_service.services.exchange import Asked, Mode
from memory_service.settings import read_settings

Figures = Mapping[str, float]

ROWS = 16
ANSWER_TOKENS = 64
ROUNDS = 3
QUESTION = "What do you remember about my week?"
TALE = (
    "went market Saturday bought apples bread lamp kitchen sister called library Leeds dog slept "
    "afternoon cousin train garden rain letter piano doctor cake river bicycle window summer"
)
WORDS = TALE.split()


def batches() -> Figures:
    """Answers of 16 users together, one after another, without adapters, and through PEFT."""
    inference = load_inference(read_settings(), _quiet)
    batch = _endless(inference.batch)
    prompts = [_tokens(inference, 30, seed) for seed in range(ROWS)]
    adapters = _adapters(inference, ROWS)
    with tempfile.TemporaryDirectory() as folder:
        peft = _peft_model(inference, adapters, Path(folder))
    speeds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in (
            ("together", lambda: _decode(batch, prompts, adapters)),
            ("base", lambda: _decode(batch, prompts, [None] * ROWS)),
            ("peft", lambda: _peft_decode(peft, prompts)),
            ("one by one", lambda: _one_by_one(batch, prompts, adapters)),
        ):
            started = time.perf_counter()
            run()
            passed_s = time.perf_counter() - started
            speeds.setdefault(name, []).append(ROWS * ANSWER_TOKENS / passed_s)
    return {f"{name}, tokens/s": statistics.median(several) for name, several in speeds.items()}


def history() -> Figures:
    """First tokens of a user with 10 turns of history and of one with 1,000, same window."""
    return asyncio.run(_history())


def context() -> Figures:
    """First tokens with the history in the prompt, with its keys and values kept, and ours."""
    inference = load_inference(read_settings(), _quiet)
    batch = _endless(inference.batch)
    most: int = inference.base.model.config.max_position_embeddings
    question = inference.tokens.prompt_ids([Message("user", QUESTION)])
    told = _tokens(inference, most - len(question) - ANSWER_TOKENS, 0)
    (adapter,) = _adapters(inference, 1)
    whole = _first_token(batch, Row([*told, *question], None, _sampling()))
    reading = Row([*told, question[0]], None, _sampling())
    while not reading.said:
        batch.step([] if reading.read else [reading], [])
    kept = KeyValues()
    kept.take(batch._running.key_values, 0)  # no server of ours keeps these
    kept.cut(0, len(told))
    batch.clear()
    ours, cached = [], []
    for _ in range(10):
        ours.append(_first_token(batch, Row(question, adapter, _sampling())))
        again = Row([*told, *question], None, _sampling(), read=len(told), kept=kept)
        cached.append(_first_token(batch, again))
    return {
        "prompt tokens, whole": len(told) + len(question),
        "prompt tokens, ours": len(question),
        "whole, first token s": whole[0],
        "whole, token s": whole[1],
        "kept, first token s": statistics.median(one[0] for one in cached),
        "kept, token s": statistics.median(one[1] for one in cached),
        "kept, bytes": kept.size_bytes(len(told)),
        "ours, first token s": statistics.median(one[0] for one in ours),
        "ours, token s": statistics.median(one[1] for one in ours),
        "ours, bytes": adapter.numel() * adapter.element_size(),
    }


def append() -> Figures:
    """Appends to `memory serve` while eight streams decode."""
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), {}) as (_, address):
        return asyncio.run(_appends(address, streams=8, appends=300, pause_s=0.1))


def resident() -> Figures:
    """Resident memory of a server on a tiny random model after 100 and after 10,000 requests."""
    from tests.helpers.command_line import make_tiny_model  # noqa: PLC0415  # not installed

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny_model(folder / "tiny")
        model = {
            "MEMORY_SERVICE_BASE_MODEL": str(folder / "tiny" / "base"),
            "MEMORY_SERVICE_GENERATOR": str(folder / "tiny" / "generator.safetensors"),
            "OMP_NUM_THREADS": "1",
        }
        with _server(folder, model) as (process, address):
            return asyncio.run(_requests(process.pid, address, (100, 1_000, 10_000)))


PARTS: Mapping[str, Callable[[], Figures]] = {
    "batches": batches,
    "history": history,
    "context": context,
    "append": append,
    "resident": resident,
}


def _quiet(_: str) -> None:
    """Say nothing."""


def _sampling() -> Sampling:
    return Sampling(max_new_tokens=ANSWER_TOKENS)


def _tokens(inference: Inference, count: int, seed: int) -> list[int]:
    """A prompt of so many tokens, of ordinary words."""
    random = Random(seed)  # noqa: S311  # no secret
    words = [random.choice(WORDS) for _ in range(count)]
    return inference.tokens.ids(" ".join(words))[:count]


def _adapters(inference: Inference, count: int) -> list[torch.Tensor]:
    """Adapters of what so many different people said."""
    made = []
    for number in range(count):
        turn = new_turn(f"My name is Ann{number} and I live at number {number}.")
        state = sum(
            (inference.encoder.encode(chunk) for chunk in inference.encoder.chunk([turn])),
            inference.generator.empty_state(),
        )
        made.append(inference.encoder.read_out(state).to(inference.base.model.dtype))
    return made


def _endless(batch: Batch) -> Batch:
    """Every answer takes all its tokens, so that all sides make the same number."""
    batch._stop_ids = frozenset()
    return batch


def _decode(
    batch: Batch, prompts: Sequence[list[int]], adapters: Sequence[torch.Tensor | None]
) -> None:
    rows = [
        Row(list(prompt), adapter, _sampling())
        for prompt, adapter in zip(prompts, adapters, strict=True)
    ]
    batch.step(rows, [])
    while batch.rows:
        batch.step([], [])


def _one_by_one(
    batch: Batch, prompts: Sequence[list[int]], adapters: Sequence[torch.Tensor]
) -> None:
    for prompt, adapter in zip(prompts, adapters, strict=True):
        _decode(batch, [prompt], [adapter])


def _first_token(batch: Batch, row: Row) -> tuple[float, float]:
    """Seconds to the first token, and a token after it."""
    started = time.perf_counter()
    batch.step([row], [])
    while not row.said:
        batch.step([], [])
    first_s = time.perf_counter() - started
    while batch.rows:
        batch.step([], [])
    return first_s, (time.perf_counter() - started - first_s) / (ANSWER_TOKENS - 1)


def _peft_model(inference: Inference, adapters: Sequence[torch.Tensor], folder: Path) -> Any:
    """Another copy of the base model, with all adapters loaded into PEFT."""
    from peft import PeftModel  # noqa: PLC0415  # a development dependency

    settings = read_settings()
    files = base_models.find(settings.base_model, cache_dir=models_folder(settings))
    dtype = inference.generator.config.dtype
    plain = base_models.load(files, dtype=dtype).model
    for number, adapter in enumerate(adapters):
        factors = lora_of_readouts(inference.generator, adapter)
        write_peft(inference.generator, factors, folder / f"{number}", files.name, dtype)
    model = PeftModel.from_pretrained(plain, str(folder / "0"), adapter_name="0")
    for number in range(1, len(adapters)):
        model.load_adapter(str(folder / f"{number}"), adapter_name=f"{number}")
    return model.to(dtype).eval()


@torch.inference_mode()
def _peft_decode(model: Any, prompts: Sequence[list[int]]) -> None:
    ids = torch.tensor(prompts)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER_TOKENS,
        min_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        adapter_names=[f"{number}" for number in range(len(prompts))],
        pad_token_id=0,
    )


async def _history() -> Figures:
    with tempfile.TemporaryDirectory() as folder, _environment(_home(Path(folder))):
        _upgrade()
        async with open_service(read_settings(), _quiet) as service:
            random = Random(0)  # noqa: S311
            users = {turns: MemoryId(f"user-{turns}") for turns in (10, 1_000)}
            for turns, user in users.items():
                for first in range(0, turns, 50):
                    said = [_line(random) for _ in range(min(50, turns - first))]
                    session = f"session {first}"
                    made = [new_turn(text, session=session) for text in said]
                    await service.store.append.turns(user, made)
                await service.remember.encode_pending(user)
            taken: dict[int, list[float]] = {turns: [] for turns in users}
            for _ in range(20):
                for turns, user in users.items():
                    asked = Asked(
                        [Message("user", QUESTION)],
                        Sampling(max_new_tokens=1),
                        user,
                        Mode.READ,
                        session="today",
                    )
                    started = time.perf_counter()
                    async with service.exchange.begin(asked) as begun, aclosing(begun.pieces):
                        await anext(begun.pieces)
                    taken[turns].append(time.perf_counter() - started)
    return {f"{turns} turns, first token s": statistics.median(s) for turns, s in taken.items()}


def _line(random: Random) -> str:
    return " ".join(random.choice(WORDS) for _ in range(12)) + "."


async def _appends(address: str, *, streams: int, appends: int, pause_s: float) -> Figures:
    """Times of appends to many users, each in its turn, while streams decode all the time."""
    taken: list[float] = []
    tokens = 0
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def stream() -> None:
            nonlocal tokens
            body = {
                "model": model,
                "messages": [{"role": "user", "content": "Tell a long story."}],
                "max_tokens": 400,
                "temperature": 1,
                "stream": True,
            }
            while True:
                async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    async for line in response.aiter_lines():
                        tokens += line.startswith("data: {")

        running = [asyncio.create_task(stream()) for _ in range(streams)]
        await asyncio.sleep(3)
        began, tokens = time.perf_counter(), 0
        random = Random(0)  # noqa: S311
        for number in range(appends):
            body = {"turns": [{"text": _line(random), "session": "today"}]}
            started = time.perf_counter()
            response = await client.post(f"/v1/memory/users/user{number % 40}/turns", json=body)
            taken.append(time.perf_counter() - started)
            response.raise_for_status()
            await asyncio.sleep(pause_s)
        passed_s = time.perf_counter() - began
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    cuts = statistics.quantiles(taken, n=100)
    return {
        "p50 s": statistics.median(taken),
        "p99 s": cuts[98],
        "appends": appends,
        "streamed tokens/s": tokens / passed_s,
    }


async def _requests(pid: int, address: str, counts: Sequence[int]) -> Figures:
    """Resident bytes after so many requests: 50 users, each chatting on in sessions of its own."""
    figures: dict[str, float] = {}
    done = 0
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def ask(number: int) -> None:
            body = {
                "model": model,
                "user": f"user{number % 50}",
                "messages": [{"role": "user", "content": f"This is message {number}."}],
                "max_tokens": 2,
                # One in ten is stored and encoded, so that the memories do not grow for ever.
                "memory": {
                    "mode": "read" if number % 10 else "read_write",
                    "session": f"session {number // 5000}",
                },
            }
            (await client.post("/v1/chat/completions", json=body)).raise_for_status()

        for count in counts:
            while done < count:
                await asyncio.gather(*(ask(done + one) for one in range(min(8, count - done))))
                done += min(8, count - done)
            await asyncio.sleep(3)
            figures[f"{count} requests, bytes"] = _resident_bytes(pid)
    return figures


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells no resident memory")


def _home(folder: Path) -> dict[str, str]:
    return {
        "MEMORY_SERVICE_DATABASE_URL": f"sqlite:///{folder / 'memory.db'}",
        "MEMORY_SERVICE_REQUESTS_PER_MINUTE": "0",
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _upgrade() -> None:
    command = [sys.executable, "-m", "memory_cli", "db", "upgrade"]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603  # our own


@contextmanager
def _server(folder: Path, settings: Mapping[str, str]) -> Iterator[tuple[Any, str]]:
    """A server of its own process and database, and its address."""
    with _environment({**_home(folder), **settings}):
        _upgrade()
        command = [sys.executable, "-m", "memory_cli", "serve", "--port", "0"]
        said = (folder / "serve.log").open("w+", encoding="utf-8")
        process = subprocess.Popen(command, stderr=said)  # noqa: S603  # our own
    try:
        yield process, _address(folder / "serve.log", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        said.close()


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    while process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if "listening on " in line:
                return line.split("listening on ")[1].strip()
        time.sleep(0.2)
    raise RuntimeError(f"the server ended: {log.read_text(encoding='utf-8')}")
