"""Speed: how fast append, read-out, prefill and decoding are, and on what their time goes.

What is compared is measured in turns, so that both sides meet the same machine.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from memory_service.domain.chunks import Chunk
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.domain.turns import Turn
from memory_service.errors import InvalidInput, MemoryServiceError
from memory_service.generator.state import add
from memory_service.inference.base_models import BaseModel
from memory_service.inference.batch import Batch, Row
from memory_service.inference.encoder import LocalEncoder
from memory_service.inference.tokens import Tokens

LARGEST = 6
"""Operations that a profile names; the rest is summed."""

TALE = "Write a long story about a lighthouse keeper who finds a letter in a bottle."


@dataclass(frozen=True)
class Parts:
    """What is measured."""

    base: BaseModel
    tokens: Tokens
    encoder: LocalEncoder
    batch: Batch


@dataclass(frozen=True)
class Operation:
    """A torch operation, and its share of the processor time of a profile."""

    name: str
    share: float


@dataclass(frozen=True)
class Profile:
    """What a phase does, how long once takes, and its largest operations."""

    phase: str
    tokens: int
    ms: float
    operations: Sequence[Operation]


@dataclass(frozen=True)
class SpeedReport:
    """Medians of a few rounds.

    `encoding_share` is encoding's throughput over that of the base model's layers, without its
    head, on the same tokens. `decode_*` are tokens a second of one answer, its prompt read: with an
    adapter, without, and of `generate`. The adapter of an empty memory is applied, which costs
    what any does and changes no token: all three say the same.
    """

    profiles: Sequence[Profile]
    threads: int
    encoding_tokens_per_s: float
    forward_tokens_per_s: float
    encoding_share: float
    readout_ms: float
    modules: int
    decode_tokens_per_s: float
    decode_plain_tokens_per_s: float
    generate_tokens_per_s: float


def measure_speed(
    parts: Parts,
    turns: Sequence[Turn],
    rounds: int,
    new_tokens: int,
    report: Callable[[int, int], None],
) -> SpeedReport:
    """Time and profile everything; `turns` are of one session. `report` gets rounds done of all.

    Everything runs on as many threads as the process has; encoding on those of its fingerprint,
    which must be the same for its comparison to be one.

    Raises:
        InvalidInput: there is no turn to encode.
    """
    base, encoder, batch = parts.base, parts.encoder, parts.batch
    chunks = encoder.chunk(turns)
    if not chunks:
        raise InvalidInput("turns", 0, "must be at least one")
    state = encoder.empty_state()
    for chunk in chunks:
        state = add(state, encoder.encode(chunk))
    adapter = encoder.read_out(encoder.empty_state())
    prompt = parts.tokens.prompt_ids([Message("user", TALE)])
    sampling = Sampling(max_new_tokens=new_tokens)
    taken: dict[str, list[float]] = {}
    read = _Forward(base, parts.tokens, chunks)
    timed: dict[str, Callable[[], float]] = {
        "encode": lambda: _seconds(lambda: [encoder.encode(one) for one in chunks]),
        "forward": lambda: _seconds(read),
        "read-out": lambda: _seconds(lambda: encoder.read_out(state)),
        "decode": lambda: _s_per_token(batch, Row(list(prompt), adapter, sampling)),
        "plain": lambda: _s_per_token(batch, Row(list(prompt), None, sampling)),
        "generate": lambda: _generate_s_per_token(base, prompt, new_tokens),
    }
    for number in range(1, rounds + 2):
        for name, measure in timed.items():
            seconds = measure()
            if number > 1:  # a process's first calls are slow
                taken.setdefault(name, []).append(seconds)
        report(number, rounds + 1)
    took = {name: median(several) for name, several in taken.items()}
    return SpeedReport(
        profiles=_profiles(parts, chunks[0], state, prompt, adapter),
        threads=torch.get_num_threads(),
        encoding_tokens_per_s=read.count / took["encode"],
        forward_tokens_per_s=read.count / took["forward"],
        encoding_share=took["forward"] / took["encode"],
        readout_ms=1000 * took["read-out"],
        modules=len(adapter),
        decode_tokens_per_s=1 / took["decode"],
        decode_plain_tokens_per_s=1 / took["plain"],
        generate_tokens_per_s=1 / took["generate"],
    )


class _Forward:
    """A plain pass of the base model's layers over the tokens of chunks, one by one."""

    def __init__(self, base: BaseModel, tokens: Tokens, chunks: Sequence[Chunk]) -> None:
        self._model: Any = base.model
        self._ids = [torch.tensor([tokens.chunk_ids(chunk.texts)]) for chunk in chunks]
        self.count = sum(ids.shape[1] for ids in self._ids)

    @torch.inference_mode()
    def __call__(self) -> None:
        for ids in self._ids:
            self._model.get_decoder()(input_ids=ids, use_cache=False)


