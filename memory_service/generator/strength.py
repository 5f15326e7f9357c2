"""How strongly an adapter changes each module it is applied to: for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from memory_service.generator.generator import Generator
from memory_service.generator.state import from_grid

SHARE_UNIT = "% of the module's weight norm"
FULLNESS_UNIT = "% of the directions that it can tell apart"
NORM_UNIT = "norm of the read-out"


@dataclass(frozen=True)
class ModuleStrength:
    """One adapted module; `layer` is its decoder layer, `module` empty where it is not known."""

    layer: int
    module: str
    value: float


@dataclass(frozen=True)
class Strength:
    """Every adapted module in order, and the unit of the values."""

    unit: str
    modules: tuple[ModuleStrength, ...]


def weight_change_norms(
    generator: Generator, readouts: Float[Tensor, "layer key value"]
) -> Float[Tensor, " layer"]:
    """Frobenius norm of scale * B N^T A_q, the change of each module's weight.

    By the factors' Gram matrices: the d_out x d_in product is never made.
    """
    with torch.no_grad():
        squares = [
            ((a_q @ a_q.T @ readout) * (readout @ (b.T @ b))).sum()
            for a_q, b, readout in zip(generator.a_q, generator.b, readouts.float(), strict=True)
        ]
        return generator.config.scale * torch.stack(squares).clamp(min=0).sqrt()


def share_of_weights(
    generator: Generator, readouts: Float[Tensor, "layer key value"], weight_norms: Sequence[float]
) -> Strength:
    """Strength as a share of each module's own weight norm."""
    changes = weight_change_norms(generator, readouts).tolist()
    return Strength(
        SHARE_UNIT,
        tuple(
            ModuleStrength(layer, module, 100 * change / norm if norm else 0.0)
            for (layer, module), change, norm in zip(
                generator.config.sites, changes, weight_norms, strict=True
            )
        ),
    )


def norms_of_readouts(readouts: Float[Tensor, "layer key value"]) -> Strength:
    """Strength as the read-outs' own norms, where generator or base model is not at hand."""
    norms = readouts.float().flatten(1).norm(dim=1).tolist()
    return Strength(
        NORM_UNIT, tuple(ModuleStrength(index, "", norm) for index, norm in enumerate(norms))
    )


def fullness(generator: Generator, state: Int64[Tensor, "layer key column"]) -> Strength:
    """How full a state is in each module: a full one can only take in what replaces something.

    Raises:
        NumericalError: the state cannot be read out.
    """
    with torch.no_grad():
        value = from_grid(state, generator.config.encoding.grid_exponent)
        used = generator.readout.fullness(value).tolist()
    return Strength(
        FULLNESS_UNIT,
        tuple(
            ModuleStrength(layer, module, 100 * share)
            for (layer, module), share in zip(generator.config.sites, used, strict=True)
        ),
    )
