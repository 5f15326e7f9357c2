"""State -> normalised matrix: the two read-outs.

A read-out is a module with two methods: `update` says what a chunk's keys and values contribute
to the (additive) state, `forward` turns a state into the matrix N that chat applies.
"""

from abc import ABC, abstractmethod

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from memory_service.errors import NumericalError
from memory_service.generator.config import GeneratorConfig, RidgeConfig, SvdConfig


class ReadOut(nn.Module, ABC):
    """What both read-outs offer."""

    columns: int

    def gate_weight(
        self, norm: Float[Tensor, "layer feature"]
    ) -> Float[Tensor, "layer gate feature"]:
        """What projects a token's normalised features to its gates; here there are none."""
        return norm.unsqueeze(1)[:, :0]

    @abstractmethod
    def update(
        self,
        keys: Float[Tensor, "*batch layer token key"],
        values: Float[Tensor, "*batch layer token value"],
        gates: Float[Tensor, "*batch layer token gate"],
    ) -> Float[Tensor, "*batch layer key column"]:
        """One chunk's contribution to the state; keys and values of masked tokens are 0."""

    @abstractmethod
    def forward(
        self, state: Float[Tensor, "*batch layer key column"]
    ) -> Float[Tensor, "*batch layer key value"]:
        """The matrix N of every adapted module; zero for the empty state."""

    @abstractmethod
    def adjoint(
        self,
        state: Float[Tensor, "layer key column"],
        weights: Float[Tensor, "layer key value"],
    ) -> Float[Tensor, "layer key column"]:
        """What to multiply a part of the state with, to get what the weights say of its share of N.

        N is linear in the values of what was written once its normalisation is fixed, so N is the
        sum of what its parts contribute: <part, adjoint(W)> = <contribution of the part, W>.
        """

    @abstractmethod
    def fullness(self, state: Float[Tensor, "layer key column"]) -> Float[Tensor, " layer"]:
        """Which share of the directions that a module can tell apart is in use, from 0 to 1."""


class SvdReadOut(ReadOut):
    """N(S) = U_R V_R^T, the paper's normalisation (eq. 6).

    The official code computes it with a randomised SVD; this one is exact and deterministic.
    """

    def __init__(self, rank: int, tolerance: float, value_width: int) -> None:
        super().__init__()
        self.rank = rank
        self.tolerance = tolerance
        self.columns = value_width

    def update(
        self,
        keys: Float[Tensor, "*batch layer token key"],
        values: Float[Tensor, "*batch layer token value"],
        gates: Float[Tensor, "*batch layer token gate"],
    ) -> Float[Tensor, "*batch layer key column"]:
        """K^T V: the sum of outer products of keys and values."""
        return einsum(
            keys,
            values,
            "... layer token key, ... layer token column -> ... layer key column",
        )

    def factors(
        self, state: Float[Tensor, "*batch layer key column"]
    ) -> tuple[Float[Tensor, "*batch layer key rank"], Float[Tensor, "*batch layer rank value"]]:
        """U_R and V_R^T with weak directions set to zero, so that N = U_R V_R^T.

        Raises:
            NumericalError: the state holds NaN or Inf, or the SVD did not converge.
        """
        if not torch.isfinite(state).all():
            raise NumericalError("state", "holds NaN or Inf; rebuild the memory from its turns")
        try:
            # In float32 its noise is 9e-7 of sigma_1 at width 1024: as large as the tolerance.
            left, sigma, right = torch.linalg.svd(state.double(), full_matrices=False)
        except RuntimeError as error:  # torch.linalg.LinAlgError, which torch does not export
            raise NumericalError("state", f"its SVD did not converge ({error})") from error
        kept = sigma > self.tolerance * sigma[..., :1]
        left = (left * kept.unsqueeze(-2))[..., : self.rank]
        return left.float(), right[..., : self.rank, :].float()

    def forward(
        self, state: Float[Tensor, "*batch layer key column"]
    ) -> Float[Tensor, "*batch layer key value"]:
        """U_R V_R^T; directions with sigma <= tolerance * sigma_1 are dropped."""
        left, right = self.factors(state)
        return left @ right

    def adjoint(
        self,
        state: Float[Tensor, "layer key column"],
        weights: Float[Tensor, "layer key value"],
    ) -> Float[Tensor, "layer key column"]:
        """N = S M with M = V_R Sigma_R^-1 V_R^T: a part s contributes s M.

        Raises:
            NumericalError: the state holds NaN or Inf, or the SVD did not converge.
        """
        left, right = self.factors(state)
        sigma = einsum(
            left, state.float() @ right.mT, "layer key rank, layer key rank -> layer rank"
        )
        inverse = torch.where(sigma > 0, 1 / sigma, 0.0)
        return (weights @ right.mT) * inverse.unsqueeze(-2) @ right

    def fullness(self, state: Float[Tensor, "layer key column"]) -> Float[Tensor, " layer"]:
        """Directions that are kept, of the rank.

        Raises:
            NumericalError: the state holds NaN or Inf, or the SVD did not converge.
        """
        left, _ = self.factors(state)
        return (left.square().sum(dim=-2) > 0).float().sum(dim=-1) / self.rank


