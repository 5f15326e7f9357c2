"""What a generator is, apart from its weights. Travels inside the checkpoint."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch

from memory_service.errors import ConfigurationError

COARSEST_SVD_GRID = -20
"""Rounding to a coarser grid makes directions of its own, which svd gives full weight: at width 128
the grid -12 makes some of 6e-6 sigma_1, above the tolerance; -20 stays at float32's own 6e-8."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Encoding(StrEnum):
    """How later chunks are encoded (design: "Encoding")."""

    INDEPENDENT = "independent"
    """Every chunk by the base model alone: the state is a true sum."""
    SEQUENTIAL = "sequential"
    """Chunk t with the adapter of the chunks before it: how the released checkpoints learnt."""


class Association(StrEnum):
    """What a state associates with what (docs/decisions/0008)."""

    SAME_TOKEN = "same token"  # noqa: S105  # of a text
    """The paper: keys and values are both projections of a layer's input at one token."""
    NEXT_TOKEN = "next token"  # noqa: S105
    """Keys come from the adapted module's own input, values are the token that followed: what is
    remembered is what came next, and a question's query is of the same kind as the keys."""


@dataclass(frozen=True)
class SvdConfig:
    """Read-out of the paper: top `rank` singular directions, singular values set to 1."""

    rank: int
    tolerance: float = 1e-6


@dataclass(frozen=True)
class RidgeConfig:
    """Least-squares read-out with a learned write strength per token."""


@dataclass(frozen=True)
class EncodingConfig:
    """What makes an update a function of its chunk, to the last bit.

    `threads` is fixed because kernels may split sums by thread. Updates are rounded to multiples
    of 2**`grid_exponent` before they are added. With `line_end`, the token that ends a turn, keys
    see the end of their turn too: "Rex is what I called my dog" says what Rex is only after it
    (docs/decisions/0012).
    """

    encoding: Encoding = Encoding.INDEPENDENT
    association: Association = Association.SAME_TOKEN
    line_end: int | None = None
    chunk_tokens: int = 256
    dtype: str = "bfloat16"
    threads: int = 2
    grid_exponent: int = -12


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape and rules of a generator.

    `modules` are paths of linear modules inside a decoder layer ("mlp.down_proj"), `d_in` and
    `d_out` their widths in the same order. The scale of an adapter is `alpha / value_width`.
    """

    d_model: int
    layers: tuple[int, ...]
    modules: tuple[str, ...]
    d_in: tuple[int, ...]
    d_out: tuple[int, ...]
    key_width: int
    value_width: int
    alpha: float
    readout: SvdConfig | RidgeConfig
    encoding: EncodingConfig = EncodingConfig()

    def __post_init__(self) -> None:
        if isinstance(self.readout, SvdConfig) and not (
            0 < self.readout.rank <= min(self.key_width, self.value_width)
        ):
            raise ConfigurationError(
                "readout.rank",
                f"{self.readout.rank} is not between 1 and the width "
                f"{min(self.key_width, self.value_width)}",
                "lower the rank or widen the generator",
            )
        if isinstance(self.readout, SvdConfig) and (
            self.encoding.grid_exponent > COARSEST_SVD_GRID
        ):
            raise ConfigurationError(
                "encoding.grid_exponent",
                f"{self.encoding.grid_exponent} is too coarse for the svd read-out",
                f"use {COARSEST_SVD_GRID} or less",
            )
        if self.encoding.dtype not in DTYPES:
            raise ConfigurationError(
                "encoding.dtype", f"{self.encoding.dtype!r} is unknown", f"use one of {set(DTYPES)}"
            )
        if not len(self.modules) == len(self.d_in) == len(self.d_out) > 0:
            raise ConfigurationError(
                "modules", "modules, d_in and d_out differ in length", "name one width a module"
            )
        if self.encoding.association is Association.NEXT_TOKEN and len(set(self.d_in)) > 1:
            raise ConfigurationError(
                "encoding.association",
                f"next token needs modules of one width, these have {self.d_in}",
                "adapt modules with the same number of inputs",
            )
        if self.encoding.line_end is not None and (
            self.encoding.association is not Association.NEXT_TOKEN or self.encoding.line_end < 0
        ):
            raise ConfigurationError(
                "encoding.line_end",
                f"{self.encoding.line_end} is negative, or the association is not next token",
                "name the token that ends a line with the association next token, or none",
            )
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise ConfigurationError(
                "layers",
                f"{self.layers} is empty, negative or repeats a layer",
                "name each layer once, counted from 0",
            )

    @property
    def sites(self) -> list[tuple[int, str]]:
        """The adapted modules, in the order of the `layer` dimension."""
        return [(layer, module) for layer in self.layers for module in self.modules]

    @property
    def site_layers(self) -> list[int]:
        """For each adapted module the decoder layer whose input it remembers."""
        return [layer for layer, _ in self.sites]

    @property
    def parts(self) -> tuple[slice, ...]:
        """A token's hidden states at one module, part by part; each is normalised by itself.

        Values are made from the last part; keys from all before it, or from the only one.
        """
        if self.encoding.association is Association.SAME_TOKEN:
            return (slice(0, self.d_model),)
        seen = 1 if self.encoding.line_end is None else 2
        ends = [self.d_in[0] * number for number in range(seen + 1)]
        return (*map(slice, ends, ends[1:]), slice(ends[-1], ends[-1] + self.d_model))

    @property
    def key_parts(self) -> tuple[slice, ...]:
        """The parts that keys are made from."""
        return self.parts[:-1] or self.parts

    @property
    def key_features(self) -> int:
        """Width of what keys are projected from, the first of a token's features."""
        return int(self.key_parts[-1].stop)

    @property
    def features(self) -> int:
        """Width of a token's hidden states at one module: what keys and values are made from."""
        return int(self.parts[-1].stop)

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        return self.alpha / self.value_width

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of encoding, and of stored adapters."""
        return DTYPES[self.encoding.dtype]

    def to_json(self) -> str:
        """Serialise, naming the read-out by its class."""
        content = asdict(self)
        content["readout"] = {"kind": type(self.readout).__name__, **content["readout"]}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "GeneratorConfig":
        """Read what `to_json` wrote.

        Raises:
            ConfigurationError: a field is missing, unknown or out of range.
        """
        try:
            content: dict[str, Any] = dict(json.loads(text))
            readout = dict(content.pop("readout"))
            kinds = {kind.__name__: kind for kind in (SvdConfig, RidgeConfig)}
            encoding = dict(content.pop("encoding"))
            encoding["encoding"] = Encoding(encoding["encoding"])
            encoding["association"] = Association(
                encoding.get("association", Association.SAME_TOKEN)
            )
            for key in ("layers", "modules", "d_in", "d_out"):
                content[key] = tuple(content[key])
            return cls(
                readout=kinds[readout.pop("kind")](**readout),
                encoding=EncodingConfig(**encoding),
                **content,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                "generator config",
                f"cannot be read ({type(error).__name__}: {error})",
                "use a checkpoint written by this version",
            ) from error
