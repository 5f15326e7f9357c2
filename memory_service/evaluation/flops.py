"""Floating-point operations, counted over the real modules instead of estimated.

torch's counter sees every matrix product and attention that the modules run. They run on tensors
without numbers ("meta"), so counting a prompt of a thousand tokens takes milliseconds, and the
times that are measured beside it are not disturbed. A multiplication and an addition are two
operations; attention counts the whole square of scores, as it is computed. Products only: norms
and activations are left out. The read-out alone is reckoned, as the counter knows no factorisation.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from memory_service.generator.config import Association, RidgeConfig, SvdConfig
from memory_service.generator.generator import Generator
from memory_service.generator.injection import Injector, adapter_output

KEPT_LENGTHS = 4096
"""Lengths whose count is remembered."""


def count_flops(call: Callable[[], object]) -> int:
    """Operations of a call."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return int(counter.get_total_flops())


class ModelFlops:
    """Operations of a base model and a generator of these shapes."""

    def __init__(self, model: PreTrainedModel, generator: Generator) -> None:
        self._config = generator.config
        with torch.device("meta"):
            self._model: Any = type(model)(model.config).eval()
            self._generator = Generator(generator.config).eval()
        self._injector = Injector(self._model, self._generator)
        self.reading = lru_cache(KEPT_LENGTHS)(self._count_reading)
        self._encoding = lru_cache(KEPT_LENGTHS)(self._count_encoding)
        self.reading_out = self._count_reading_out()

    def answering(self, prompt: int, answer: int, *, kept: int = 0, adapted: bool) -> int:
        """A prompt of which `kept` tokens were read before, and the tokens of its answer.

        The last token of an answer is not read. Each of the others costs a pass, and what a pass
        costs grows by the same with every token before it: a sum with equal steps.
        """
        total = self.reading(prompt - kept, kept, adapted)
        passes = answer - 1
        if passes < 1:
            return total
        first = self.reading(1, prompt, adapted)
        last = self.reading(1, prompt + passes - 1, adapted)
        return total + passes * (first + last) // 2

    def writing(self, chunk_tokens: Sequence[int]) -> int:
        """Encoding chunks of so many tokens and reading the adapter out once."""
        if not chunk_tokens:
            return 0
        return sum(self._encoding(tokens) for tokens in chunk_tokens) + self.reading_out

    def _count_reading(self, new: int, kept: int, adapted: bool) -> int:
        """A pass over `new` tokens after `kept` ones, with the logits of the last."""

        def forward() -> None:
            self._model(
                input_ids=_empty(1, new).long(),
                attention_mask=_empty(1, 1, new, kept + new),
                position_ids=_empty(1, new).long(),
                past_key_values=_Kept(kept),
                use_cache=True,
                logits_to_keep=1,
            )

        return count_flops(forward) + (count_flops(lambda: self._adapt(new)) if adapted else 0)

    def _adapt(self, tokens: int) -> None:
        config = self._config
        readout = _empty(1, config.key_width, config.value_width)
        for a_q, b in zip(self._generator.a_q, self._generator.b, strict=True):
            adapter_output(_empty(1, tokens, a_q.shape[1]), a_q, readout, b)

    def _count_encoding(self, tokens: int) -> int:
        """A pass without what comes after all that is remembered, and the update made of it."""
        is_enough = self._config.encoding.association is Association.NEXT_TOKEN

        def encode() -> None:
            with self._injector.recording(until_all=is_enough):
                self._model.get_decoder()(
                    input_ids=_empty(1, tokens).long(),
                    attention_mask=_empty(1, 1, tokens, tokens),
                    position_ids=_empty(1, tokens).long(),
                    use_cache=False,
                )
            sites = len(self._config.sites)
            self._generator.update(_empty(sites, tokens, self._config.features))

        return count_flops(encode)

    def _count_reading_out(self) -> int:
        """Cholesky and two triangular solves, or an SVD (21 n^3; Golub and Van Loan, 8.6)."""
        config = self._config
        width = config.key_width
        match config.readout:
            case RidgeConfig():
                each = width**3 // 3 + 2 * width**2 * config.value_width
            case SvdConfig(rank, _):
                each = 21 * width**3 + 2 * width * rank * config.value_width
        return len(config.sites) * each


class _Kept:
    """Stands in for the keys and values of tokens read before: shapes without numbers."""

    is_compileable = False

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def update(self, keys: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        rows, heads, tokens, width = keys.shape
        shape = (rows, heads, self._tokens + tokens, width)
        return keys.new_empty(shape), values.new_empty(shape)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._tokens


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")
