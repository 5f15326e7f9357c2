"""The generator: the trained module that joins the arrows from hidden states to adapter."""

import math
from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from memory_service.generator.config import GeneratorConfig
from memory_service.generator.readout import build_readout
from memory_service.generator.state import from_grid, to_grid

NORM_EPSILON = 1e-6
"""Hard-coded in the official implementation, whatever the base model's own value is."""


class Generator(nn.Module):
    """Hidden states -> update, state -> read-out (Generative Adapter, arXiv 2411.05877, section 3).

    Keys K = rmsnorm(H; g) A_k^T, values V = rmsnorm(H; g) A_v^T; the adapted module computes
    y = W x + scale * B N^T A_q x. Under `Association.NEXT_TOKEN` keys and values are made from
    different features of a token, each normalised by itself. `a_q`, `a_k`, `a_v`, `b` are the
    official `fastlora_A1`, `A2`, `A3`, `B`. Before training B is zero, so every adapter starts as
    no change.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        sites = len(config.sites)
        widths = list(zip(config.d_in, config.d_out, strict=True)) * len(config.layers)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))

        self.norm = nn.Parameter(torch.ones(sites, config.features))
        self.a_k = normal(sites, config.key_width, config.key_features)
        self.a_v = normal(sites, config.value_width, config.d_model)
        self.a_q = nn.ParameterList([normal(config.key_width, d_in) for d_in, _ in widths])
        self.b = nn.ParameterList(
            [nn.Parameter(torch.zeros(d_out, config.value_width)) for _, d_out in widths]
        )
        self.readout = build_readout(config)

    def update(
        self,
        hidden: Float[Tensor, "*batch layer token feature"],
        mask: Bool[Tensor, "*batch token"] | None = None,
    ) -> Float[Tensor, "*batch layer key column"]:
        """What a chunk contributes to the state; tokens outside `mask` contribute nothing.

        The read-out's gates read all features of a token, keys and values each their own parts.
        """
        config = self.config
        gate_weight = self.readout.gate_weight(self.norm)

        def project(parts: Sequence[slice], weight: Tensor, start: int = 0) -> Tensor:
            projected = [
                _project(
                    hidden[..., part],
                    weight[..., part.start - start : part.stop - start] * self.norm[:, None, part],
                )
                for part in parts
            ]
            return sum(projected[1:], start=projected[0])

        value_part = config.parts[-1]
        keys = project(config.key_parts, self.a_k)
        values = project([value_part], self.a_v, start=value_part.start)
        gates = project(config.parts, gate_weight)
        if mask is not None:
            kept = mask.unsqueeze(-2).unsqueeze(-1)  # [*batch 1 token 1]
            keys, values = keys * kept, values * kept
        return self.readout.update(keys, values, gates)

    def exact_update(
        self, hidden: Float[Tensor, "layer token feature"]
    ) -> Int64[Tensor, "layer key column"]:
        """A chunk's update on the grid: the form in which updates are added and stored.

        Raises:
            NumericalError: the update holds NaN or Inf, or is too large for the grid.
        """
        with torch.no_grad():
            return to_grid(self.update(hidden), self.config.encoding.grid_exponent)

    def empty_state(self) -> Int64[Tensor, "layer key column"]:
        """The state of a memory that has seen nothing."""
        sites, columns = len(self.config.sites), self.readout.columns
        return torch.zeros(sites, self.config.key_width, columns, dtype=torch.int64)

    def read_out(
        self, state: Int64[Tensor, "layer key column"]
    ) -> Float[Tensor, "layer key value"]:
        """The adapter of an exact state, in the dtype in which it is stored and applied.

        Raises:
            NumericalError: the state cannot be read out.
        """
        with torch.no_grad():
            if not state.any():
                shape = (*state.shape[:-1], self.config.value_width)
                return torch.zeros(shape, dtype=self.config.dtype)
            value = from_grid(state, self.config.encoding.grid_exponent)
            return self.readout(value.to(self.norm.device)).to(self.config.dtype)


def _project(
    hidden: Float[Tensor, "*batch layer token d_in"], weight: Float[Tensor, "layer d_out d_in"]
) -> Float[Tensor, "*batch layer token d_out"]:
    """rmsnorm(hidden) weight^T: the norm's statistic is applied to the (narrow) product."""
    projected = einsum(
        hidden,
        weight.to(hidden.dtype),
        "... layer token d_in, layer d_out d_in -> ... layer token d_out",
    )
    scale = hidden.float().square().mean(dim=-1, keepdim=True).add(NORM_EPSILON).rsqrt()
    return projected.float() * scale
