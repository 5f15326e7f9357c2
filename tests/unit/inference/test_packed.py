"""Packed weights compute what transformers' modules compute."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from memory_service.errors import NumericalError
from memory_service.generator.injection import CheckedReadouts
from memory_service.inference.decoder import Decoder, ModuleDecoder, make_decoder
from memory_service.inference.key_values import KeyValues
from memory_service.inference.packed import PackedDecoder, is_packable
from tests.helpers.tiny_generator import (
    DOWN_PROJ,
    FLOAT32,
    O_PROJ,
    random_readouts,
    tiny_config,
)
from tests.helpers.tiny_inference import TinyInference, tiny_base, tiny_inference
from tests.helpers.tiny_model import tiny_llama, tiny_mistral

CONFIG = tiny_config(modules=(O_PROJ, DOWN_PROJ))


def passes(
    decoder: Decoder, readouts: CheckedReadouts | None, ids: torch.Tensor
) -> list[torch.Tensor]:
    """Logits after a prompt of five tokens each, and after two more, one by one."""
    kept = KeyValues()
    kept.open(len(ids))
    return [decoder.logits(part, kept, readouts) for part in ids.tensor_split([5, 6], dim=1)]


@pytest.mark.parametrize("model", [tiny_llama(), tiny_mistral()], ids=["llama", "mistral"])
@pytest.mark.parametrize("has_adapters", [True, False])
def test_logits_are_those_of_the_modules(model: PreTrainedModel, has_adapters: bool) -> None:
    tiny = tiny_inference(CONFIG, tiny_base(model))
    assert isinstance(tiny.decoder, PackedDecoder)
    readouts = tiny.decoder.checked(3 * random_readouts(tiny.generator, 4))
    applied = readouts if has_adapters else None
    ids = torch.randint(3, 259, (4, 7), generator=torch.Generator().manual_seed(0))
    packed = passes(tiny.decoder, applied, ids)
    plain = passes(ModuleDecoder(tiny.base.model, tiny.injector), applied, ids)
    for one, other in zip(packed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_it_is_as_close_to_float32_as_the_modules_are() -> None:
    exact = tiny_inference(CONFIG)
    rounded: TinyInference = tiny_inference(
        tiny_config(modules=(O_PROJ, DOWN_PROJ), encoding=replace(FLOAT32, dtype="bfloat16")),
        tiny_base(tiny_llama().to(torch.bfloat16)),
    )
    ids = torch.randint(3, 259, (8, 7), generator=torch.Generator().manual_seed(1))
    readouts = random_readouts(exact.generator, 8)
    expected = passes(exact.decoder, exact.decoder.checked(readouts), ids)
    checked = rounded.decoder.checked(readouts.to(torch.bfloat16))
    errors = [
        torch.stack(
            [
                (one.float() - other).abs().mean()
                for one, other in zip(passes(decoder, checked, ids), expected, strict=True)
            ]
        ).mean()
        for decoder in (rounded.decoder, ModuleDecoder(rounded.base.model, rounded.injector))
    ]
    assert errors[0] < 1.25 * errors[1]


def test_joined_readouts_are_those_of_each() -> None:
    tiny = tiny_inference(CONFIG)
    readouts = random_readouts(tiny.generator, 3)
    several = [tiny.decoder.checked(one.unsqueeze(0)) for one in readouts]
    assert CheckedReadouts.join(several).readouts.equal(readouts)


def test_broken_readouts_are_refused() -> None:
    tiny = tiny_inference(CONFIG)
    with pytest.raises(NumericalError, match="adapter"):
        tiny.decoder.checked(random_readouts(tiny.generator, 2) * torch.inf)


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("model_type", "qwen2")],
)
def test_other_models_run_their_own_modules(name: str, value: object) -> None:
    tiny = tiny_inference(CONFIG)
    assert is_packable(tiny.base.model, tiny.generator.config)
    setattr(tiny.base.model.config, name, value)
    assert not is_packable(tiny.base.model, tiny.generator.config)
    decoder = make_decoder(tiny.base.model, tiny.generator, tiny.injector)
    assert isinstance(decoder, ModuleDecoder)


def test_positions_that_keep_state_run_their_own_modules() -> None:
    tiny = tiny_inference(CONFIG)
    tiny.base.model.get_decoder().rotary_emb.rope_type = "dynamic"
    assert not is_packable(tiny.base.model, tiny.generator.config)
