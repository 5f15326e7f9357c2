"""Tensors <-> bytes: safetensors in memory, checked on every read.

The metadata names the format, the fingerprint, the dtype the tensor has in memory, its shape and
the SHA-256 of the stored numbers. Sums are int64 in memory and, in most memories, small: they are
stored in the narrowest integers that hold them, which is exact and half or a quarter of the bytes;
of a sum of zeros, which every memory begins with, only the shape is stored.
"""

import hashlib
import json
import math
from collections.abc import Sequence

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from memory_service.domain.memory import Fingerprint
from memory_service.domain.records import StoredState
from memory_service.errors import IncompatibleState, InvalidInput, NumericalError
from memory_service.generator.state import add, digest
from memory_service.storage.failures import REBUILD

FORMAT = "memory-service/1"
"""Name of this encoding of tensors."""

_NARROW = (torch.int16, torch.int32)
_MOST_NUMBERS = 2**26
"""Of a sum that may be stored as its shape: reading a small file must not fill the memory."""
_NOTHING = torch.empty(0, dtype=_NARROW[0])
_READOUT_DTYPES = (torch.bfloat16, torch.float32)


def pack_sum(total: Tensor, fingerprint: Fingerprint) -> bytes:
    """Encode a state or update exactly.

    Raises:
        InvalidInput: it is not int64.
    """
    if total.dtype != torch.int64:
        raise InvalidInput("state", str(total.dtype), "must be int64")
    is_short = total.numel() <= _MOST_NUMBERS and not total.any()
    stored = _NOTHING if is_short else total.to(_narrowest(total))
    return _pack(total, stored, fingerprint)


def unpack_sum(data: bytes, fingerprint: Fingerprint, subject: str) -> Tensor:
    """Decode what `pack_sum` made, as int64.

    Raises:
        IncompatibleState: the bytes are damaged, hold another dtype, or have another maker.
    """
    return _unpack(data, fingerprint, subject, (torch.int64,), (*_NARROW, torch.int64))


def pack_readouts(readouts: Tensor, fingerprint: Fingerprint) -> bytes:
    """Encode read-outs bit by bit.

    Raises:
        InvalidInput: they are neither bfloat16 nor float32.
    """
    if readouts.dtype not in _READOUT_DTYPES:
        raise InvalidInput("readouts", str(readouts.dtype), "must be bfloat16 or float32")
    return _pack(readouts, readouts, fingerprint)


def unpack_readouts(data: bytes, fingerprint: Fingerprint, subject: str) -> Tensor:
    """Decode what `pack_readouts` made.

    Raises:
        IncompatibleState: the bytes are damaged, hold another dtype, or have another maker.
    """
    return _unpack(data, fingerprint, subject, _READOUT_DTYPES, _READOUT_DTYPES)


def pack_state(state: StoredState) -> tuple[bytes, bytes | None]:
    """Encode both parts of a state: the closed sum and the open chunk's update.

    Raises:
        InvalidInput: a part is not int64.
    """
    open_update = state.open_update
    return (
        pack_sum(state.closed, state.fingerprint),
        None if open_update is None else pack_sum(open_update, state.fingerprint),
    )


def unpack_state(  # the columns of one row
    closed: bytes,
    open_update: bytes | None,
    open_chunk: str | None,
    fingerprint: Fingerprint,
    state_digest: str,
    subject: str,
) -> StoredState:
    """Decode a state and compare the digest of its whole sum.

    Raises:
        IncompatibleState: a part is damaged, or the parts do not add up to the digest.
    """
    closed_sum = unpack_sum(closed, fingerprint, subject)
    update = None if open_update is None else unpack_sum(open_update, fingerprint, subject)
    if update is not None and update.shape != closed_sum.shape:
        raise IncompatibleState(subject, "its two parts differ in shape", REBUILD)
    try:
        total = closed_sum if update is None else add(closed_sum, update)
    except NumericalError as error:
        raise IncompatibleState(subject, str(error), REBUILD) from error
    found = digest(total)
    if found != state_digest:
        raise IncompatibleState(
            subject, f"its sum has digest {found[:12]} instead of {state_digest[:12]}", REBUILD
        )
    return StoredState(fingerprint, closed_sum, update, open_chunk, state_digest)


def _pack(logical: Tensor, stored: Tensor, fingerprint: Fingerprint) -> bytes:
    stored = stored.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "fingerprint": fingerprint.digest,
        "dtype": _name(logical.dtype),
        "shape": json.dumps(list(logical.shape)),
        "digest": _content_digest(stored, logical.shape),
    }
    return _in_order(safetensors.torch.save({"tensor": stored}, metadata))


def _in_order(packed: bytes) -> bytes:
    """Sort the header's fields, which are written in any order: equal tensors are equal bytes."""
    end = 8 + int.from_bytes(packed[:8], "little")
    header = json.dumps(json.loads(packed[8:end]), sort_keys=True, separators=(",", ":"))
    return packed[:8] + header.encode().ljust(end - 8) + packed[end:]


def _unpack(
    data: bytes,
    fingerprint: Fingerprint,
    subject: str,
    logical: tuple[torch.dtype, ...],
    stored: tuple[torch.dtype, ...],
) -> Tensor:
    try:
        metadata = _metadata(data)
        tensor: Tensor = safetensors.torch.load(data)["tensor"]
        written = {key: str(metadata[key]) for key in ("format", "fingerprint", "dtype", "shape")}
        content_digest = metadata["digest"]
        shape = [int(size) for size in json.loads(metadata["shape"])]
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise IncompatibleState(subject, "its stored bytes are damaged", REBUILD) from error
    dtypes = {_name(dtype): dtype for dtype in logical}
    problem = ""
    if written["format"] != FORMAT:
        problem = f"its bytes are in format {written['format'][:40]!r} instead of {FORMAT!r}"
    elif written["dtype"] not in dtypes or tensor.dtype not in stored:
        problem = f"it holds {written['dtype'][:20]} numbers instead of {' or '.join(dtypes)}"
    elif shape != list(tensor.shape) and (tensor.shape != _NOTHING.shape or not _is_shape(shape)):
        problem = f"it has shape {list(tensor.shape)} instead of {written['shape'][:60]}"
    elif content_digest != _content_digest(tensor, shape):
        problem = "its stored bytes are damaged (their digest differs)"
    elif written["fingerprint"] != fingerprint.digest:
        problem = (
            f"its bytes were made by {written['fingerprint'][:12]} instead of {fingerprint.short}"
        )
    if problem:
        raise IncompatibleState(subject, problem, REBUILD)
    dtype = dtypes[written["dtype"]]
    return tensor.to(dtype) if tensor.numel() else torch.zeros(shape, dtype=dtype)


def _is_shape(shape: Sequence[int]) -> bool:
    """Whether it can be that of a sum of zeros."""
    return min(shape, default=-1) >= 0 and math.prod(shape) <= _MOST_NUMBERS


def _metadata(data: bytes) -> dict[str, str]:
    """Read the header of safetensors bytes; its own reader gives metadata for files only."""
    size = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return metadata


def _narrowest(total: Tensor) -> torch.dtype:
    if total.numel() == 0:
        return _NARROW[0]
    low, high = (int(bound) for bound in torch.aminmax(total))
    for dtype in _NARROW:
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def _content_digest(stored: Tensor, shape: Sequence[int]) -> str:
    content = hashlib.sha256(f"{_name(stored.dtype)} {list(shape)}".encode())
    content.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
