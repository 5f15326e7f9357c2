"""An update is a function of its chunk, to the last bit, and the fingerprint says of what else."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from memory_service.domain.chunks import Chunk
from memory_service.domain.memory import Fingerprint
from memory_service.domain.turns import Turn, new_turn
from memory_service.errors import IncompatibleState
from memory_service.generator.config import Encoding, EncodingConfig, RidgeConfig, SvdConfig
from memory_service.generator.generator import Generator
from memory_service.generator.hidden_states import layer_inputs
from memory_service.generator.injection import Injector
from memory_service.generator.state import add, digest
from memory_service.inference.base_models import BaseModel
from memory_service.inference.encoder import LocalEncoder
from memory_service.inference.tokens import Tokens
from tests.helpers.tiny_generator import DOWN_PROJ, FLOAT32, O_PROJ, tiny_config, tiny_generator
from tests.helpers.tiny_model import tiny_llama, tiny_tokenizer

BFLOAT16 = replace(FLOAT32, dtype="bfloat16")
SEQUENTIAL = replace(FLOAT32, encoding=Encoding.SEQUENTIAL)
BOS = 1


def tiny_base(dtype: torch.dtype = torch.float32, begin: bool = False) -> BaseModel:
    """`begin`: the tokenizer puts a BOS before every text, as Mistral's and Llama's do."""
    tokenizer = tiny_tokenizer()
    if begin:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", BOS)]
        )
    return BaseModel(tiny_llama().to(dtype), tokenizer, "base digest", "tokenizer digest")


def make(
    encoding: EncodingConfig = FLOAT32,
    readout: RidgeConfig | SvdConfig | None = None,
    base: BaseModel | None = None,
    seed: int = 0,
) -> LocalEncoder:
    generator = tiny_generator(tiny_config(readout, (O_PROJ, DOWN_PROJ), encoding), seed)
    base = base or tiny_base(generator.config.dtype)
    return LocalEncoder(base, Tokens(base), generator, Injector(base.model, generator))


def turns(*texts: str) -> list[Turn]:
    return [
        new_turn(text, session="s", time=datetime(2026, 3, 1, 12, n, tzinfo=UTC), turn_id=f"t{n}")
        for n, text in enumerate(texts)
    ]


def chunks_of(encoder: LocalEncoder, *texts: str) -> list[Chunk]:
    return encoder.chunk(turns(*texts))


def three_chunks(encoder: LocalEncoder) -> list[Chunk]:
    made = chunks_of(encoder, *(f"My {pet} is called {pet[::-1]}." for pet in ("cat", "dog", "ox")))
    assert len(made) == 3
    return made


@contextmanager
def outer_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    assert torch.get_num_threads() == count, "the encoder must put the caller's threads back"
    torch.set_num_threads(before)


# A pure function


@pytest.mark.parametrize("encoding", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5)], ids=["ridge", "svd"])
def test_a_chunk_gives_the_same_bits_whatever_happens_around_it(
    encoding: EncodingConfig, readout: RidgeConfig | SvdConfig
) -> None:
    encoder = make(encoding, readout)
    first, second, third = three_chunks(encoder)
    expected = digest(encoder.encode(first))
    assert digest(encoder.encode(first)) == expected
    state = add(encoder.encode(second), encoder.encode(third))
    assert digest(encoder.encode(first)) == expected
    assert digest(encoder.encode(first, state)) == expected  # independent: others have no say
    torch.manual_seed(1234)
    torch.rand(7)
    with torch.no_grad():
        assert digest(encoder.encode(first)) == expected
    assert digest(make(encoding, readout).encode(first)) == expected
    assert digest(encoder.encode(second)) != expected


@pytest.mark.parametrize("encoding", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_threads_have_no_say(encoding: EncodingConfig, threads: int) -> None:
    encoding = replace(encoding, threads=threads)
    base = tiny_base(tiny_config(encoding=encoding).dtype)
    encoder = make(encoding, base=base)
    chunk = three_chunks(encoder)[0]
    used: set[int] = set()
    base.model.model.register_forward_pre_hook(lambda *_: used.add(torch.get_num_threads()))
    updates, readouts = [], []
    for outer in (1, 2, 4):
        with outer_threads(outer):
            update = encoder.encode(chunk)
            updates.append(digest(update))
            readouts.append(encoder.read_out(update))
    assert used == {threads}
    assert len(set(updates)) == 1
    assert all(torch.equal(readout, readouts[0]) for readout in readouts)


def test_threads_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make(replace(FLOAT32, threads=2))
    chunk = three_chunks(encoder)[0]

    def fail(*_: object) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(Generator, "exact_update", fail)
    with outer_threads(3), pytest.raises(MemoryError):
        encoder.encode(chunk)


def test_an_update_is_an_ordinary_tensor_of_its_own() -> None:
    encoder = make()
    update = encoder.encode(three_chunks(encoder)[0])
    assert update.dtype == torch.int64
    assert update.shape == encoder.empty_state().shape == (4, 8, 14)
    assert not update.is_inference()
    assert not update.requires_grad


def test_an_update_is_the_generators_update_of_the_chunks_text() -> None:
    base, encoder = tiny_base(), make()
    generator = tiny_generator(tiny_config(None, (O_PROJ, DOWN_PROJ)))
    chunk = three_chunks(encoder)[0]
    ids = base.tokenizer(chunk.text, return_tensors="pt")["input_ids"]
    hidden = layer_inputs(base.model, ids, [0, 0, 1, 1])
    assert torch.equal(generator.exact_update(hidden[0]), encoder.encode(chunk))


def test_a_chunks_text_decides_not_its_turns_names() -> None:
    encoder = make()
    (chunk,) = chunks_of(encoder, "I like tea.")
    renamed = replace(chunk, session="other")
    assert digest(encoder.encode(renamed)) == digest(encoder.encode(chunk))
    (turn,) = turns("I like tea.")
    (later,) = encoder.chunk([replace(turn, time=datetime(2026, 4, 1, tzinfo=UTC))])
    assert digest(encoder.encode(later)) != digest(encoder.encode(chunk))


def test_the_sum_does_not_depend_on_the_order_of_chunks() -> None:
    encoder = make(BFLOAT16)
    chunks = three_chunks(encoder)
    forward, backward = encoder.empty_state(), encoder.empty_state()
    for chunk in chunks:
        forward = add(forward, encoder.encode(chunk))
    for chunk in reversed(chunks):
        backward = add(backward, encoder.encode(chunk))
    assert digest(forward) == digest(backward)
    assert torch.equal(encoder.read_out(forward), encoder.read_out(backward))


# Sequential and independent


def test_sequential_chunks_are_read_with_the_memory_before() -> None:
    encoder, plain = make(SEQUENTIAL), make(FLOAT32)
    first, second, _ = three_chunks(encoder)
    state = encoder.encode(first, encoder.empty_state())
    assert digest(state) == digest(encoder.encode(first)) == digest(plain.encode(first))
    adapted = encoder.encode(second, state)
    assert digest(adapted) != digest(plain.encode(second, state))
    assert digest(adapted) == digest(encoder.encode(second, state))
    assert digest(adapted) != digest(encoder.encode(second, add(state, state)))
    assert digest(encoder.encode(second)) == digest(plain.encode(second))


def test_sequential_encoding_leaves_no_adapter_behind() -> None:
    encoder = make(SEQUENTIAL)
    first, second, _ = three_chunks(encoder)
    state = encoder.encode(first)
    before = digest(encoder.encode(second))
    encoder.encode(second, state)
    assert digest(encoder.encode(second)) == before


def test_sequential_adapter_is_the_one_that_chat_applies() -> None:
    base, encoder = tiny_base(), make(SEQUENTIAL)
    generator = tiny_generator(tiny_config(None, (O_PROJ, DOWN_PROJ), SEQUENTIAL))
    first, second, _ = three_chunks(encoder)
    state = encoder.encode(first)
    ids = base.tokenizer(second.text, return_tensors="pt")["input_ids"]
    with Injector(base.model, generator).apply(encoder.read_out(state)[None]):
        hidden = layer_inputs(base.model, ids, [0, 0, 1, 1])
    assert torch.equal(generator.exact_update(hidden[0]), encoder.encode(second, state))


# Fingerprint


def variants() -> dict[str, tuple[str, LocalEncoder]]:
    """A change, and the part of the fingerprint that must show it."""
    base = tiny_base()
    return {
        "generator weights": ("generator", make(seed=1)),
        "read-out": ("generator", make(readout=SvdConfig(rank=5))),
        "base weights": ("base_model", make(base=replace(base, digest="other digest"))),
        "tokenizer": ("tokenizer", make(base=replace(base, tokenizer_digest="other digest"))),
        "chunk_tokens": ("chunking", make(replace(FLOAT32, chunk_tokens=65))),
        "encoding": ("encoding", make(SEQUENTIAL)),
        "dtype": ("numerics", make(replace(FLOAT32, dtype="bfloat16"))),
        "threads": ("numerics", make(replace(FLOAT32, threads=2))),
        "grid": ("numerics", make(replace(FLOAT32, grid_exponent=-21))),
    }


def test_every_change_has_a_fingerprint_of_its_own() -> None:
    fingerprint = make().fingerprint
    assert make().fingerprint == fingerprint
    seen = {fingerprint.digest}
    changes = variants()
    for change, (part, encoder) in changes.items():
        other = encoder.fingerprint
        assert getattr(other, part) != getattr(fingerprint, part), change
        with pytest.raises(IncompatibleState, match=part):
            fingerprint.require(other, "state")
        seen.add(other.digest)
    assert len(seen) == 1 + len(changes)
    assert {part for part, _ in changes.values()} == {f.name for f in fields(Fingerprint)}


# Tokens


def test_a_begin_token_is_put_before_every_chunk() -> None:
    plain, beginning = make(), make(base=tiny_base(begin=True))
    (chunk,) = chunks_of(plain, "I like tea.")
    base = tiny_base()
    ids = base.tokenizer(chunk.text)["input_ids"]
    assert BOS not in ids
    generator = tiny_generator(tiny_config(None, (O_PROJ, DOWN_PROJ)))
    for encoder, expected in ((plain, ids), (beginning, [BOS, *ids])):
        hidden = layer_inputs(base.model, torch.tensor([expected]), [0, 0, 1, 1])
        assert torch.equal(generator.exact_update(hidden[0]), encoder.encode(chunk))


def test_a_begin_token_counts_against_the_budget_once() -> None:
    plain, beginning = make(), make(base=tiny_base(begin=True))
    text = "x" * 200
    assert plain.count_tokens(text) == beginning.count_tokens(text) == 200
    for encoder, room in ((plain, 64), (beginning, 63)):
        sizes = [encoder.count_tokens(chunk.text) for chunk in chunks_of(encoder, text)]
        assert max(sizes) == room


def test_a_chunk_fits_into_the_base_models_context() -> None:
    base = tiny_base()
    base.model.config.max_position_embeddings = 48
    encoder = make(base=base)
    sizes = [encoder.count_tokens(chunk.text) for chunk in chunks_of(encoder, "y" * 200)]
    assert max(sizes) == 48
