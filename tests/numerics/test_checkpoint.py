"""Checkpoints: what is saved is what is loaded, and every damage is a named error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory_service.errors import ConfigurationError, NotFound
from memory_service.generator.checkpoint import (
    FORMAT,
    generator_digest,
    load_generator,
    save_generator,
    training_record,
)
from memory_service.generator.config import RidgeConfig, SvdConfig
from tests.helpers.tiny_generator import DOWN_PROJ, O_PROJ, tiny_config, tiny_generator

OFFICIAL = Path(__file__).parent / "reference" / "generator_checkpoint"
TRAINING = {"steps": 3, "data": [{"name": "synthetic people", "licence": "Apache-2.0"}]}

Change = Callable[[dict[str, Tensor], dict[str, str]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One of our checkpoints, ridge, two modules."""
    path = tmp_path / "generator.safetensors"
    generator = tiny_generator(tiny_config(RidgeConfig(), (O_PROJ, DOWN_PROJ)))
    save_generator(generator, path, TRAINING, torch.float32)
    return path


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A copy of the authors' checkpoint, to be damaged."""
    return Path(shutil.copytree(OFFICIAL, tmp_path / "official"))


def rewrite(path: Path, change: Change) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5, tolerance=1e-4)])
@pytest.mark.parametrize("modules", [(O_PROJ,), (O_PROJ, DOWN_PROJ)])
def test_float32_round_trip_is_exact(
    readout: SvdConfig | RidgeConfig, modules: tuple[str, ...], tmp_path: Path
) -> None:
    generator = tiny_generator(tiny_config(readout, modules))
    save_generator(generator, tmp_path / "g.safetensors", TRAINING, torch.float32)
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.config == generator.config
    assert loaded.state_dict().keys() == generator.state_dict().keys()
    for name, value in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert generator_digest(loaded) == generator_digest(generator)
    assert training_record(tmp_path / "g.safetensors") == TRAINING


def test_bfloat16_round_trip_rounds_once(tmp_path: Path) -> None:
    generator = tiny_generator()
    path = tmp_path / "g.safetensors"
    save_generator(generator, path, {}, torch.bfloat16)
    loaded = load_generator(path)
    for name, value in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float())
    save_generator(loaded, path, {}, torch.bfloat16)
    assert generator_digest(load_generator(path)) == generator_digest(loaded)


def test_a_loaded_generator_is_frozen(path: Path) -> None:
    generator = load_generator(path)
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_saving_leaves_one_file(path: Path) -> None:
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_save_is_an_os_error_and_keeps_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_generator(tiny_generator(), path, {}, torch.bfloat16)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saving_into_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be written"):
        save_generator(tiny_generator(), tmp_path / "missing" / "g", {}, torch.bfloat16)


def test_digest_sees_every_weight_and_the_config() -> None:
    generator = tiny_generator()
    seen = {generator_digest(generator)}
    for parameter in generator.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 0.5
        seen.add(generator_digest(generator))
    assert len(seen) == 1 + len(list(generator.parameters()))
    other = tiny_generator(tiny_config(SvdConfig(rank=5)))
    same_but_rank = tiny_generator(tiny_config(SvdConfig(rank=6)))
    assert generator_digest(other) != generator_digest(same_but_rank)
    assert generator_digest(other) == generator_digest(tiny_generator(tiny_config(SvdConfig(5))))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.safetensors"):
        load_generator(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(path: Path, kept_share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept_share * len(content))])
    with pytest.raises(ConfigurationError, match="truncated or no safetensors"):
        load_generator(path)


