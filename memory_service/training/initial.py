"""Where training begins: queries, keys and values that already mean something."""

import random

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_service.generator.config import Association
from memory_service.generator.generator import Generator
from memory_service.generator.hidden_states import hidden_states, layer_inputs
from memory_service.generator.injection import Injector
from memory_service.inference.base_models import BaseModel
from memory_service.inference.tokens import Tokens
from memory_service.training.people import Split, make_episode

SAMPLED_PEOPLE = 40
"""Conversations whose hidden states tell the directions that tokens differ in."""

RECALLED_SHARE = 0.15
"""What an untrained adapter adds to the residual stream, as a share of its size."""

WEAKEST_DIRECTION = 1e-4
"""Variances below this are not amplified further."""


def tie_to_base_model(generator: Generator, base: BaseModel) -> None:
    """Start where recall already works a little, instead of from B = 0.

    Starting from B = 0, neither side learns before the other has: docs/decisions/0005, 0008.
    """
    if generator.config.encoding.association is Association.NEXT_TOKEN:
        _tie_next_tokens(generator, base)
    else:
        _tie_layer_inputs(generator, base.model)


def _tie_layer_inputs(generator: Generator, model: PreTrainedModel) -> None:
    """Set A_q = A_k W and B = A_v^T, W the adapted module's own weight.

    A query is then the key projection of what the module writes into the residual stream, and an
    adapter writes back (a random projection of) the hidden states whose keys match; how much of
    them is the config's scale, about a quarter.
    """
    layers = model.get_decoder().layers
    with torch.no_grad():
        for index, (layer, path) in enumerate(generator.config.sites):
            weight = layers[layer].get_submodule(path).weight.float()
            if weight.shape[0] != generator.config.d_model:
                continue  # it does not write into the residual stream; it starts as no change
            generator.a_q[index].copy_(generator.a_k[index] @ weight)
            generator.b[index].copy_(generator.a_v[index].T)


def _tie_next_tokens(generator: Generator, base: BaseModel) -> None:
    """Keys: the whitened principal directions of the module's inputs; queries the same.

    Values: the principal directions of the token embeddings, written back so that the tied head
    reads the remembered token off the residual stream.
    """
    config = generator.config
    inputs, residual = _sample(generator, base)
    embeddings = _normalised(base.model.get_input_embeddings().weight.float())
    directions = _principal(embeddings, config.value_width)[0]
    with torch.no_grad():
        for site, of_site in enumerate(inputs):
            found, variances = _principal(_normalised(of_site), config.key_width)
            found = found / variances.clamp_min(WEAKEST_DIRECTION).sqrt().unsqueeze(1)
            size = of_site.square().mean(dim=-1).sqrt().median()
            generator.a_k[site].zero_()
            generator.a_k[site][:, config.parts[0]] = found
            generator.a_q[site].copy_(found / size)
            generator.a_v[site].copy_(directions)
            gain = RECALLED_SHARE * residual[site] / config.scale
            generator.b[site].copy_(directions.T * gain)


def _sample(generator: Generator, base: BaseModel) -> tuple[list[Tensor], list[float]]:
    """Every site's inputs [token d_in] over sampled conversations, and its residual's size."""
    config, tokens = generator.config, Tokens(base)
    rng = random.Random("initial")  # noqa: S311  # not security
    injector = Injector(base.model, generator)
    inputs: list[list[Tensor]] = [[] for _ in config.sites]
    sizes: list[list[Tensor]] = [[] for _ in config.sites]
    try:
        for _ in range(SAMPLED_PEOPLE):
            episode = make_episode(rng, Split.TRAIN, facts=6)
            texts = [turn.text + "\n" for turn in episode.turns]
            kept = tokens.chunk_ids(texts)[: config.encoding.chunk_tokens]
            ids = torch.tensor([kept], device=base.model.device)
            hidden = hidden_states(injector, ids)[0, :, 1:, config.parts[0]]
            beside = layer_inputs(base.model, ids, config.site_layers)[0].float()
            for site in range(len(config.sites)):
                inputs[site].append(hidden[site].float())
                sizes[site].append(beside[site].square().mean(dim=-1).sqrt())
    finally:
        injector.detach()
    return (
        [torch.cat(parts) for parts in inputs],
        [float(torch.cat(parts).median()) for parts in sizes],
    )


def _principal(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` directions in which rows are largest, [count width], and their mean squares."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return vectors.flip(1)[:, :count].T, values.flip(0)[:count]


def _normalised(rows: Tensor) -> Tensor:
    return nn.functional.rms_norm(rows, rows.shape[-1:], eps=1e-6)