class RidgeReadOut(ReadOut):
    """N = (G + lambda I)^-1 C with G = K^T L K and C = K^T L V: the least-squares linear memory.

    L is a learned write strength per token, between 0 and 2, so that chatter need not be written.
    lambda = lambda_0 + lambda_1 * mean diagonal of G, both learned per module. Idea: ridge
    regression as an associative memory (Schlag et al. 2021; Titans' "gates"); its statistics are as
    additive as the paper's.
    """

    def __init__(self, layers: int, key_width: int, value_width: int, features: int) -> None:
        super().__init__()
        self.key_width = key_width
        self.columns = key_width + value_width
        self.strength_weight = nn.Parameter(torch.zeros(layers, features))
        self.strength_bias = nn.Parameter(torch.zeros(layers))
        self.log_lambda_0 = nn.Parameter(torch.zeros(layers))
        self.log_lambda_1 = nn.Parameter(torch.full((layers,), -3.0))

    def gate_weight(
        self, norm: Float[Tensor, "layer feature"]
    ) -> Float[Tensor, "layer gate feature"]:
        """One gate: the score of the write strength."""
        return self.strength_weight.unsqueeze(1)

    def write_strength(
        self, gates: Float[Tensor, "*batch layer token gate"]
    ) -> Float[Tensor, "*batch layer token gate"]:
        """How strongly each token is written: 2 sigmoid(w . h + b), 1 before training."""
        return 2 * torch.sigmoid(gates + self.strength_bias.float()[:, None, None])

    def update(
        self,
        keys: Float[Tensor, "*batch layer token key"],
        values: Float[Tensor, "*batch layer token value"],
        gates: Float[Tensor, "*batch layer token gate"],
    ) -> Float[Tensor, "*batch layer key column"]:
        """G and C side by side."""
        return einsum(
            keys * self.write_strength(gates),
            torch.cat([keys, values], dim=-1),
            "... layer token key, ... layer token column -> ... layer key column",
        )

    def forward(
        self, state: Float[Tensor, "*batch layer key column"]
    ) -> Float[Tensor, "*batch layer key value"]:
        """Solve for N by Cholesky; G is made symmetric first.

        Raises:
            NumericalError: G + lambda I is not positive definite, or state or N is not finite.
        """
        gram, cross = self._split(state)
        return self._solve(gram, cross)

    def adjoint(
        self,
        state: Float[Tensor, "layer key column"],
        weights: Float[Tensor, "layer key value"],
    ) -> Float[Tensor, "layer key column"]:
        """A part's cross-covariance c contributes (G + lambda I)^-1 c; its own G weighs nothing.

        Raises:
            NumericalError: G + lambda I is not positive definite, or not finite.
        """
        gram, _ = self._split(state)
        return torch.cat([torch.zeros_like(gram), self._solve(gram, weights.float())], dim=-1)

    def fullness(self, state: Float[Tensor, "layer key column"]) -> Float[Tensor, " layer"]:
        """Effective degrees of freedom, the trace of G (G + lambda I)^-1, of the key width."""
        gram, _ = self._split(state)
        values = torch.linalg.eigvalsh(gram.double()).clamp(min=0)
        used = values / (values + self._ridge(gram).double().unsqueeze(-1))
        return (used.sum(dim=-1) / self.key_width).float()

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """G, made symmetric, and C."""
        gram, cross = state.float().tensor_split([self.key_width], dim=-1)
        return (gram + gram.mT) / 2, cross

    def _ridge(self, gram: Tensor) -> Tensor:
        mean_diagonal = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        return self.log_lambda_0.float().exp() + self.log_lambda_1.float().exp() * mean_diagonal

    def _solve(self, gram: Tensor, right_side: Tensor) -> Tensor:
        identity = torch.eye(self.key_width, device=gram.device)
        ridge = self._ridge(gram)
        factor, info = torch.linalg.cholesky_ex(gram + ridge[..., None, None] * identity)
        solution = torch.cholesky_solve(right_side, factor)
        finite = torch.isfinite(factor).all() and torch.isfinite(solution).all()
        if info.any() or not finite:
            raise NumericalError(
                "state", "is not positive definite or not finite; rebuild the memory from its turns"
            )
        return solution


def build_readout(config: GeneratorConfig) -> ReadOut:
    """Make the read-out that a generator's config asks for."""
    match config.readout:
        case SvdConfig(rank, tolerance):
            return SvdReadOut(rank, tolerance, config.value_width)
        case RidgeConfig():
            return RidgeReadOut(
                len(config.sites), config.key_width, config.value_width, config.features
            )
