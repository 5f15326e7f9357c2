"""Which part of a state says what: shares of a read-out that are cheap to compute.

A read-out is the sum of what the parts of its state contribute (see `ReadOut.adjoint`). So is the
adapter's output at a token, y = B N^T A_q x. A part's share in a module is its contribution's
component along the whole, in units of the whole: <y_part, y> / <y, y>, summed over tokens. Shares
of all parts add up to 1; a part that speaks against the rest has a negative one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from memory_service.generator.generator import Generator


def share_gauge(
    generator: Generator,
    state: Float[Tensor, "layer key column"],
    inputs: Sequence[Tensor] | None = None,  # [token d_in] each; d_in differs between modules
) -> Float[Tensor, "layer key column"]:
    """What to multiply a part of a state with (and sum, module by module) to get its shares.

    `inputs` are those of the adapted modules at the tokens in question; without them the share is
    in the change of the modules' weights themselves: inputs of every direction alike.

    Raises:
        NumericalError: the state cannot be read out.
    """
    with torch.no_grad():
        readouts = generator.readout(state).float()
        weights = []
        for index, (a_q, b) in enumerate(zip(generator.a_q, generator.b, strict=True)):
            maps = a_q.float()
            if inputs is None:
                asked = maps @ maps.T
            else:
                queries = inputs[index].float() @ maps.T
                asked = queries.T @ queries
            weight = asked @ readouts[index] @ (b.float().T @ b.float())
            whole = (weight * readouts[index]).sum()
            weights.append(weight / whole if whole > 0 else torch.zeros_like(weight))
        return generator.readout.adjoint(state, torch.stack(weights))


def shares(
    gauge: Float[Tensor, "layer key column"], part: Float[Tensor, "layer key column"]
) -> Float[Tensor, " layer"]:
    """A part's share in every module, by a gauge of the state that it is a part of."""
    return (gauge * part).sum(dim=(-2, -1))
