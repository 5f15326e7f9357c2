"""Chunk -> hidden states: what the frozen base model computes for a chunk.

Which of it a generator remembers is its config's `Association`: the inputs of decoder layers (the
paper), or the inputs of the adapted modules, each beside the token that followed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_service.errors import NumericalError
from memory_service.generator.config import Association
from memory_service.generator.injection import Injector


def hidden_states(
    injector: Injector,
    input_ids: Int[Tensor, "batch token"],
    attention_mask: Int[Tensor, "batch token"] | None = None,
) -> Float[Tensor, "batch layer token feature"]:
    """What the injector's generator makes keys and values from, for every adapted module.

    Padding belongs on the right. An adapter is active where the caller applies one: that is
    sequential encoding.

    Raises:
        NumericalError: the base model returned NaN or Inf.
    """
    config = injector.config
    if config.encoding.association is Association.NEXT_TOKEN:
        return next_tokens(injector, input_ids, attention_mask)
    return layer_inputs(injector.model, input_ids, config.site_layers, attention_mask)


def layer_inputs(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch token"],
    layers: Sequence[int],
    attention_mask: Int[Tensor, "batch token"] | None = None,
) -> Float[Tensor, "batch layer token d_model"]:
    """Run the base model without its head and keep the input of each named decoder layer.

    These are the residual stream *before* `input_layernorm` (paper, eq. 4; the official
    `outputs.hidden_states[l]`).

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
    return _finite(kept)


def next_tokens(
    injector: Injector,
    input_ids: Int[Tensor, "batch token"],
    attention_mask: Int[Tensor, "batch token"] | None = None,
) -> Float[Tensor, "batch layer token feature"]:
    """The adapted modules' inputs at the token before, beside each token's embedding.

    The first token of a chunk has none before it: its key is zero, so it is not remembered. The
    idea is that of nearest-neighbour language models (Khandelwal et al. 2020, arXiv 1911.00172),
    kept in a linear memory instead of a datastore.

    Raises:
        NumericalError: the base model returned NaN or Inf.
    """
    model = injector.model
    with torch.no_grad(), injector.recording() as recorded:
        model.get_decoder()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        embedded = model.get_input_embeddings()(input_ids)
    inputs = torch.stack([recorded[index] for index in range(len(injector.config.sites))], dim=1)
    before = nn.functional.pad(inputs[..., :-1, :], (0, 0, 1, 0))  # [batch layer token d_in]
    return _finite(beside_next_tokens(before, embedded))


def beside_next_tokens(
    before: Float[Tensor, "*batch layer token d_in"],
    embedded: Float[Tensor, "*batch token d_model"],
) -> Float[Tensor, "*batch layer token feature"]:
    """Join what keys are made from with the embeddings of the tokens that followed."""
    layers = before.shape[-3]
    following = embedded.unsqueeze(-3).expand(*before.shape[:-3], layers, *embedded.shape[-2:])
    return torch.cat([before, following], dim=-1)


def _finite(hidden: Tensor) -> Tensor:
    if not torch.isfinite(hidden).all():
        raise NumericalError("hidden states", "the base model returned NaN or Inf for this chunk")
    return hidden
