"""The additive state: updates on a grid, added as integers.

Floating-point sums depend on their order, so they cannot be undone exactly. Every update is
rounded to multiples of a power of two (`grid`), and a state counts those multiples in int64:
addition is then associative and commutative to the last bit and subtraction undoes it.
"""

import hashlib
import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from memory_service.errors import NumericalError

_LIMIT = 2**62
"""States stay below this, so that adding two never overflows int64."""

_EXACT_FLOAT = 2**53
"""Above this many multiples float64, in which the rounding is done, has gaps wider than one."""


def to_grid(
    update: Float[Tensor, "layer key column"], grid_exponent: int
) -> Int64[Tensor, "layer key column"]:
    """Round an update to multiples of 2**`grid_exponent`: from here on it is exact.

    Raises:
        NumericalError: the update holds NaN or Inf, or is too large for the grid.
    """
    # Products with a power of two are exact, and in place: updates are large, copies cost time.
    multiples = update.double().mul_(2.0**-grid_exponent).round_()
    largest = max(map(abs, _extremes(multiples)))
    if not math.isfinite(largest):
        raise NumericalError("update", "holds NaN or Inf; the chunk cannot be remembered")
    if largest >= _EXACT_FLOAT:
        raise NumericalError("update", f"is too large for the grid 2**{grid_exponent}")
    return multiples.to(torch.int64)


def from_grid(
    state: Int64[Tensor, "*batch layer key column"], grid_exponent: int
) -> Float[Tensor, "*batch layer key column"]:
    """Give the state's value in float32, for the read-out only."""
    return state.double().mul_(2.0**grid_exponent).float()


def add(
    state: Int64[Tensor, "layer key column"], update: Int64[Tensor, "layer key column"]
) -> Int64[Tensor, "layer key column"]:
    """Add an update to a state.

    Raises:
        NumericalError: the sum reaches the limit, or an operand does.
    """
    _require_room(state)
    _require_room(update)
    total = state + update
    # Checked too, so that a state that could be reached can also be left: see `subtract`.
    _require_room(total)
    return total


def subtract(
    state: Int64[Tensor, "layer key column"], update: Int64[Tensor, "layer key column"]
) -> Int64[Tensor, "layer key column"]:
    """Take an update out of a state, as if it had never been added.

    Raises:
        NumericalError: the difference reaches the limit, or an operand does.
    """
    return add(state, -update)


def digest(state: Int64[Tensor, "layer key column"]) -> str:
    """SHA-256 of a state or update: equal digests mean equal to the last bit."""
    content = state.contiguous().cpu().numpy()
    return hashlib.sha256(repr(tuple(state.shape)).encode() + content.tobytes()).hexdigest()


def _require_room(state: Tensor) -> None:
    # Not by abs(), which leaves the smallest int64 negative.
    smallest, largest = _extremes(state)
    if max(largest, -smallest) >= _LIMIT:
        raise NumericalError("state", "has grown to the limit of int64; start a coarser grid")


def _extremes(numbers: Tensor) -> tuple[Any, Any]:
    """The smallest and the largest in one pass; both NaN where one number is."""
    smallest, largest = torch.aminmax(numbers)
    return smallest.item(), largest.item()
