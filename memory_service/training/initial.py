"""Where training begins: queries, keys and values that already mean something."""

import torch
from transformers import PreTrainedModel

from memory_service.generator.generator import Generator


def tie_to_base_model(generator: Generator, model: PreTrainedModel) -> None:
    """Set A_q = A_k W and B = A_v^T, W the adapted module's own weight.

    A query is then the key projection of what the module writes into the residual stream, and an
    adapter writes back (a random projection of) the hidden states whose keys match; how much of
    them is the config's scale, about a quarter. Starting from B = 0 instead, neither side learns
    before the other has: docs/decisions/0005.
    """
    layers = model.get_decoder().layers
    with torch.no_grad():
        for index, (layer, path) in enumerate(generator.config.sites):
            weight = layers[layer].get_submodule(path).weight.float()
            if weight.shape[0] != generator.config.d_model:
                continue  # it does not write into the residual stream; it starts as no change
            generator.a_q[index].copy_(generator.a_k[index] @ weight)
            generator.b[index].copy_(generator.a_v[index].T)
