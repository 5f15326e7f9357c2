"""Small random generators that fit `tiny_model`, with B different from zero."""

import torch

from memory_service.generator.config import (
    EncodingConfig,
    GeneratorConfig,
    RidgeConfig,
    SvdConfig,
)
from memory_service.generator.generator import Generator

O_PROJ = "self_attn.o_proj"
DOWN_PROJ = "mlp.down_proj"
WIDTHS = {O_PROJ: (32, 32), DOWN_PROJ: (64, 32)}
"""Inputs and outputs of the adapted modules of `tiny_model`."""

FLOAT32 = EncodingConfig(chunk_tokens=64, dtype="float32", threads=1, grid_exponent=-20)


def tiny_config(
    readout: SvdConfig | RidgeConfig | None = None,
    modules: tuple[str, ...] = (O_PROJ,),
    encoding: EncodingConfig = FLOAT32,
    layers: tuple[int, ...] = (0, 1),
) -> GeneratorConfig:
    """Key width 8 and value width 6, so that a transposed matrix never fits."""
    return GeneratorConfig(
        d_model=32,
        layers=layers,
        modules=modules,
        d_in=tuple(WIDTHS[module][0] for module in modules),
        d_out=tuple(WIDTHS[module][1] for module in modules),
        key_width=8,
        value_width=6,
        alpha=12.0,
        readout=readout or RidgeConfig(),
        encoding=encoding,
    )


def tiny_generator(config: GeneratorConfig | None = None, seed: int = 0) -> Generator:
    """A generator with every weight random, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator(config or tiny_config())
        with torch.no_grad():
            generator.norm.normal_(1.0, 0.3)
            for parameter in [*generator.b, *generator.readout.parameters()]:
                parameter.normal_(0.0, 0.3)
    return generator.eval().requires_grad_(False)


def random_readouts(generator: Generator, batch: int, seed: int = 0) -> torch.Tensor:
    """Read-outs [batch layer key value] that were never made by a state."""
    config = generator.config
    shape = (batch, len(config.sites), config.key_width, config.value_width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
