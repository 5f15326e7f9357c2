"""Generator weights and config on disk: our single safetensors file, and the authors' directory."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory_service.errors import ConfigurationError, NotFound
from memory_service.generator.config import (
    DTYPES,
    Encoding,
    EncodingConfig,
    GeneratorConfig,
    SvdConfig,
)
from memory_service.generator.generator import Generator

FORMAT = "memory-service-generator/1"

_OFFICIAL_KEY = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>\d+)\.base_layer\.(?P<module>.+)"
    r"\.fastlora_(?P<part>A1|A2|A3|B|hidden_state_norm)\.weight"
)


def save_generator(
    generator: Generator, path: Path, training: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Write weights, config and what they were trained on into one safetensors file.

    Raises:
        OSError: the file cannot be written; an existing file is then left as it was.
    """
    tensors = {name: value.to(dtype).contiguous() for name, value in generator.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "config": generator.config.to_json(),
        "training": json.dumps(training),
    }
    unfinished = path.with_name(path.name + ".part")
    try:
        write_tensors(tensors, unfinished, metadata)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written; safetensors itself reports that as its own error.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def load_generator(path: Path) -> Generator:
    """Load our safetensors file, or a directory in the authors' format, whichever it is.

    Raises:
        NotFound: there is no such file or directory.
        ConfigurationError: it is truncated, of another format, or its tensors do not fit.
    """
    if path.is_dir():
        return _load_official(path)
    tensors, metadata = _read_ours(path)
    generator = Generator(GeneratorConfig.from_json(metadata.get("config", "")))
    _fill(generator, tensors, path)
    return generator


def training_record(path: Path) -> dict[str, Any]:
    """What our checkpoint says about its training: data, licences, steps, seed, commit.

    Raises:
        NotFound: there is no such file.
        ConfigurationError: it is no checkpoint of ours.
    """
    if path.is_dir():
        return {}
    _, metadata = _read_ours(path)
    try:
        record: dict[str, Any] = json.loads(metadata.get("training", "{}"))
    except ValueError as error:
        raise ConfigurationError(
            "generator", f"{path} has an unreadable training record ({error})", "fetch it again"
        ) from error
    return record


def generator_digest(generator: Generator) -> str:
    """SHA-256 of config and weights: the generator's part of a fingerprint."""
    content = hashlib.sha256(generator.config.to_json().encode())
    for name, value in sorted(generator.state_dict().items()):
        content.update(name.encode())
        content.update(value.detach().float().contiguous().cpu().numpy().tobytes())
    return content.hexdigest()


def _load_official(directory: Path) -> Generator:
    """Read `adapter_config.json` and `adapter_model.safetensors` of the official implementation."""
    config_path = directory / "adapter_config.json"
    try:
        official = dict(json.loads(config_path.read_text()))
    except FileNotFoundError:
        raise _not_found(config_path) from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            "generator", f"{config_path} cannot be read ({error})", "download it again"
        ) from error
    tensors, _ = _read_tensors(directory / "adapter_model.safetensors")
    parts: dict[tuple[int, str, str], Tensor] = {}
    for key, value in tensors.items():
        match = _OFFICIAL_KEY.fullmatch(key)
        if match is None:
            raise ConfigurationError(
                "generator", f"unknown tensor {key} in {directory}", "give an official checkpoint"
            )
        parts[int(match["layer"]), match["module"], match["part"]] = value
    generator = Generator(_official_config(official, parts, directory))
    _fill(generator, _ours_from_official(generator.config, parts), directory)
    return generator


def _official_config(
    official: Mapping[str, Any], parts: Mapping[tuple[int, str, str], Tensor], directory: Path
) -> GeneratorConfig:
    wanted = {"fastlora_norm": "svd", "fastlora_merge": "pre-norm-sum"}
    for key, value in wanted.items():
        if official.get(key) != value:
            raise ConfigurationError(
                "generator",
                f"{directory} has {key} {official.get(key)!r}",
                f"only {value!r} is supported, the setting of the released checkpoints",
            )
    layers = tuple(sorted({layer for layer, _, _ in parts}))
    modules = tuple(sorted({module for _, module, _ in parts}))
    try:
        first = {
            (module, part): parts[layers[0], module, part]
            for module in modules
            for part in ("A1", "A2", "A3", "B")
        }
        dtype = first[modules[0], "A1"].dtype
        return GeneratorConfig(
            d_model=first[modules[0], "A2"].shape[1],
            layers=layers,
            modules=modules,
            d_in=tuple(first[module, "A1"].shape[1] for module in modules),
            d_out=tuple(first[module, "B"].shape[0] for module in modules),
            key_width=int(official["fastlora_inter_size"]),
            value_width=int(official["fastlora_r"]),
            alpha=float(official["fastlora_alpha"]),
            readout=SvdConfig(rank=int(official["fastlora_max_rank"])),
            encoding=EncodingConfig(
                encoding=Encoding.SEQUENTIAL,
                chunk_tokens=int(official["fastlora_window"]),
                dtype={value: key for key, value in DTYPES.items()}.get(dtype, "float32"),
                grid_exponent=-32,
            ),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(
            "generator", f"{directory} lacks {error}", "download the checkpoint again"
        ) from error


def _ours_from_official(
    config: GeneratorConfig, parts: Mapping[tuple[int, str, str], Tensor]
) -> dict[str, Tensor]:
    """Rename and stack; a missing part is left out and found missing by `_fill`."""
    tensors: dict[str, Tensor] = {}
    stacked = {"norm": "hidden_state_norm", "a_k": "A2", "a_v": "A3"}
    for ours, part in stacked.items():
        found = [parts[(*site, part)] for site in config.sites if (*site, part) in parts]
        shapes = {tuple(tensor.shape) for tensor in found}
        if len(shapes) > 1:
            raise ConfigurationError(
                "generator",
                f"the {part} of the layers differ in shape: {sorted(shapes)}",
                "download the checkpoint again",
            )
        if len(found) == len(config.sites):
            tensors[ours] = torch.stack(found)
    for index, site in enumerate(config.sites):
        for ours, part in (("a_q", "A1"), ("b", "B")):
            if (*site, part) in parts:
                tensors[f"{ours}.{index}"] = parts[(*site, part)]
    return tensors


def _fill(generator: Generator, tensors: Mapping[str, Tensor], source: Path) -> None:
    expected = {name: value.shape for name, value in generator.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        raise ConfigurationError(
            "generator", f"{source}: {'; '.join(problems[:3])}", "download or train it again"
        )
    generator.load_state_dict({name: value.float() for name, value in tensors.items()})
    if not all(torch.isfinite(value).all() for value in generator.state_dict().values()):
        raise ConfigurationError(
            "generator", f"{source} holds NaN or Inf", "download or train it again"
        )
    generator.eval().requires_grad_(False)


def _not_found(path: Path) -> NotFound:
    # The folder is the hint because errors shorten long names, and the file is what matters.
    return NotFound("generator", path.name, f"expected in {path.parent}")


def _read_ours(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = _read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ConfigurationError(
            "generator",
            f"{path} has format {metadata.get('format')!r}, not {FORMAT!r}",
            "give a generator checkpoint written by `memory train`",
        )
    return tensors, metadata


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise _not_found(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigurationError(
            "generator", f"{path} is truncated or no safetensors file ({error})", "fetch it again"
        ) from error
