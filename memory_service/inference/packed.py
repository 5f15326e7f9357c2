"""Llama's forward pass over weights that were packed once, for decoding on the CPU.

At a few rows a pass, transformers' modules spend most of their time on what is no product: oneDNN
orders a weight anew in every call, keys and values are copied for every head of a group, and three
products are started where one would do. Here weights are ordered once and joined (queries, keys and
values; gate and up projection), and the queries of a group of heads are rows of one attention
(docs/decisions/0013). The numbers are the modules' in another order of rounding. Packed weights are
a second copy: hidden states for encoding must not depend on this, so the modules keep theirs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_service.generator.config import GeneratorConfig
from memory_service.generator.generator import Generator
from memory_service.generator.injection import CheckedReadouts, Injector
from memory_service.inference.key_values import KeyValues

_FAMILIES = {"llama", "mistral"}
_ROTARY = {"default", "linear", "llama3", "yarn"}
_ATTENTION_OUTPUT, _MLP_OUTPUT = "self_attn.o_proj", "mlp.down_proj"
_TOKENS_AT_ONCE = 16
"""Prompts are filled up to so many tokens: oneDNN makes code for every size, and 20 ms of it."""
_ORDERED_FOR_ROWS = 16
"""oneDNN chooses the order of a weight for this many rows; any number may be multiplied."""


def is_packable(model: PreTrainedModel, config: GeneratorConfig) -> bool:
    """Whether `PackedDecoder` computes what this base model does, adapted where the config says."""
    of = model.config
    return (
        getattr(of, "model_type", None) in _FAMILIES
        and model.device.type == "cpu"
        and torch._C._has_mkldnn
        and model.dtype in {torch.bfloat16, torch.float32}
        and of.hidden_act == "silu"
        and not getattr(of, "attention_bias", False)
        and not getattr(of, "mlp_bias", False)
        and getattr(of, "sliding_window", None) is None
        and model.get_decoder().rotary_emb.rope_type in _ROTARY  # others remember the longest pass
        and {path for _, path in config.sites} <= {_ATTENTION_OUTPUT, _MLP_OUTPUT}
    )


class PackedDecoder:
    """`inference.decoder.Decoder` of a Llama or Mistral on the CPU.

    Weights are packed at first use. Nothing of a request is kept: any number of batches share one.
    """

    def __init__(self, model: PreTrainedModel, generator: Generator, injector: Injector) -> None:
        self._model = model
        self._generator = generator
        self.checked = injector.checked

    @torch.inference_mode()
    def logits(
        self, ids: Int[Tensor, "row token"], kept: KeyValues, readouts: CheckedReadouts | None
    ) -> Float[Tensor, "row vocabulary"]:
        """See `inference.decoder.Decoder`."""
        weights = self._weights
        positions = kept.expect(*ids.shape)
        mask = kept.mask(self._model.dtype)
        hidden = nn.functional.embedding(ids, weights.embedding)
        cosine, sine = (part.unsqueeze(1) for part in weights.rotary(hidden, positions))
        hidden = _filled_up(hidden)
        turns = cosine, _signed(sine)
        applied = None if readouts is None else readouts.readouts.to(hidden.dtype)
        for index, layer in enumerate(weights.layers):
            normed = layer.input_norm(hidden)
            attended = layer.attend(normed, turns, mask, kept, index)
            hidden = layer.attention_output(attended, applied, hidden)
            gate, up = layer.gate_and_up(layer.middle_norm(hidden)).chunk(2, dim=-1)
            hidden = layer.mlp_output(nn.functional.silu(gate).mul_(up), applied, hidden)
        return weights.head(weights.norm(hidden[:, ids.shape[1] - 1]))

    @cached_property
    def _weights(self) -> "_Weights":
        """Pack all weights; about half a second for SmolLM2-135M."""
        model, config = self._model, self._generator.config
        decoder: Any = model.get_decoder()
        adapters: dict[tuple[int, str], _Adapter] = {}
        for site, place in enumerate(config.sites):
            a_q = self._generator.a_q[site].to(model.dtype)
            b = self._generator.b[site].float() * config.scale
            adapters[place] = _Adapter(site, _Product(a_q), _Product(b.to(model.dtype)))
        layers = []
        for number, layer in enumerate(decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            joined = torch.cat([one.weight for one in projections])
            layers.append(
                _Layer(
                    input_norm=_norm(layer.input_layernorm),
                    queries_keys_values=_Product(joined),
                    key_heads=attention.k_proj.weight.shape[0] // attention.head_dim,
                    head_width=attention.head_dim,
                    attention_output=_Output(
                        _Product(attention.o_proj.weight),
                        adapters.get((number, _ATTENTION_OUTPUT)),
                    ),
                    middle_norm=_norm(layer.post_attention_layernorm),
                    gate_and_up=_Product(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])),
                    mlp_output=_Output(
                        _Product(mlp.down_proj.weight), adapters.get((number, _MLP_OUTPUT))
                    ),
                )
            )
        head: Any = model.get_output_embeddings()
        return _Weights(
            embedding=decoder.embed_tokens.weight,
            rotary=decoder.rotary_emb,
            layers=layers,
            norm=_norm(decoder.norm),
            head=_Product(head.weight),
        )


class _Product:
    """x W^T with W in oneDNN's own order."""

    def __init__(self, weight: Tensor) -> None:
        plain = weight.detach().contiguous()
        # Private operators of torch, those of its own compiler: torch is pinned exactly.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(plain, _ORDERED_FOR_ROWS)

    def __call__(self, inputs: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, None, "none", [], ""
        )
        return product

    def added(self, inputs: Tensor, to: Tensor) -> Tensor:
        """X W^T + `to`, in one call."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            inputs, to, self._weight, None, "add"
        )
        return product


@dataclass(frozen=True)
class _Adapter:
    site: int
    a_q: _Product
    b: _Product  # times the config's scale

    def __call__(self, inputs: Tensor, readouts: Tensor, output: Tensor) -> Tensor:
        recalled = torch.bmm(self.a_q(inputs), readouts[:, self.site])
        return self.b.added(recalled, output)


@dataclass(frozen=True)
class _Output:
    """A module that writes into the residual stream, and its adapter where it has one."""

    product: _Product
    adapter: _Adapter | None

    def __call__(self, inputs: Tensor, readouts: Tensor | None, residual: Tensor) -> Tensor:
        """The residual stream, with what the module writes added."""
        output = self.product.added(inputs, residual)
        if self.adapter is None or readouts is None:
            return output
        return self.adapter(inputs, readouts, output)


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    epsilon: float

    def __call__(self, hidden: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (size.square_() / hidden.shape[-1]).add_(self.epsilon).rsqrt_()
        normed = torch.mul(hidden, scale, out=torch.empty_like(hidden))  # rounded once
        return normed.mul_(self.weight)


@dataclass(frozen=True)
class _Layer:
    input_norm: _Norm
    queries_keys_values: _Product
    key_heads: int
    head_width: int
    attention_output: _Output
    middle_norm: _Norm
    gate_and_up: _Product
    mlp_output: _Output

    def attend(
        self,
        normed: Tensor,
        turns: tuple[Tensor, Tensor],
        mask: Tensor,
        kept: KeyValues,
        index: int,
    ) -> Tensor:
        """Every head's attention to what its row has read, [row token head*width]."""
        rows, tokens = normed.shape[0], turns[0].shape[-2]  # without those that fill up
        heads = self.queries_keys_values(normed)
        heads = heads.view(rows, normed.shape[1], -1, self.head_width)
        heads = heads[:, :tokens].transpose(1, 2)  # [row head token width]: queries, keys, values
        _turn(heads[:, : -self.key_heads], turns)
        queries, keys_values = heads.tensor_split([-2 * self.key_heads], dim=1)
        all_keys, all_values = kept.put(keys_values, index)
        group = queries.shape[1] // self.key_heads
        attended = nn.functional.scaled_dot_product_attention(
            queries.reshape(rows, self.key_heads, group * tokens, self.head_width),
            all_keys,
            all_values,
            attn_mask=mask if tokens == 1 else mask.repeat(1, 1, group, 1),
        )
        attended = attended.view(rows, -1, tokens, self.head_width).transpose(1, 2)
        return _filled_up(attended.reshape(rows, tokens, -1))


@dataclass(frozen=True)
class _Weights:
    embedding: Tensor
    rotary: nn.Module  # keeps nothing of a pass
    layers: list[_Layer]
    norm: _Norm
    head: _Product


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight.detach(), module.variance_epsilon)


def _filled_up(hidden: Tensor) -> Tensor:
    """With zeros after a prompt's last token; nothing looks at what becomes of them."""
    tokens = hidden.shape[1]
    missing = 0 if tokens == 1 else -tokens % _TOKENS_AT_ONCE
    return nn.functional.pad(hidden, (0, 0, 0, missing)) if missing else hidden


def _turn(heads: Tensor, turns: tuple[Tensor, Tensor]) -> None:
    """Rotary positions (Su et al. 2021), in place: halves of a head are the two coordinates."""
    cosine, sine = turns
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    heads.mul_(cosine).addcmul_(swapped, sine)


def _signed(sine: Tensor) -> Tensor:
    """The first coordinate is turned against the second one."""
    first, second = sine.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)
