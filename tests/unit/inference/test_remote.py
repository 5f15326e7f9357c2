"""Answers of an engine elsewhere: what goes over the wire, what must not, and what comes back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter, Ending, Generation, Message, Sampling
from memory_service.errors import (
    InvalidInput,
    MemoryServiceError,
    Overloaded,
    Rejected,
    StateConflict,
    Timeout,
    Unavailable,
)
from memory_service.inference.litellm import RemoteBackend
from memory_service.inference.remote_adapters import EngineAddress, RemoteAdapters
from memory_service.services.compute import Compute
from tests.helpers.stub_engine import StubEngine, stub_engine
from tests.helpers.tiny_generator import random_readouts
from tests.helpers.tiny_inference import tiny_inference
from tests.helpers.tiny_model import tiny_llama

TINY = tiny_inference()
READOUTS = list(3 * random_readouts(TINY.generator, 4).bfloat16())
ANN, BOB = MemoryId("ann"), MemoryId("bob")
# peft 0.21 reads a property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

HELLO = [Message("user", "Hello")]


def adapter(owner: MemoryId, version: int) -> AppliedAdapter:
    return AppliedAdapter(owner, version, READOUTS[version])


@pytest.fixture
def engine() -> Iterator[StubEngine]:
    with stub_engine() as running:
        yield running


class Remote:
    def __init__(self, engine: StubEngine, folder: Path, most: int = 16, deadline_s: float = 20):
        self.compute, self.folder = Compute(), folder
        self.address = EngineAddress(engine.url, "sesame")
        self.adapters = RemoteAdapters(
            TINY.generator, "tiny", self.address, folder, self.compute.run, most
        )
        self.backend = RemoteBackend(self.adapters, TINY.tokens, self.address, deadline_s)

    async def answer(self, applied=None, sampling: Sampling | None = None) -> Generation:
        stream = self.backend.stream(HELLO, applied, sampling or Sampling())
        pieces = [piece async for piece in stream]
        assert isinstance(pieces[-1], Generation)
        assert "".join(pieces[:-1]) == pieces[-1].text
        return pieces[-1]


@pytest.fixture
async def remote(engine: StubEngine, tmp_path: Path) -> AsyncIterator[Remote]:
    made = Remote(engine, tmp_path / "engine")
    await made.adapters.start()
    yield made
    await made.backend.stop()
    made.compute.close()


async def test_the_engine_answers_with_the_adapter(engine: StubEngine, remote: Remote) -> None:
    sampling = Sampling(9, 0.5, 0.9, 7, 5, 0.1, 1.2, ("END",))
    made = await remote.answer(adapter(ANN, 1), sampling)
    assert (made.text, made.prompt_tokens, made.completion_tokens) == ("Rex.", 11, 3)
    assert made.ending is Ending.STOP
    assert 0 < made.first_token_s <= made.total_s
    (sent,) = engine.bodies("chat/completions")
    assert sent["model"] in engine.loaded
    assert sent["messages"] == [{"role": "user", "content": "Hello"}]
    assert {name: sent[name] for name in ("max_tokens", "temperature", "top_p", "seed")} == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
    }
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"]) == (5, 0.1, 1.2)
    assert sent["stop"] == ["END"]
    assert sent["stream_options"] == {"include_usage": True}


async def test_names_tell_nobody_whose_it_is(engine: StubEngine, remote: Remote) -> None:
    await remote.answer(adapter(MemoryId("ann-of-acme", "acme-tenant"), 1))
    for path, _, everything in engine.requests:
        assert "ann-of-acme" not in everything, path
        assert "acme-tenant" not in everything, path
        assert "sesame" in everything, path  # the engine's key, and only to the engine


async def test_what_it_loads_is_the_adapter(engine: StubEngine, remote: Remote) -> None:
    async with remote.adapters.held(adapter(ANN, 2)) as name:
        model = PeftModel.from_pretrained(tiny_llama(), engine.loaded[name])
        question = torch.tensor([[1, 70, 80, 90]])
        with torch.no_grad():
            theirs = model(input_ids=question).logits
            with TINY.injector.apply(READOUTS[2].float()[None]):
                ours = TINY.base.model(input_ids=question).logits
    assert torch.allclose(theirs, ours, atol=0.05)  # it is written in bfloat16
    assert not torch.allclose(TINY.base.model(input_ids=question).logits, ours, atol=0.05)


async def test_no_memory_is_an_adapter_of_zeros(engine: StubEngine, remote: Remote) -> None:
    await remote.answer(None)
    assert engine.bodies("chat/completions")[0]["model"] in engine.loaded


async def test_one_adapter_is_loaded_once_and_replaced_by_the_next(
    engine: StubEngine, remote: Remote
) -> None:
    await asyncio.gather(*(remote.answer(adapter(ANN, 1)) for _ in range(5)))
    assert len(engine.bodies("load_lora_adapter")) == 1
    await remote.answer(adapter(BOB, 2))
    (old,) = [
        name for name in engine.loaded if name != engine.bodies("chat/completions")[-1]["model"]
    ]
    await remote.answer(adapter(ANN, 3))
    assert old not in engine.loaded
    assert len(engine.loaded) == 2
    assert {path.name for path in remote.folder.iterdir()} == set(engine.loaded)


async def test_the_eldest_goes_when_there_is_no_room(engine: StubEngine, tmp_path: Path) -> None:
    made = Remote(engine, tmp_path / "engine", most=2)
    for version, user in enumerate(("ann", "bob", "cid")):
        await made.answer(adapter(MemoryId(user), version))
    used = [body["model"] for body in engine.bodies("chat/completions")]
    assert set(engine.loaded) == set(used[1:])
    await made.backend.stop()
    assert not engine.loaded
    assert not [*made.folder.iterdir()]
    made.compute.close()


async def test_forgotten_means_gone_from_the_engine(engine: StubEngine, remote: Remote) -> None:
    engine.go_on.clear()
    stream = remote.backend.stream(HELLO, adapter(ANN, 1), Sampling())
    async with aclosing(stream):
        assert await anext(stream) == "Re"
        remote.backend.withdraw(ANN)
        engine.go_on.set()
        with pytest.raises(StateConflict, match="forgotten"):
            await anext(stream)
    assert not engine.loaded
    assert not [*remote.folder.iterdir()]
    await remote.answer(adapter(BOB, 1))  # nobody else is concerned


async def test_an_engine_that_was_restarted_is_given_the_adapter_again(
    engine: StubEngine, remote: Remote
) -> None:
    await remote.answer(adapter(ANN, 1))
    engine.loaded.clear()
    assert (await remote.answer(adapter(ANN, 1))).text == "Rex."
    assert len(engine.bodies("load_lora_adapter")) == 2


async def test_a_new_process_takes_back_what_a_killed_one_left(
    engine: StubEngine, tmp_path: Path
) -> None:
    killed = Remote(engine, tmp_path / "engine")
    await killed.answer(adapter(ANN, 1))
    await killed.backend.hang_up()
    killed.compute.close()
    (name,) = engine.loaded
    begun = Remote(engine, tmp_path / "engine")
    await begun.adapters.start()
    assert name not in engine.loaded
    assert not [*begun.folder.iterdir()]
    await begun.backend.stop()
    begun.compute.close()


SECRET = "my dog Rex has fleas"


@pytest.mark.parametrize(
    ("route", "status", "message", "kind"),
    [
        ("chat/completions", 429, "busy", Overloaded),
        ("chat/completions", 401, "who", Rejected),
        ("chat/completions", 400, "bad", Rejected),
        ("chat/completions", 400, "This model's maximum context length is 10 tokens", InvalidInput),
        ("chat/completions", 500, "oops", Unavailable),
        ("chat/completions", 503, "later", Unavailable),
        ("load_lora_adapter", 400, "LoRA rank 8 is greater than max_lora_rank", Rejected),
    ],
)
async def test_refusals_are_errors_of_ours(
    engine: StubEngine,
    remote: Remote,
    route: str,
    status: int,
    message: str,
    kind: type[MemoryServiceError],
) -> None:
    error = {"message": f"{message}: {SECRET}", "type": "x", "code": status}
    engine.refuses[route] = (status, {"error": error})
    with pytest.raises(kind) as raised:
        await remote.answer(adapter(ANN, 1))
    assert SECRET not in str(raised.value)
    del engine.refuses[route]
    assert (await remote.answer(adapter(ANN, 1))).text == "Rex."


async def test_a_deadline_ends_a_slow_answer(engine: StubEngine, tmp_path: Path) -> None:
    made = Remote(engine, tmp_path / "engine", deadline_s=1.5)
    engine.go_on.clear()
    with pytest.raises(Timeout):
        await made.answer(adapter(ANN, 1))
    engine.go_on.set()
    await made.backend.stop()
    made.compute.close()


async def test_an_engine_that_is_down_is_unavailable(tmp_path: Path) -> None:
    with stub_engine() as gone:
        pass
    made = Remote(gone, tmp_path / "engine")
    with pytest.raises(Unavailable, match="MEMORY_SERVICE_ENGINE_URL"):
        await made.answer(adapter(ANN, 1))
    await made.backend.stop()
    made.compute.close()


async def test_length_is_told(engine: StubEngine, remote: Remote) -> None:
    engine.finish_reason = "length"
    assert (await remote.answer()).ending is Ending.LENGTH
