"""One pass of the base model over the next tokens of several rows, each under its own adapter."""

from contextlib import nullcontext
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from memory_service.generator.generator import Generator
from memory_service.generator.injection import CheckedReadouts, Injector
from memory_service.inference.key_values import KeyValues
from memory_service.inference.packed import PackedDecoder, is_packable


class Decoder(Protocol):
    """What a batch of answers needs of a base model with its generator."""

    def checked(self, readouts: Float[Tensor, "row layer key value"]) -> CheckedReadouts:
        """Look at read-outs once, for many passes.

        Raises:
            IncompatibleState: they are those of a generator of another shape.
            NumericalError: one of them holds NaN or Inf.
        """
        ...

    def logits(
        self, ids: Int[Tensor, "row token"], kept: KeyValues, readouts: CheckedReadouts | None
    ) -> Float[Tensor, "row vocabulary"]:
        """Read the next tokens of the first rows into `kept`; the logits after each row's last.

        There are as many read-outs as rows; None is no memory for any of them.
        """
        ...


class ModuleDecoder:
    """Runs transformers' own modules: any base model, on any device."""

    def __init__(self, model: PreTrainedModel, injector: Injector) -> None:
        self._model = model
        self._injector = injector
        self.checked = injector.checked

    def logits(
        self, ids: Int[Tensor, "row token"], kept: KeyValues, readouts: CheckedReadouts | None
    ) -> Float[Tensor, "row vocabulary"]:
        """See `Decoder`."""
        positions = kept.expect(*ids.shape)
        with nullcontext() if readouts is None else self._injector.apply(readouts):
            output = self._model(
                input_ids=ids,
                attention_mask=kept.mask(self._model.dtype),
                position_ids=positions,
                past_key_values=kept,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[:, -1]
        return logits


def make_decoder(model: PreTrainedModel, generator: Generator, injector: Injector) -> Decoder:
    """The quickest decoder that computes this base model."""
    if is_packable(model, generator.config):
        return PackedDecoder(model, generator, injector)
    return ModuleDecoder(model, injector)
