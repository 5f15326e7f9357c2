"""Chunk -> hidden states: what the frozen base model computes for a chunk."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from memory_service.errors import NumericalError


def hidden_states(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch token"],
    layers: Sequence[int],
    attention_mask: Int[Tensor, "batch token"] | None = None,
) -> Float[Tensor, "batch layer token d_model"]:
    """Run the base model without its head and keep the input of each named decoder layer.

    These are the residual stream *before* `input_layernorm` (paper, eq. 4; the official
    `outputs.hidden_states[l]`). An adapter is active where the caller applies one: that is
    sequential encoding.

    Raises:
        NumericalError: the base model returned NaN or Inf.
    """
    with torch.no_grad():
        output = model.get_decoder()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=True,
        )
    # Layer by layer in memory: the generator's products then need no copy.
    kept = torch.stack([output.hidden_states[layer] for layer in layers]).transpose(0, 1)
    if not torch.isfinite(kept).all():
        raise NumericalError("hidden states", "the base model returned NaN or Inf for this chunk")
    return kept
