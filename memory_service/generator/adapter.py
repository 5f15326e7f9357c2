"""Adapter -> LoRA factors, for exports only: chat applies the read-out itself.

peft's orientation: A is `rank d_in`, B is `d_out rank`. A_q and B are shared by all users, so a
stored adapter is only the r x r read-outs; a LoRA repeats A_q and B for every user.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from memory_service.generator.checkpoint import write_tensors
from memory_service.generator.generator import Generator
from memory_service.generator.readout import SvdReadOut
from memory_service.generator.state import from_grid


def lora_factors(
    generator: Generator, state: Int64[Tensor, "layer key column"]
) -> list[tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]]:
    """The LoRA of a state.

    svd: A = U_R^T A_q and B = B V_R, rank R. ridge: A = A_q and B = B N^T, rank r.

    Raises:
        NumericalError: the state cannot be read out.
    """
    if isinstance(generator.readout, SvdReadOut):
        return lora_of_readouts(
            generator, from_grid(state, generator.config.encoding.grid_exponent)
        )
    return lora_of_readouts(generator, generator.read_out(state))


def lora_of_readouts(
    generator: Generator, readouts: Float[Tensor, "layer key value"]
) -> list[tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]]:
    """The LoRA of read-outs, for when their state is not at hand.

    The singular directions of svd's read-out are those that it kept of the state.

    Raises:
        NumericalError: the read-outs have no singular directions.
    """
    readout = generator.readout
    with torch.no_grad():
        if isinstance(readout, SvdReadOut):
            lefts, rights = readout.factors(readouts.to(generator.norm.device))
            return [
                (left.T @ a_q.float(), b.float() @ right.T)
                for left, right, a_q, b in zip(
                    lefts, rights, generator.a_q, generator.b, strict=True
                )
            ]
        return [
            (a_q.float().clone(), b.float() @ matrix.T)
            for matrix, a_q, b in zip(readouts.float(), generator.a_q, generator.b, strict=True)
        ]


def export_peft(
    generator: Generator,
    state: Int64[Tensor, "layer key column"],
    directory: Path,
    base_model_name: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a state's adapter as a LoRA that peft and vLLM load.

    Raises:
        NumericalError: the state cannot be read out.
        OSError: the directory cannot be written.
    """
    write_peft(generator, lora_factors(generator, state), directory, base_model_name, dtype)


def write_peft(
    generator: Generator,
    factors: Sequence[tuple[Tensor, Tensor]],
    directory: Path,
    base_model_name: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write one (A, B) pair per adapted module as a LoRA that peft and vLLM load.

    peft scales by `lora_alpha / r`, so `lora_alpha` is scale * rank here.

    Raises:
        OSError: the directory cannot be written.
    """
    config = generator.config
    rank = factors[0][0].shape[0]
    tensors = {}
    for (layer, path), (a, b) in zip(config.sites, factors, strict=True):
        stem = f"base_model.model.model.layers.{layer}.{path}"
        tensors[f"{stem}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{stem}.lora_B.weight"] = b.to(dtype).contiguous()
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base_model_name,
                "r": rank,
                "lora_alpha": config.scale * rank,
                "lora_dropout": 0.0,
                "bias": "none",
                "target_modules": sorted({path.rpartition(".")[2] for path in config.modules}),
                "layers_to_transform": list(config.layers),
                "layers_pattern": "layers",
                "inference_mode": True,
            },
            indent=2,
        )
    )
