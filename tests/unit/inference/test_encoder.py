from dataclasses import replace

import pytest
import torch

from memory_service.domain.chunks import chunk_session
from memory_service.errors import NumericalError
from memory_service.generator.config import Encoding, EncodingConfig, SvdConfig
from memory_service.generator.state import from_grid
from memory_service.services.ports import Encoder
from tests.helpers.histories import turn
from tests.helpers.tiny_generator import FLOAT32, tiny_config
from tests.helpers.tiny_inference import TinyInference, tiny_base, tiny_inference
from tests.helpers.tiny_model import tiny_llama

TURNS = [turn(number, f"I have {number} dogs.") for number in range(6)]
SEQUENTIAL = replace(FLOAT32, encoding=Encoding.SEQUENTIAL)


@pytest.fixture
def tiny() -> TinyInference:
    return tiny_inference()


def test_it_is_what_the_services_need(tiny):
    encoder: Encoder = tiny.encoder
    assert encoder.fingerprint.digest == tiny_inference().encoder.fingerprint.digest


def test_chunks_fit_the_budget_with_what_begins_them(tiny):
    chunks = tiny.encoder.chunk(TURNS)
    assert len(chunks) > 1
    for chunk in chunks:
        ids = tiny.tokens.chunk_ids(chunk.texts)
        assert len(ids) == sum(map(tiny.encoder.count_tokens, chunk.texts)) <= 64


def test_begin_takes_room_from_the_budget(tiny):
    tiny.tokens.begin = (1,)
    expected = chunk_session(TURNS, 63, tiny.encoder.count_tokens)
    assert tiny.encoder.chunk(TURNS) == expected
    assert all(len(tiny.tokens.chunk_ids(chunk.texts)) <= 64 for chunk in expected)


def test_context_of_the_base_model_limits_chunks():
    base = tiny_base(tiny_llama())
    base.model.config.max_position_embeddings = 50
    encoder = tiny_inference(base=base).encoder
    assert encoder.chunk(TURNS) == chunk_session(TURNS, 50, encoder.count_tokens)


def test_same_chunk_same_bits(tiny):
    (first, *_) = tiny.encoder.chunk(TURNS)
    update = tiny.encoder.encode(first)
    assert update.dtype == torch.int64
    assert not update.is_inference()
    tiny.encoder.encode(tiny.encoder.chunk(TURNS)[1])
    assert tiny.encoder.encode(first).equal(update)
    assert tiny_inference().encoder.encode(first).equal(update)


def test_update_is_that_of_the_generator_on_the_grid(tiny):
    (first, *_) = tiny.encoder.chunk(TURNS)
    ids = torch.tensor([tiny.tokens.chunk_ids(first.texts)])
    with torch.no_grad():
        output = tiny.base.model(ids, output_hidden_states=True)
    hidden = torch.stack([output.hidden_states[layer][0] for layer in (0, 1)])
    expected = tiny.generator.update(hidden)
    found = from_grid(tiny.encoder.encode(first), FLOAT32.grid_exponent)
    assert found == pytest.approx(expected, abs=2e-5)


def test_independent_encoding_ignores_the_state(tiny):
    first, second, *_ = tiny.encoder.chunk(TURNS)
    state = tiny.encoder.encode(first)
    assert tiny.encoder.encode(second, state).equal(tiny.encoder.encode(second))


def test_sequential_encoding_applies_the_state():
    tiny = tiny_inference(tiny_config(SvdConfig(rank=4), encoding=SEQUENTIAL))
    first, second, *_ = tiny.encoder.chunk(TURNS)
    state = tiny.encoder.encode(first, tiny.encoder.empty_state())
    assert state.equal(tiny.encoder.encode(first))
    read = tiny.encoder.encode(second, state)
    assert not read.equal(tiny.encoder.encode(second))
    ids = torch.tensor([tiny.tokens.chunk_ids(second.texts)])
    with torch.no_grad(), tiny.injector.apply(tiny.encoder.read_out(state).unsqueeze(0)):
        output = tiny.base.model(ids, output_hidden_states=True)
    hidden = torch.stack([output.hidden_states[layer][0] for layer in (0, 1)])
    found = from_grid(read, FLOAT32.grid_exponent)
    assert found == pytest.approx(tiny.generator.update(hidden), abs=2e-5)


def test_thread_count_is_the_checkpoints_and_given_back(tiny, monkeypatch):
    encoding = EncodingConfig(chunk_tokens=64, dtype="float32", threads=2, grid_exponent=-20)
    tiny = tiny_inference(tiny_config(encoding=encoding))
    seen = []
    exact_update = tiny.generator.exact_update

    def watched(hidden):
        seen.append(torch.get_num_threads())
        return exact_update(hidden)

    monkeypatch.setattr(tiny.generator, "exact_update", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        tiny.encoder.encode(tiny.encoder.chunk(TURNS)[0])
        assert (seen, torch.get_num_threads()) == ([2], 1)
        monkeypatch.setattr(tiny.generator, "exact_update", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny.encoder.encode(tiny.encoder.chunk(TURNS)[0])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (tiny_inference(seed=1), "generator"),
        (tiny_inference(base=replace(tiny_base(), digest="c" * 64)), "base_model"),
        (tiny_inference(base=replace(tiny_base(), tokenizer_digest="c" * 64)), "tokenizer"),
        (tiny_inference(tiny_config(encoding=replace(FLOAT32, chunk_tokens=65))), "chunking"),
        (tiny_inference(tiny_config(encoding=SEQUENTIAL)), "encoding"),
        (tiny_inference(tiny_config(encoding=replace(FLOAT32, threads=2))), "numerics"),
        (tiny_inference(tiny_config(encoding=replace(FLOAT32, grid_exponent=-19))), "numerics"),
    ],
)
def test_fingerprint_names_what_states_depend_on(tiny, changed, part):
    mine, other = tiny.encoder.fingerprint, changed.encoder.fingerprint
    assert getattr(mine, part) != getattr(other, part)
    assert mine.digest != other.digest


def test_hidden_states_that_are_no_numbers(tiny):
    tiny.base.model.get_input_embeddings().weight.data[5:] = float("nan")
    with pytest.raises(NumericalError, match="hidden states"):
        tiny.encoder.encode(tiny.encoder.chunk(TURNS)[0])
