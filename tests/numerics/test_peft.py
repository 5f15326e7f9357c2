"""An exported LoRA, loaded by peft, answers as our own injection does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from memory_service.errors import NumericalError
from memory_service.generator.adapter import export_peft, lora_factors
from memory_service.generator.config import RidgeConfig, SvdConfig
from memory_service.generator.generator import Generator
from memory_service.generator.hidden_states import layer_inputs
from memory_service.generator.injection import Injector
from tests.helpers.tiny_generator import DOWN_PROJ, O_PROJ, tiny_config, tiny_generator
from tests.helpers.tiny_model import tiny_llama, tiny_mistral

# peft 0.21 reads a property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

QUESTION = torch.tensor([[1, 70, 80, 90, 100, 110, 120, 130]])
CHUNK = torch.tensor([[1, *range(40, 70)]])

READ_OUTS = [RidgeConfig(), SvdConfig(rank=6), SvdConfig(rank=3)]
MODULES = [(O_PROJ,), (DOWN_PROJ,), (O_PROJ, DOWN_PROJ)]

MakeModel = Callable[[], PreTrainedModel]


def remembered(model: PreTrainedModel, generator: Generator) -> Tensor:
    """The state of one chunk."""
    hidden = layer_inputs(model, CHUNK, generator.config.site_layers)
    return generator.exact_update(hidden[0])


def own_logits(model: PreTrainedModel, generator: Generator, state: Tensor) -> Tensor:
    injector = Injector(model, generator)
    with torch.no_grad(), injector.apply(generator.read_out(state)[None]):
        logits = model(input_ids=QUESTION).logits
    injector.detach()
    return logits


def peft_logits(make_model: MakeModel, directory: Path) -> Tensor:
    model = PeftModel.from_pretrained(make_model(), directory)
    with torch.no_grad():
        return model(input_ids=QUESTION).logits


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_mistral])
@pytest.mark.parametrize("readout", READ_OUTS, ids=repr)
@pytest.mark.parametrize("modules", MODULES, ids="+".join)
def test_peft_answers_as_we_do(
    make_model: MakeModel,
    readout: RidgeConfig | SvdConfig,
    modules: tuple[str, ...],
    tmp_path: Path,
) -> None:
    model, generator = make_model(), tiny_generator(tiny_config(readout, modules))
    state = remembered(model, generator)
    export_peft(generator, state, tmp_path / "adapter", "tiny")
    with torch.no_grad():
        base = model(input_ids=QUESTION).logits
    ours = own_logits(model, generator, state)
    theirs = peft_logits(make_model, tmp_path / "adapter")
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert (ours - base).abs().max() > 0.1


def test_merged_weights_answer_alike(tmp_path: Path) -> None:
    model, generator = tiny_llama(), tiny_generator(tiny_config(modules=(O_PROJ, DOWN_PROJ)))
    state = remembered(model, generator)
    export_peft(generator, state, tmp_path, "tiny")
    merged = PeftModel.from_pretrained(tiny_llama(), tmp_path).merge_and_unload()
    with torch.no_grad():
        logits = merged(input_ids=QUESTION).logits
    torch.testing.assert_close(logits, own_logits(model, generator, state), atol=1e-4, rtol=0)


@pytest.mark.parametrize("readout", READ_OUTS, ids=repr)
def test_exporting_an_empty_memory_changes_nothing(
    readout: RidgeConfig | SvdConfig, tmp_path: Path
) -> None:
    generator = tiny_generator(tiny_config(readout))
    export_peft(generator, generator.empty_state(), tmp_path, "tiny")
    with torch.no_grad():
        base = tiny_llama()(input_ids=QUESTION).logits
    assert torch.equal(peft_logits(tiny_llama, tmp_path), base)


@pytest.mark.parametrize("modules", MODULES, ids="+".join)
def test_only_adapted_layers_and_modules_are_exported(
    modules: tuple[str, ...], tmp_path: Path
) -> None:
    generator = tiny_generator(tiny_config(modules=modules))
    export_peft(generator, generator.empty_state(), tmp_path, "tiny", torch.bfloat16)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {
        f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"
        for layer in (0, 1)
        for module in modules
        for side in "AB"
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(module.split(".")[1] for module in modules)
    assert config["layers_to_transform"] == [0, 1]
    assert config["lora_alpha"] / config["r"] == generator.config.scale
    assert config["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize(("readout", "rank"), [(RidgeConfig(), 8), (SvdConfig(rank=3), 3)])
def test_rank_of_an_export(readout: RidgeConfig | SvdConfig, rank: int) -> None:
    generator = tiny_generator(tiny_config(readout, (O_PROJ, DOWN_PROJ)))
    state = remembered(tiny_llama(), generator)
    factors = lora_factors(generator, state)
    d_in = [32, 64, 32, 64]
    assert [tuple(a.shape) for a, _ in factors] == [(rank, width) for width in d_in]
    assert [tuple(b.shape) for _, b in factors] == [(32, rank)] * 4
    assert not any(tensor.requires_grad for pair in factors for tensor in pair)


def test_a_state_that_cannot_be_read_out_is_not_exported(tmp_path: Path) -> None:
    generator = tiny_generator()
    state = -(2**40) * torch.eye(8, 14, dtype=torch.int64).expand(2, 8, 14)
    with pytest.raises(NumericalError):
        export_peft(generator, state, tmp_path / "adapter", "tiny")
    assert not (tmp_path / "adapter").exists()


def test_an_export_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    generator = tiny_generator()
    (tmp_path / "adapter_model.safetensors").mkdir()
    with pytest.raises(OSError, match="cannot be written"):
        export_peft(generator, generator.empty_state(), tmp_path, "tiny")
