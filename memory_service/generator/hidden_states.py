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

    The first token of a chunk has none before it: its key is zero, so it is not remembered. Where
    the config names what ends a line, the inputs at the end of each token's line stand between the
    two: they have seen the whole line, where those before the token have seen only its beginning.
    The idea is that of nearest-neighbour language models (Khandelwal et al. 2020, arXiv
    1911.00172), kept in a linear memory instead of a datastore.

    Raises:
        NumericalError: the base model returned NaN or Inf.
    """
    model, line_end = injector.model, injector.config.encoding.line_end
    with torch.no_grad():
        with injector.recording(until_all=True) as recorded:  # no layer after the last adapted one
            model.get_decoder()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        embedded = _finite(model.get_input_embeddings()(input_ids))
    sites = range(len(injector.config.sites))
    inputs = _finite(torch.stack([recorded[index] for index in sites], dim=1))
    seen = [nn.functional.pad(inputs[..., :-1, :], (0, 0, 1, 0))]  # [batch layer token d_in]
    if line_end is not None:
        ends = _line_ends(input_ids, line_end, attention_mask)[:, 1:]
        index = ends[:, None, :, None].expand(-1, inputs.shape[1], -1, inputs.shape[-1])
        seen.append(nn.functional.pad(inputs.gather(2, index), (0, 0, 1, 0)))
    return beside_next_tokens(torch.cat(seen, dim=-1), embedded)


def _line_ends(
    input_ids: Int[Tensor, "batch token"],
    line_end: int,
    attention_mask: Int[Tensor, "batch token"] | None,
) -> Int[Tensor, "batch token"]:
    """Where the line of each token ends: at the next `line_end`, or with the text."""
    width = input_ids.shape[1]
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    last = mask.sum(dim=1, keepdim=True) - 1
    places = torch.arange(width, device=input_ids.device).expand_as(input_ids)
    ends = torch.where((input_ids == line_end) & mask.bool(), places, last)
    return ends.flip(1).cummin(dim=1).values.flip(1)


def beside_next_tokens(
    seen: Float[Tensor, "*batch layer token d_in"],
    embedded: Float[Tensor, "*batch token d_model"],
) -> Float[Tensor, "*batch layer token feature"]:
    """Join what keys are made from with the embeddings of the tokens that followed."""
    layers = seen.shape[-3]
    following = embedded.unsqueeze(-3).expand(*seen.shape[:-3], layers, *embedded.shape[-2:])
    return torch.cat([seen, following], dim=-1)


def _finite(hidden: Tensor) -> Tensor:
    if not torch.isfinite(hidden).all():
        raise NumericalError("hidden states", "the base model returned NaN or Inf for this chunk")
    return hidden
