import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memory_service.domain.memory import Fingerprint
from memory_service.domain.records import StoredState
from memory_service.errors import IncompatibleState, InvalidInput
from memory_service.generator.state import digest
from memory_service.storage import codec
from memory_service.storage.codec import (
    pack_readouts,
    pack_state,
    pack_sum,
    unpack_readouts,
    unpack_state,
    unpack_sum,
)

FINGERPRINT = Fingerprint("generator", "base", "tokenizer", "chunking", "independent", "bf16")
OTHER = Fingerprint("another", "base", "tokenizer", "chunking", "independent", "bf16")
SUBJECT = "state of user ann"

shapes = st.lists(st.integers(1, 4), min_size=3, max_size=3)
bounds = st.sampled_from([2**15, 2**31, 2**63])


@st.composite
def sums(draw: st.DrawFn) -> Tensor:
    shape, bound = draw(shapes), draw(bounds)
    count = math.prod(shape)
    values = draw(st.lists(st.integers(-bound, bound - 1), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.int64).reshape(shape)


@st.composite
def readouts(draw: st.DrawFn) -> Tensor:
    """Any bits: also NaN with a payload, infinities, negative zero."""
    shape = draw(shapes)
    bits, dtype = draw(st.sampled_from([(16, torch.bfloat16), (32, torch.float32)]))
    count = math.prod(shape)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    integers = torch.tensor(values, dtype=torch.int16 if bits == 16 else torch.int32)
    return integers.view(dtype).reshape(shape)


@given(sums())
def test_sums_come_back_to_the_last_bit_as_int64(total: Tensor) -> None:
    back = unpack_sum(pack_sum(total, FINGERPRINT), FINGERPRINT, SUBJECT)
    assert back.dtype == torch.int64
    assert torch.equal(back, total)
    assert digest(back) == digest(total)


def test_equal_tensors_are_equal_bytes() -> None:
    assert len({pack_sum(torch.ones(2, 3, 3, dtype=torch.int64), OTHER) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("largest", "item_bytes"),
    [(2**15 - 1, 2), (-(2**15), 2), (2**15, 4), (-(2**31), 4), (2**31, 8), (-(2**31) - 1, 8)],
)
def test_sums_take_the_narrowest_integers_that_hold_them(largest: int, item_bytes: int) -> None:
    total = torch.zeros(1000, dtype=torch.int64)
    total[7] = largest
    size = len(pack_sum(total, FINGERPRINT))
    assert 1000 * item_bytes < size < 1000 * item_bytes + 600


@given(readouts())
def test_readouts_come_back_to_the_last_bit(tensor: Tensor) -> None:
    back = unpack_readouts(pack_readouts(tensor, FINGERPRINT), FINGERPRINT, SUBJECT)
    integers = torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32
    assert back.dtype == tensor.dtype
    assert torch.equal(back.view(integers), tensor.view(integers))


def test_tensors_that_are_not_contiguous_come_back() -> None:
    total = torch.arange(24).reshape(2, 3, 4).transpose(0, 2)
    assert torch.equal(unpack_sum(pack_sum(total, FINGERPRINT), FINGERPRINT, SUBJECT), total)


def test_empty_sums_come_back() -> None:
    total = torch.zeros(0, 3, dtype=torch.int64)
    assert unpack_sum(pack_sum(total, FINGERPRINT), FINGERPRINT, SUBJECT).shape == (0, 3)


def test_of_zeros_only_the_shape_is_stored() -> None:
    total = torch.zeros(6, 512, 768, dtype=torch.int64)
    data = pack_sum(total, FINGERPRINT)
    assert len(data) < 600
    assert unpack_sum(data, FINGERPRINT, SUBJECT).equal(total)


def test_zeros_too_many_to_be_made_of_a_shape_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MOST_NUMBERS", 999)
    total = torch.zeros(10, 10, 10, dtype=torch.int64)
    data = pack_sum(total, FINGERPRINT)
    assert len(data) > 2000
    assert unpack_sum(data, FINGERPRINT, SUBJECT).equal(total)


@pytest.mark.parametrize("shape", [[2**20, 2**20, 1], [-1, -1, 1], [4], []])
def test_a_shape_that_no_sum_has_is_refused(shape: list[int]) -> None:
    data = pack_sum(torch.zeros(1, 2, 3, dtype=torch.int64), FINGERPRINT)
    written, planted = json.dumps([1, 2, 3]), json.dumps(shape)
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().replace(written, planted).rstrip().encode()
    damaged = len(header).to_bytes(8, "little") + header + data[8 + size :]
    with pytest.raises(IncompatibleState):
        unpack_sum(damaged, FINGERPRINT, SUBJECT)


def test_every_flipped_bit_is_noticed() -> None:
    data = pack_sum(torch.arange(12).reshape(3, 4), FINGERPRINT)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IncompatibleState):
            unpack_sum(bytes(damaged), FINGERPRINT, SUBJECT)


def test_every_truncation_is_noticed() -> None:
    data = pack_readouts(torch.ones(3, 4), FINGERPRINT)
    for size in range(len(data)):
        with pytest.raises(IncompatibleState):
            unpack_readouts(data[:size], FINGERPRINT, SUBJECT)


@given(st.binary(max_size=200))
def test_other_bytes_are_noticed(data: bytes) -> None:
    with pytest.raises(IncompatibleState, match="memory users rebuild USER"):
        unpack_sum(data, FINGERPRINT, SUBJECT)


def test_another_kind_of_tensor_is_refused() -> None:
    with pytest.raises(IncompatibleState, match="holds float32 numbers instead of int64"):
        unpack_sum(pack_readouts(torch.ones(3), FINGERPRINT), FINGERPRINT, SUBJECT)
    with pytest.raises(IncompatibleState, match="holds int64 numbers instead of bfloat16 or"):
        unpack_readouts(pack_sum(torch.arange(3), FINGERPRINT), FINGERPRINT, SUBJECT)


def test_another_maker_is_refused_and_both_are_named() -> None:
    with pytest.raises(IncompatibleState) as caught:
        unpack_sum(pack_sum(torch.arange(3), OTHER), FINGERPRINT, SUBJECT)
    assert caught.value.subject == SUBJECT
    assert OTHER.short in caught.value.problem
    assert FINGERPRINT.short in caught.value.problem
    assert "memory users rebuild USER" in caught.value.remedy


def test_other_dtypes_are_not_stored() -> None:
    with pytest.raises(InvalidInput, match="must be int64"):
        pack_sum(torch.ones(3), FINGERPRINT)
    with pytest.raises(InvalidInput, match="must be bfloat16 or float32"):
        pack_readouts(torch.ones(3, dtype=torch.float64), FINGERPRINT)


def unpacked(state: StoredState, closed: bytes, open_update: bytes | None) -> StoredState:
    return unpack_state(closed, open_update, state.open_chunk, FINGERPRINT, state.digest, SUBJECT)


def made(closed: Tensor, update: Tensor | None) -> StoredState:
    total = closed if update is None else closed + update
    return StoredState(FINGERPRINT, closed, update, None if update is None else "c", digest(total))


@pytest.mark.parametrize("update", [None, torch.arange(6).reshape(1, 2, 3) * 2**40])
def test_states_come_back_with_both_parts(update: Tensor | None) -> None:
    state = made(torch.arange(6).reshape(1, 2, 3), update)
    back = unpacked(state, *pack_state(state))
    assert torch.equal(back.closed, state.closed)
    assert back.open_chunk == state.open_chunk
    if update is None:
        assert back.open_update is None
    else:
        assert back.open_update is not None
        assert torch.equal(back.open_update, update)


def test_parts_that_do_not_add_up_to_the_digest_are_refused() -> None:
    part = torch.arange(6).reshape(1, 2, 3)
    state = made(part, part)
    closed, _ = pack_state(state)
    with pytest.raises(IncompatibleState, match="digest"):
        unpacked(state, closed, None)
    with pytest.raises(IncompatibleState, match="digest"):
        unpacked(state, closed, pack_sum(part + 1, FINGERPRINT))
    with pytest.raises(IncompatibleState, match="differ in shape"):
        unpacked(state, closed, pack_sum(part.reshape(2, 3, 1), FINGERPRINT))
    with pytest.raises(IncompatibleState, match="limit of int64"):
        unpacked(state, closed, pack_sum(torch.full((1, 2, 3), 2**62), FINGERPRINT))