def other_format(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["format"] = "memory-service-generator/0"


def no_metadata(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata.clear()


def no_config(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del metadata["config"]


def unreadable_config(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["config"] = metadata["config"][:-1]


def missing_tensor(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del tensors["readout.log_lambda_0"]


def extra_tensor(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["a_x"] = torch.zeros(2)


def wrong_shape(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["b.1"] = tensors["b.1"].T.contiguous()


def not_a_number(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["a_q.0"][0, 0] = torch.nan


def infinite(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["norm"][0, 0] = torch.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_format, f"format 'memory-service-generator/0', not '{FORMAT}'"),
        (no_metadata, "format None"),
        (no_config, "generator config: cannot be read"),
        (unreadable_config, "generator config: cannot be read"),
        (missing_tensor, r"readout\.log_lambda_0 is missing"),
        (extra_tensor, "a_x is unknown"),
        (wrong_shape, r"b\.1 is \(6, 32\) instead of \(32, 6\)"),
        (not_a_number, "holds NaN or Inf"),
        (infinite, "holds NaN or Inf"),
    ],
)
def test_damaged_file(path: Path, change: Change, message: str) -> None:
    rewrite(path, change)
    with pytest.raises(ConfigurationError, match=message):
        load_generator(path)


def test_training_record_is_read_from_our_checkpoints_only(path: Path) -> None:
    assert training_record(path) == TRAINING
    assert training_record(OFFICIAL) == {}
    rewrite(path, lambda tensors, metadata: metadata.update(training="{"))
    with pytest.raises(ConfigurationError, match="training record"):
        training_record(path)
    rewrite(path, no_metadata)
    with pytest.raises(ConfigurationError, match="format None"):
        training_record(path)


def test_official_checkpoint_becomes_one_of_ours(tmp_path: Path) -> None:
    generator = load_generator(OFFICIAL)
    save_generator(generator, tmp_path / "ours.safetensors", {}, torch.float32)
    ours = load_generator(tmp_path / "ours.safetensors")
    assert ours.config == generator.config
    assert generator_digest(ours) == generator_digest(generator)


def test_official_directory_without_config(official: Path) -> None:
    (official / "adapter_config.json").unlink()
    with pytest.raises(NotFound, match=r"adapter_config\.json"):
        load_generator(official)


def test_official_directory_without_weights(official: Path) -> None:
    (official / "adapter_model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"adapter_model\.safetensors"):
        load_generator(official)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "null"])
def test_official_config_that_is_no_object(official: Path, content: str) -> None:
    (official / "adapter_config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"adapter_config\.json cannot be read"):
        load_generator(official)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fastlora_norm", "forbenius", "fastlora_norm 'forbenius'; only 'svd' is supported"),
        ("fastlora_norm", None, "fastlora_norm None"),
        ("fastlora_merge", "mean", "fastlora_merge 'mean'; only 'pre-norm-sum' is supported"),
        ("fastlora_r", None, "lacks"),
        ("fastlora_alpha", "much", "lacks"),
        ("fastlora_max_rank", 33, r"readout\.rank: 33 is not between 1 and the width 32"),
        ("fastlora_inter_size", 33, "instead of"),
    ],
)
def test_official_config_with_a_wrong_field(
    official: Path, field: str, value: object, message: str
) -> None:
    file = official / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ConfigurationError, match=message):
        load_generator(official)


def test_official_config_that_lacks_a_field(official: Path) -> None:
    file = official / "adapter_config.json"
    content = json.loads(file.read_text())
    del content["fastlora_window"]
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="lacks 'fastlora_window'"):
        load_generator(official)


STEM = "base_model.model.model.layers.1.base_layer.self_attn.o_proj.fastlora_"


@pytest.mark.parametrize("part", ["A1", "A2", "A3", "B", "hidden_state_norm"])
def test_official_weights_that_lack_a_tensor(official: Path, part: str) -> None:
    def remove(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        del tensors[f"{STEM}{part}.weight"]

    rewrite(official / "adapter_model.safetensors", remove)
    with pytest.raises(ConfigurationError, match="is missing"):
        load_generator(official)


def test_official_weights_with_an_unknown_tensor(official: Path) -> None:
    def insert(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors[f"{STEM}A4.weight"] = torch.zeros(2)

    rewrite(official / "adapter_model.safetensors", insert)
    with pytest.raises(ConfigurationError, match=r"unknown tensor .*fastlora_A4"):
        load_generator(official)


def test_official_weights_of_another_shape(official: Path) -> None:
    def widen(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        tensors[f"{STEM}A2.weight"] = torch.zeros(32, 65)

    rewrite(official / "adapter_model.safetensors", widen)
    with pytest.raises(ConfigurationError, match=r"A2 .* differ in shape: .*\(32, 65\)"):
        load_generator(official)


def test_truncated_official_weights(official: Path) -> None:
    file = official / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="truncated"):
        load_generator(official)
