"""Adapters of one call reach that call's rows, and nothing else."""

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from memory_service.errors import (
    ConfigurationError,
    IncompatibleState,
    InvalidInput,
    NumericalError,
)
from memory_service.generator.generator import Generator
from memory_service.generator.hidden_states import layer_inputs
from memory_service.generator.injection import Injector, adapter_output
from tests.helpers.tiny_generator import (
    DOWN_PROJ,
    O_PROJ,
    random_readouts,
    tiny_config,
    tiny_generator,
)
from tests.helpers.tiny_model import tiny_llama

CLOSE = 1e-5
"""Logits of tiny_model are of size 3; one row alone and in a batch differ by float32 rounding."""


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def generator() -> Generator:
    return tiny_generator(tiny_config(modules=(O_PROJ, DOWN_PROJ)))


@pytest.fixture
def injector(model: LlamaForCausalLM, generator: Generator) -> Injector:
    return Injector(model, generator)


def questions(rows: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(3, 259, (rows, 9), generator=rng)


def ask(
    model: LlamaForCausalLM, injector: Injector, readouts: Tensor | None, ids: Tensor
) -> Tensor:
    """Logits [row token vocabulary] under these read-outs, or of the base model."""
    with torch.no_grad():
        if readouts is None:
            return model(input_ids=ids).logits
        with injector.apply(readouts):
            return model(input_ids=ids).logits


# Which row gets which adapter


def test_rows_of_a_batch_answer_as_each_user_alone(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    readouts, ids = random_readouts(generator, 4), questions(4)
    together = ask(model, injector, readouts, ids)
    for row in range(4):
        alone = ask(model, injector, readouts[row : row + 1], ids[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], atol=CLOSE, rtol=0)
        others = ask(model, injector, readouts[row - 1 : row or None], ids[row : row + 1])
        assert (others[0] - alone[0]).abs().max() > 0.1


def test_the_output_is_the_formula_for_every_row(generator: Generator) -> None:
    x = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(0))
    readouts = random_readouts(generator, 3)[:, 0]
    found = adapter_output(x, generator.a_q[0], readouts, generator.b[0])
    for row in range(6):
        n, a_q, b = (t.double() for t in (readouts[row // 2], generator.a_q[0], generator.b[0]))
        expected = x[row].double() @ (b @ n.T @ a_q).T
        torch.testing.assert_close(found[row].double(), expected, atol=1e-4, rtol=1e-5)


def test_consecutive_rows_share_a_readout(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    readouts, ids = random_readouts(generator, 2), questions(6)
    shared = ask(model, injector, readouts, ids)
    repeated = ask(model, injector, readouts.repeat_interleave(3, dim=0), ids)
    torch.testing.assert_close(shared, repeated, atol=CLOSE, rtol=0)


def test_zero_readouts_are_the_base_model(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    ids = questions(2)
    base = ask(model, injector, None, ids)
    readouts = random_readouts(generator, 2)
    readouts[1] = 0
    mixed = ask(model, injector, readouts, ids)
    assert torch.equal(ask(model, injector, torch.zeros_like(readouts), ids), base)
    torch.testing.assert_close(mixed[1], base[1], atol=CLOSE, rtol=0)
    assert (mixed[0] - base[0]).abs().max() > 0.1


def test_every_adapted_module_matters_and_no_other_is_touched(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    ids = questions(1)
    base = ask(model, injector, None, ids)
    for site in range(len(generator.config.sites)):
        one = torch.zeros_like(random_readouts(generator, 1))
        one[0, site] = random_readouts(generator, 1)[0, site]
        assert (ask(model, injector, one, ids) - base).abs().max() > 1e-2
    hidden = [layer_inputs(model, ids, [0, 1])]
    last = torch.zeros_like(random_readouts(generator, 1))
    last[0, 2:] = random_readouts(generator, 1)[0, 2:]  # layer 1 only: its input stays as it was
    with injector.apply(last):
        hidden.append(layer_inputs(model, ids, [0, 1]))
    assert torch.equal(*hidden)


def test_bfloat16_adapters_on_a_bfloat16_model(generator: Generator) -> None:
    model = tiny_llama().bfloat16()
    injector = Injector(model, generator)
    logits = ask(model, injector, random_readouts(generator, 2).bfloat16(), questions(2))
    exact_model = tiny_llama()
    exact = ask(
        exact_model, Injector(exact_model, generator), random_readouts(generator, 2), questions(2)
    )
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).norm() / exact.norm() < 0.1


def test_gradients_reach_the_readout_and_the_generator(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    generator.requires_grad_(True)
    readouts = random_readouts(generator, 1).requires_grad_(True)
    with injector.apply(readouts):
        model(input_ids=questions(1)).logits.square().mean().backward()
    for tensor in [readouts, *generator.a_q, *generator.b]:
        assert tensor.grad is not None
        assert tensor.grad.any()
    assert all(parameter.grad is None for parameter in model.parameters())


# Nothing is left behind


def snapshot(model: nn.Module) -> dict[str, object]:
    """Every attribute of every module, and every weight's content."""
    seen: dict[str, object] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            kept = list(value.items()) if isinstance(value, dict) else value
            seen[f"{name}:{key}"] = (id(value), repr(kept) if key.startswith("_") else None)
    seen |= {name: float(value.double().sum()) for name, value in model.named_parameters()}
    return seen


def test_nothing_of_a_request_is_on_a_module(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    ids = questions(1)
    layer_inputs(model, ids, [0])  # transformers puts its hooks on at the first call
    before = snapshot(model), snapshot(generator)
    with injector.apply(random_readouts(generator, 1)):
        model(input_ids=ids)
        layer_inputs(model, ids, [0])
        assert (snapshot(model), snapshot(generator)) == before
    assert (snapshot(model), snapshot(generator)) == before


def test_a_readout_is_freed_with_its_request(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    readouts = random_readouts(generator, 1)
    trace = weakref.ref(readouts)
    ask(model, injector, readouts, questions(1))
    del readouts
    gc.collect()
    assert trace() is None


def test_detached_hooks_are_gone(model: LlamaForCausalLM, generator: Generator) -> None:
    before = snapshot(model)
    injector = Injector(model, generator)
    injector.detach()
    ids = questions(1)
    base = ask(model, injector, None, ids)
    assert torch.equal(ask(model, injector, random_readouts(generator, 1), ids), base)
    assert {k: v for k, v in snapshot(model).items() if "hooks" in k} == {
        k: v for k, v in before.items() if "hooks" in k
    }


def test_a_nested_apply_restores_the_outer_one(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    ids = questions(1)
    outer, inner = random_readouts(generator, 1), random_readouts(generator, 1, seed=1)
    expected = ask(model, injector, outer, ids), ask(model, injector, inner, ids)
    base = ask(model, injector, None, ids)
    with injector.apply(outer):
        assert torch.equal(ask(model, injector, inner, ids), expected[1])
        assert torch.equal(ask(model, injector, None, ids), expected[0])
    assert torch.equal(ask(model, injector, None, ids), base)


def test_an_adapter_ends_with_an_exception(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    ids = questions(1)
    base = ask(model, injector, None, ids)
    outer = random_readouts(generator, 1, seed=1)
    with pytest.raises(KeyError), injector.apply(random_readouts(generator, 1)):
        raise KeyError
    assert torch.equal(ask(model, injector, None, ids), base)
    with injector.apply(outer):
        expected = ask(model, injector, None, ids)
        with pytest.raises(KeyError), injector.apply(random_readouts(generator, 1)):
            raise KeyError
        with pytest.raises(NumericalError), injector.apply(outer * torch.nan):
            pass
        assert torch.equal(ask(model, injector, None, ids), expected)


def test_an_exception_inside_the_model_leaves_nothing(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    base = ask(model, injector, None, questions(1))
    with pytest.raises(InvalidInput):
        ask(model, injector, random_readouts(generator, 2), questions(3))
    with pytest.raises(IndexError):
        ask(model, injector, random_readouts(generator, 1), torch.tensor([[10_000]]))
    assert torch.equal(ask(model, injector, None, questions(1)), base)


def test_two_generators_on_one_model_do_not_meet(model: LlamaForCausalLM) -> None:
    generators = [tiny_generator(seed=1), tiny_generator(tiny_config(modules=(DOWN_PROJ,)), seed=2)]
    ids = questions(1)
    alone = []
    for generator in generators:
        injector = Injector(model, generator)
        alone.append(ask(model, injector, random_readouts(generator, 1), ids))
        injector.detach()
    injectors = [Injector(model, generator) for generator in generators]
    for injector, generator, expected in zip(injectors, generators, alone, strict=True):
        assert torch.equal(ask(model, injector, random_readouts(generator, 1), ids), expected)


# Many at once


@contextmanager
def eager_switching() -> Iterator[None]:
    """Let Python change threads a thousand times as often as it does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_get_their_own_results(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    workers, repetitions = 4, 40
    readouts: list[Tensor | None] = [random_readouts(generator, 1, seed=n) for n in range(3)]
    readouts.append(None)  # one thread talks to the base model
    ids = [questions(1, seed=n) for n in range(workers)]
    expected = [ask(model, injector, readouts[n], ids[n]) for n in range(workers)]
    for n in range(workers):
        others = [ask(model, injector, readouts[m], ids[n]) for m in range(workers) if m != n]
        assert all((other - expected[n]).abs().max() > 0.1 for other in others)
    start = threading.Barrier(workers)

    def work(number: int) -> float:
        start.wait()
        worst = 0.0
        for _ in range(repetitions):
            logits = ask(model, injector, readouts[number], ids[number])
            worst = max(worst, (logits - expected[number]).abs().max().item())
        return worst

    with eager_switching(), ThreadPoolExecutor(workers) as pool:
        for worst in pool.map(work, range(workers)):
            assert worst < CLOSE


def test_threads_encode_their_own_chunks(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    readouts = [random_readouts(generator, 1, seed=n) for n in range(2)]

    def encode(number: int) -> Tensor:
        with injector.apply(readouts[number]):
            return layer_inputs(model, questions(1, seed=number), [0, 1])

    expected = [encode(0), encode(1)]
    start = threading.Barrier(2)

    def work(number: int) -> float:
        start.wait()
        differences = [(encode(number) - expected[number]).abs().max() for _ in range(40)]
        return max(differences).item()

    with eager_switching(), ThreadPoolExecutor(2) as pool:
        assert max(pool.map(work, range(2))) < CLOSE


async def test_tasks_get_their_own_results(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    tasks = 4
    readouts = [random_readouts(generator, 1, seed=n) for n in range(tasks)]
    ids = questions(1)
    expected = [ask(model, injector, readouts[n], ids) for n in range(tasks)]
    base = ask(model, injector, None, ids)

    async def work(number: int) -> None:
        for repetition in range(10):
            with injector.apply(readouts[number]):
                for _ in range((number + repetition) % 3 + 1):
                    await asyncio.sleep(0)  # the others run in the middle of this block
                assert torch.equal(ask(model, injector, None, ids), expected[number])
                in_thread = await asyncio.to_thread(ask, model, injector, None, ids)
                torch.testing.assert_close(in_thread, expected[number], atol=CLOSE, rtol=0)
            await asyncio.sleep(0)
            assert torch.equal(ask(model, injector, None, ids), base)

    await asyncio.gather(*(work(number) for number in range(tasks)))
    assert torch.equal(ask(model, injector, None, ids), base)


def test_a_thread_started_inside_a_block_has_no_adapter(
    model: LlamaForCausalLM, generator: Generator, injector: Injector
) -> None:
    ids = questions(1)
    base = ask(model, injector, None, ids)
    with injector.apply(random_readouts(generator, 1)), ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, model, injector, None, ids).result()
    torch.testing.assert_close(other, base, atol=CLOSE, rtol=0)


# What is refused


@pytest.mark.parametrize(("batch", "rows"), [(2, 3), (3, 2), (4, 1)])
def test_rows_that_do_not_divide_evenly(
    model: LlamaForCausalLM, generator: Generator, injector: Injector, batch: int, rows: int
) -> None:
    with pytest.raises(InvalidInput, match=f"do not divide the {rows} rows"):
        ask(model, injector, random_readouts(generator, batch), questions(rows))


def test_no_readout_at_all(generator: Generator, injector: Injector) -> None:
    with (
        pytest.raises(InvalidInput, match="at least one"),
        injector.apply(random_readouts(generator, 1)[:0]),
    ):
        pass


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_readout_that_is_no_number(generator: Generator, injector: Injector, bad: float) -> None:
    readouts = random_readouts(generator, 2)
    readouts[1, 0, 2, 3] = bad
    with pytest.raises(NumericalError, match="adapter: holds NaN"), injector.apply(readouts):
        pass


@pytest.mark.parametrize("shape", [(1, 3, 8, 6), (1, 5, 8, 6), (1, 4, 6, 8), (1, 4, 8, 7)])
def test_readouts_of_another_generator(injector: Injector, shape: tuple[int, ...]) -> None:
    with (
        pytest.raises(IncompatibleState, match="generator makes"),
        injector.apply(torch.zeros(shape)),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (0, 2)}, r"has no module layers\.2\.self_attn\.o_proj"),
        ({"modules": ("self_attn.out",)}, r"has no module layers\.0\.self_attn\.out"),
        ({"modules": ("input_layernorm",)}, r"layers\.0\.input_layernorm is not a linear module"),
        ({"d_in": (33,)}, r"layers\.0\.self_attn\.o_proj is \(32, 32\) where .* \(32, 33\)"),
        ({"d_out": (31,)}, r"\(32, 32\) where the generator expects \(31, 32\)"),
        ({"d_model": 48}, "width 32 where the generator expects 48"),
    ],
)
def test_a_generator_made_for_another_base_model(
    model: LlamaForCausalLM, change: dict[str, tuple[object, ...]], message: str
) -> None:
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=message):
        Injector(model, Generator(replace(tiny_config(), **change)))
    assert snapshot(model) == before