def _profiles(
    parts: Parts, chunk: Chunk, state: Tensor, prompt: Sequence[int], adapter: Tensor
) -> list[Profile]:
    """One for each phase."""
    encoder, batch = parts.encoder, parts.batch
    ids = parts.tokens.chunk_ids(chunk.texts)
    length = len(ids)
    long = Row([*ids, *prompt], adapter, Sampling(max_new_tokens=1))
    decoding = Row(list(prompt), adapter, Sampling(max_new_tokens=32))
    update = encoder.encode(chunk)
    _finish(batch, Row(list(long.prompt), adapter, Sampling(max_new_tokens=1)))  # warm
    made = [
        _profile("append: encode and add a chunk", length, lambda: _append(encoder, chunk, update)),
        _profile("read-out of a state", 0, lambda: encoder.read_out(state)),
        _profile("prefill with an adapter", len(long.prompt), lambda: _finish(batch, long)),
    ]
    batch.step([decoding], [])
    while not decoding.said:
        batch.step([], [])
    step = _profile("decode: one token", 1, lambda: batch.step([], []))
    batch.clear()
    return [*made, step]


def _append(encoder: LocalEncoder, chunk: Chunk, state: Tensor) -> Tensor:
    return add(state, encoder.encode(chunk))


def _profile(phase: str, tokens: int, call: Callable[[], object]) -> Profile:
    started = time.perf_counter()
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    ms = 1000 * (time.perf_counter() - started)
    times = sorted(
        ((one.self_cpu_time_total, one.key) for one in seen.key_averages()), reverse=True
    )
    total = sum(spent for spent, _ in times) or 1.0
    largest = [Operation(name.removeprefix("aten::"), spent / total) for spent, name in times]
    rest = Operation("all others", sum(one.share for one in largest[LARGEST:]))
    return Profile(phase, tokens, ms, [*largest[:LARGEST], rest])


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Leave out what the profiler's library writes to the process's stderr at start and stop."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _finish(batch: Batch, row: Row) -> Generation:
    joining = [row]
    while True:
        for _, item in batch.step(joining, []):
            if isinstance(item, MemoryServiceError):
                raise item
            if isinstance(item, Generation):
                return item
        joining = []


def _s_per_token(batch: Batch, row: Row) -> float:
    done = _finish(batch, row)
    return (done.total_s - done.first_token_s) / max(1, done.completion_tokens - 1)


def _generate_s_per_token(base: BaseModel, prompt: Sequence[int], new_tokens: int) -> float:
    """What every token after the first takes."""
    first_s, _ = _generate(base, prompt, 1)
    all_s, made = _generate(base, prompt, new_tokens)
    return max(1e-9, all_s - first_s) / max(1, made - 1)


@torch.inference_mode()
def _generate(base: BaseModel, prompt: Sequence[int], new_tokens: int) -> tuple[float, int]:
    model: Any = base.model
    ids = torch.tensor([list(prompt)])
    started = time.perf_counter()
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - started, made.shape[1] - ids.shape[1]
