"""Hidden states are the inputs of the named decoder layers, whatever stands beside a chunk."""

import threading
from dataclasses import replace

import pytest
import torch

from memory_service.errors import NumericalError
from memory_service.generator.config import Association
from memory_service.generator.hidden_states import hidden_states, layer_inputs
from memory_service.generator.injection import Injector
from tests.helpers.tiny_generator import DOWN_PROJ, FLOAT32, tiny_config, tiny_generator
from tests.helpers.tiny_model import tiny_llama

CHUNK = torch.randint(3, 259, (1, 11), generator=torch.Generator().manual_seed(0))


def test_they_are_the_inputs_of_the_named_layers() -> None:
    model = tiny_llama()
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = layer_inputs(model, CHUNK, [1, 0, 1])
    assert torch.equal(found, torch.stack([seen[1], seen[0], seen[1]], dim=1))
    assert torch.equal(found[:, 1], model.get_input_embeddings()(CHUNK))
    assert not found.requires_grad


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_reach_a_chunks_tokens(side: str) -> None:
    model = tiny_llama()
    padding = torch.full((1, 5), 77)
    beside = [padding, CHUNK] if side == "left" else [CHUNK, padding]
    mask = torch.cat(
        [torch.full_like(part, part is CHUNK, dtype=torch.int64) for part in beside], 1
    )
    found = layer_inputs(model, torch.cat(beside, dim=1), [0, 1], mask)[0, :, mask[0].bool()]
    alone = layer_inputs(model, CHUNK, [0, 1])[0]
    # Left padding shifts the positions, of which rotary attention sees only differences.
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_a_model_that_computes_no_numbers_is_an_error() -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="hidden states: the base model returned NaN"):
        layer_inputs(model, CHUNK, [0, 1])


NEXT_TOKEN = tiny_config(
    modules=(DOWN_PROJ,), encoding=replace(FLOAT32, association=Association.NEXT_TOKEN)
)


def test_next_tokens_are_the_modules_inputs_before_each_token_and_its_embedding() -> None:
    model = tiny_llama()
    injector = Injector(model, tiny_generator(NEXT_TOKEN))
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = hidden_states(injector, CHUNK)
    assert found.shape == (1, 2, 11, NEXT_TOKEN.features)
    for site in range(2):
        assert not found[0, site, 0, :64].any()
        assert torch.equal(found[0, site, 1:, :64], seen[site][0, :-1])
        assert torch.equal(found[0, site, :, 64:], model.get_input_embeddings()(CHUNK)[0])


def test_the_first_token_of_a_chunk_has_none_before_it_and_is_not_remembered() -> None:
    generator = tiny_generator(NEXT_TOKEN)
    hidden = hidden_states(Injector(tiny_llama(), generator), CHUNK)[0]
    torch.testing.assert_close(generator.update(hidden), generator.update(hidden[:, 1:]))
    assert not generator.update(hidden[:, :1]).any()


def test_a_question_that_repeats_the_words_finds_the_token_that_followed() -> None:
    """Untrained: with full widths and a small lambda, recall is exact."""
    model = tiny_llama()
    config = replace(NEXT_TOKEN, key_width=64, value_width=32)
    generator = tiny_generator(config)
    for a_k, a_v in zip(generator.a_k, generator.a_v, strict=True):
        a_k.copy_(torch.eye(64))
        a_v.copy_(torch.eye(32))
    generator.norm.fill_(1.0)
    generator.readout.log_lambda_0.fill_(-9.0)
    generator.readout.log_lambda_1.fill_(-20.0)
    generator.readout.strength_weight.zero_()
    hidden = hidden_states(Injector(model, generator), CHUNK)[0]
    readout = generator.readout(generator.update(hidden))
    keys = torch.nn.functional.rms_norm(hidden[..., :64], (64,), eps=1e-6)
    values = torch.nn.functional.rms_norm(hidden[..., 64:], (32,), eps=1e-6)
    torch.testing.assert_close((keys @ readout)[:, 1:], values[:, 1:], atol=1e-2, rtol=0)


LINE_END = 9
IN_LINE = replace(NEXT_TOKEN, encoding=replace(NEXT_TOKEN.encoding, line_end=LINE_END))


def test_between_the_two_stands_the_end_of_each_tokens_line() -> None:
    ids = torch.tensor([[5, 6, LINE_END, 7, 8, 10, LINE_END, 11, 12]])
    injector = Injector(tiny_llama(), tiny_generator(IN_LINE))
    with injector.recording() as recorded:
        injector.model(ids)
    found = hidden_states(injector, ids)[0]
    assert found.shape == (2, 9, IN_LINE.features)
    for site in range(2):
        before, ends, following = (found[site, :, part] for part in IN_LINE.parts)
        inputs = recorded[site][0]
        assert torch.equal(before[1:], inputs[:-1])
        assert torch.equal(ends[1:], inputs[[2, 2, 6, 6, 6, 6, 8, 8]])
        assert not ends[0].any() and not before[0].any()
        assert torch.equal(following, injector.model.get_input_embeddings()(ids)[0])


def test_the_end_of_a_line_is_not_looked_for_in_padding() -> None:
    injector = Injector(tiny_llama(), tiny_generator(IN_LINE))
    ids = torch.tensor([[5, 6, 7, LINE_END, 8, 10], [11, 12, 13, LINE_END, LINE_END, LINE_END]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    together = hidden_states(injector, ids, mask)[1, :, :3]
    torch.testing.assert_close(together, hidden_states(injector, ids[1:, :3])[0], atol=1e-5, rtol=0)


def test_every_part_is_normalised_by_itself_and_adds_to_the_key() -> None:
    generator = tiny_generator(IN_LINE)
    hidden = hidden_states(Injector(tiny_llama(), generator), CHUNK)[0]
    before, ends, following = IN_LINE.parts
    hidden[..., ends] *= 1000  # its size must not drown the other part
    norm = generator.norm[:, None]

    def projected(part: slice, weight: torch.Tensor) -> torch.Tensor:
        one = torch.nn.functional.rms_norm(hidden[..., part], (part.stop - part.start,), eps=1e-6)
        return (one * norm[..., part]) @ weight.mT

    keys = projected(before, generator.a_k[..., before])
    keys = keys + projected(ends, generator.a_k[..., ends])
    values = projected(following, generator.a_v)
    weight = generator.readout.strength_weight
    gates = sum(projected(part, weight[:, None, part]) for part in IN_LINE.parts)
    torch.testing.assert_close(
        generator.update(hidden),
        generator.readout.update(keys, values, gates),
        atol=1e-3,
        rtol=1e-4,
    )


def test_no_layer_is_run_after_the_last_adapted_one() -> None:
    """Nothing of them is remembered: leaving them out changes no bit."""
    injector = Injector(tiny_llama(), tiny_generator(IN_LINE))
    with injector.recording() as whole:
        injector.model(CHUNK)
    ran = []
    for number, layer in enumerate(injector.model.get_decoder().layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    with injector.recording(until_all=True) as ended:
        injector.model(CHUNK)
        pytest.fail("the pass went on after the last adapted module")
    last = max(layer for layer, _ in injector.config.sites)
    assert ran == list(range(last))
    assert ended.keys() == whole.keys()
    assert all(torch.equal(ended[site], whole[site]) for site in whole)


def test_recording_is_of_this_thread_only() -> None:
    injector = Injector(tiny_llama(), tiny_generator(NEXT_TOKEN))
    with injector.recording() as recorded:
        other = threading.Thread(target=lambda: injector.model(CHUNK))
        other.start()
        other.join()
    assert not recorded
