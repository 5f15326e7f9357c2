"""What the frozen base model computes, computed once and kept.

Nothing below the first adapted layer depends on the generator, and neither do the hidden states of
a chunk: a text that is met again costs no pass of the base model. That is most of a step's work.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from weakref import finalize

import structlog
import torch
from torch import Tensor, nn

from memory_service.generator.config import GeneratorConfig
from memory_service.generator.hidden_states import beside_next_tokens, hidden_states
from memory_service.generator.injection import Injector
from memory_service.training.data import Rows

PADDED_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Texts of similar length are computed together while they fit into this."""

KEPT_BYTES = 24 * 2**30
"""Results beyond this are computed anew each time."""

log = structlog.get_logger()


class FrozenBase:
    """The base model in two halves: what training only reads, and what adapters act in.

    `upper` is the decoder from the first adapted layer on; it shares every weight and hook with the
    whole model and takes `inputs_embeds`.
    """

    def __init__(self, injector: Injector, directory: Path) -> None:
        config: GeneratorConfig = injector.config
        self._injector = injector
        self._lower, self.upper = split_decoder(injector.model.get_decoder(), min(config.layers))
        self._embed = injector.model.get_input_embeddings()
        self._device = injector.model.device
        # A GPU computes a text sooner than a file gives it back.
        self._kept = KeptTensors(directory, KEPT_BYTES if self._device.type == "cpu" else 0)

    def chunks(self, chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """Hidden states of chunks, each [layer token feature].

        Raises:
            NumericalError: the base model returned NaN or Inf.
        """
        kept = self._remembered("chunk", chunks, self._encode)
        if kept and kept[0].shape[-1] == self._injector.config.features:
            return kept
        return [
            beside_next_tokens(seen, self._embed(torch.tensor(ids, device=self._device)))
            for seen, ids in zip(kept, chunks, strict=True)
        ]

    def rows(self, rows: Rows) -> Tensor:
        """Input of the first adapted layer where rows are packed, [person token d_model]."""
        width = self._embed.weight.shape[1]
        hidden: Tensor = self._embed.weight.new_zeros(*rows.ids.shape, width)
        texts = [
            rows.ids[span.person, span.start : span.start + span.length].tolist()
            for span in rows.spans
        ]
        found = self._remembered("row", texts, self._below)
        for span, one in zip(rows.spans, found, strict=True):
            hidden[span.person, span.start : span.start + span.length] = one
        return hidden

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        # The side that is no mere look-up: see `chunks`.
        keys = self._injector.config.key_features
        return hidden_states(self._injector, ids, mask)[..., :keys]

    def _below(self, ids: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            hidden: Tensor = self._lower(
                input_ids=ids, attention_mask=mask, use_cache=False
            ).last_hidden_state
            return hidden

    def _remembered(
        self,
        kind: str,
        texts: Sequence[Sequence[int]],
        compute: Callable[[Tensor, Tensor], Tensor],
    ) -> list[Tensor]:
        """Results for texts, in order; the missing ones are computed in padded groups."""
        keys = [_key(kind, text) for text in texts]
        kept = {key: self._kept.get(key) for key in keys}
        found = {key: tensor for key, tensor in kept.items() if tensor is not None}
        missing = {
            key: list(text) for key, text in zip(keys, texts, strict=True) if key not in found
        }
        ordered = sorted(missing, key=lambda key: len(missing[key]), reverse=True)
        while ordered:
            width = len(missing[ordered[0]])
            group, ordered = _split(ordered, max(1, PADDED_TOKENS[self._device.type] // width))
            ids = torch.zeros(len(group), width, dtype=torch.int64)
            mask = torch.zeros(len(group), width, dtype=torch.int64)
            for row, key in enumerate(group):
                ids[row, : len(missing[key])] = torch.tensor(missing[key])
                mask[row, : len(missing[key])] = 1
            results = compute(ids.to(self._device), mask.to(self._device))
            for key, result in zip(group, results, strict=True):
                found[key] = result[..., : len(missing[key]), :].clone()
                self._kept.put(key, found[key])
        return [found[key] for key in keys]


class KeptTensors:
    """Tensors in one unnamed file that grows up to a limit; it is gone with the process."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=directory)  # noqa: SIM115  # lives as long as this object
        finalize(self, self._file.close)
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._where: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}

    def get(self, key: str) -> Tensor | None:
        """The tensor kept under a key, or None."""
        if key not in self._where:
            return None
        offset, shape, dtype = self._where[key]
        tensor = torch.empty(shape, dtype=dtype)
        self._file.seek(offset)
        self._file.readinto(_bytes(tensor))
        return tensor

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor where there is room for it."""
        if self._size_bytes + tensor.nbytes > self._limit_bytes:
            return
        content = _bytes(tensor.contiguous())
        try:
            self._file.seek(self._size_bytes)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            log.warning("frozen_results_no_longer_kept", reason=error.strerror)
            self._limit_bytes = self._size_bytes
            return
        self._where[key] = (self._size_bytes, tuple(tensor.shape), tensor.dtype)
        self._size_bytes += len(content)


def split_decoder(decoder: nn.Module, at: int) -> tuple[nn.Module, nn.Module]:
    """A decoder's layers before `at`, without the final norm, and those from `at` on.

    Both are views: they share weights and hooks with the whole decoder.
    """
    halves = []
    layers: nn.ModuleList = decoder.layers  # type: ignore[assignment]  # every HF decoder's
    for part in (layers[:at], layers[at:]):
        half = copy.copy(decoder)
        half._modules = dict(decoder._modules)
        half.layers = part
        halves.append(half)
    lower, upper = halves
    lower.norm = nn.Identity()
    return lower, upper


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _key(kind: str, ids: Sequence[int]) -> str:
    return hashlib.sha256(f"{kind} {list(ids)}".encode()).hexdigest()


def _split(keys: list[str], count: int) -> tuple[list[str], list[str]]:
    return keys[:count], keys[count:]
