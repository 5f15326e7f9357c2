"""Hidden states are the inputs of the named decoder layers, whatever stands beside a chunk."""

import pytest
import torch

from memory_service.errors import NumericalError
from memory_service.generator.hidden_states import hidden_states
from tests.helpers.tiny_model import tiny_llama

CHUNK = torch.randint(3, 259, (1, 11), generator=torch.Generator().manual_seed(0))


def test_they_are_the_inputs_of_the_named_layers() -> None:
    model = tiny_llama()
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = hidden_states(model, CHUNK, [1, 0, 1])
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
    found = hidden_states(model, torch.cat(beside, dim=1), [0, 1], mask)[0, :, mask[0].bool()]
    alone = hidden_states(model, CHUNK, [0, 1])[0]
    # Left padding shifts the positions, of which rotary attention sees only differences.
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_a_model_that_computes_no_numbers_is_an_error() -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="hidden states: the base model returned NaN"):
        hidden_states(model, CHUNK, [0, 1])
