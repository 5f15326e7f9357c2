"""The state is a true sum: any order, any split, any removal, the same bits."""

import functools
import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_service.errors import NumericalError
from memory_service.generator.state import add, digest, from_grid, subtract, to_grid

SHAPE = (2, 3, 5)
GRID = -12

SEEDS = st.integers(0, 2**32)
ORDERS = st.randoms(use_true_random=False)

fast = settings(deadline=None, max_examples=60)


def updates(seed: int, count: int) -> list[Tensor]:
    """Exact updates whose sizes differ by orders of magnitude, as floats lose most then."""
    rng = torch.Generator().manual_seed(seed)
    scales = [10.0 ** (2 * (n % 7) - 3) for n in range(count)]
    return [to_grid(torch.randn(SHAPE, generator=rng) * scale, GRID) for scale in scales]


def empty() -> Tensor:
    return torch.zeros(SHAPE, dtype=torch.int64)


def total(parts: list[Tensor]) -> Tensor:
    return functools.reduce(add, parts, empty())


@given(seed=SEEDS, count=st.integers(1, 12), order=ORDERS)
@fast
def test_any_order_gives_the_same_bits(seed: int, count: int, order: random.Random) -> None:
    parts = updates(seed, count)
    shuffled = order.sample(parts, count)
    assert digest(total(shuffled)) == digest(total(parts))


@given(
    seed=SEEDS,
    count=st.integers(1, 12),
    cuts=st.sets(st.integers(1, 11), max_size=6),
)
@fast
def test_any_split_into_appends_gives_the_same_bits(seed: int, count: int, cuts: set[int]) -> None:
    parts = updates(seed, count)
    edges = [0, *sorted(cut for cut in cuts if cut < count), count]
    groups = [total(parts[a:b]) for a, b in itertools.pairwise(edges)]
    assert digest(total(groups)) == digest(total(parts))


@given(
    seed=SEEDS,
    kept=st.lists(st.booleans(), min_size=1, max_size=12),
    order=ORDERS,
)
@fast
def test_interleaved_removals_leave_no_trace(
    seed: int, kept: list[bool], order: random.Random
) -> None:
    parts = updates(seed, len(kept))
    state = empty()
    removable: list[Tensor] = []
    for number in order.sample(range(len(kept)), len(kept)):
        state = add(state, parts[number])
        if not kept[number]:
            removable.append(parts[number])
        while removable and order.random() < 0.4:
            state = subtract(state, removable.pop(order.randrange(len(removable))))
    for update in removable:
        state = subtract(state, update)
    never_seen = total([part for part, stays in zip(parts, kept, strict=True) if stays])
    assert digest(state) == digest(never_seen)


@given(seed=SEEDS, count=st.integers(0, 5))
@fast
def test_subtract_undoes_add(seed: int, count: int) -> None:
    *before, update = updates(seed, count + 1)
    state = total(before)
    assert digest(subtract(add(state, update), update)) == digest(state)
    assert not subtract(state, state).any()


def test_float_sums_would_not_have_these_properties() -> None:
    parts = [from_grid(update, GRID) for update in updates(0, 12)]
    assert not torch.equal(sum(parts, torch.zeros(SHAPE)), sum(reversed(parts), torch.zeros(SHAPE)))


@given(
    values=st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=20),
    exponent=st.integers(-32, 8),
)
@fast
def test_rounding_is_at_most_half_a_grid_step(values: list[float], exponent: int) -> None:
    update = torch.tensor(values).reshape(1, 1, -1)
    multiples = to_grid(update, exponent)
    error = (multiples.double() * 2.0**exponent - update.double()).abs().max().item()
    assert error <= 2.0 ** (exponent - 1)
    assert torch.equal(to_grid(-update, exponent), -multiples)


@given(
    multiples=st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=20),
    exponent=st.integers(-40, 8),
)
@fast
def test_the_value_of_a_state_is_exact_where_float32_can_hold_it(
    multiples: list[int], exponent: int
) -> None:
    state = torch.tensor(multiples).reshape(1, 1, -1)
    value = from_grid(state, exponent)
    assert value.dtype == torch.float32
    assert value.flatten().tolist() == [multiple * 2.0**exponent for multiple in multiples]
    assert torch.equal(to_grid(value, exponent), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_accepted(dtype: torch.dtype) -> None:
    update = torch.tensor([[[1.5, -0.25]]], dtype=dtype)
    assert to_grid(update, -2).tolist() == [[[6, -1]]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_is_refused(bad: float) -> None:
    update = torch.zeros(SHAPE)
    update[1, 2, 3] = bad
    with pytest.raises(NumericalError, match="update: holds NaN or Inf"):
        to_grid(update, GRID)


def test_an_update_too_large_for_the_grid_is_refused() -> None:
    largest = torch.tensor([[[2.0**53 - 1]]], dtype=torch.float64)
    assert to_grid(largest, 0).item() == 2**53 - 1
    with pytest.raises(NumericalError, match=r"too large for the grid 2\*\*0"):
        to_grid(torch.tensor([[[-(2.0**53)]]]), 0)
    with pytest.raises(NumericalError, match=r"too large for the grid 2\*\*-32"):
        to_grid(torch.tensor([[[2.0**21]]]), -32)
    with pytest.raises(NumericalError):
        to_grid(torch.tensor([[[3e38]]]), -1000)


@pytest.mark.parametrize(
    ("state", "update"),
    [
        (2**62, 0),
        (0, 2**62),
        (-(2**62), 0),
        (2**61, 2**61),
        (-(2**61), -(2**61)),
        (2**62 - 1, 1),
        (-(2**63), 0),
        (-(2**63), -1),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_overflow_is_refused_before_it_happens(state: int, update: int) -> None:
    with pytest.raises(NumericalError, match="limit of int64"):
        add(torch.tensor([[[0, state]]]), torch.tensor([[[0, update]]]))


@pytest.mark.parametrize(("state", "update"), [(2**62 - 2, 1), (-(2**61), 2**61), (2**61, 2**60)])
def test_what_could_be_added_can_be_subtracted(state: int, update: int) -> None:
    before, change = torch.tensor([[[state]]]), torch.tensor([[[update]]])
    assert torch.equal(subtract(add(before, change), change), before)


def test_operands_are_left_alone() -> None:
    state, update = updates(0, 2)
    copies = state.clone(), update.clone()
    add(state, update)
    subtract(state, update)
    assert torch.equal(state, copies[0])
    assert torch.equal(update, copies[1])


@given(position=st.integers(0, 29), change=st.sampled_from([-1, 1]))
@fast
def test_digest_sees_one_multiple(position: int, change: int) -> None:
    (state,) = updates(1, 1)
    other = state.clone()
    other.view(-1)[position] += change
    assert digest(other) != digest(state)


def test_digest_is_of_the_content_not_of_its_layout() -> None:
    (state,) = updates(2, 1)
    strided = state.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    assert digest(strided) == digest(state)
    assert digest(state.reshape(2, 5, 3)) != digest(state)
