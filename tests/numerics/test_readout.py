"""Updates and both read-outs against separately written float64 computations in numpy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from memory_service.errors import ConfigurationError, NumericalError
from memory_service.generator.config import (
    COARSEST_SVD_GRID,
    GeneratorConfig,
    RidgeConfig,
    SvdConfig,
)
from memory_service.generator.generator import Generator
from memory_service.generator.injection import adapter_output
from memory_service.generator.readout import RidgeReadOut, SvdReadOut
from memory_service.generator.state import from_grid
from tests.helpers.tiny_generator import FLOAT32, tiny_config, tiny_generator

LAYERS, TOKENS, D_MODEL, KEY, VALUE = 2, 40, 32, 8, 6

Weights = dict[str, np.ndarray]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def svd_readout(rank: int = VALUE, tolerance: float = 1e-6) -> SvdReadOut:
    return SvdReadOut(rank, tolerance, VALUE)


def matrix(sigmas: list[float], seed: int = 0) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """A state [1 key value] with given singular values, and its singular vectors."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(KEY, len(sigmas))))[0]
    right = np.linalg.qr(rng.normal(size=(VALUE, len(sigmas))))[0].T
    return torch.tensor((left * sigmas) @ right)[None].float(), left, right


def weights_of(generator: Generator) -> Weights:
    return {name: value.double().numpy() for name, value in generator.state_dict().items()}


# The formulas of design.md in plain numpy, one adapted module at a time.


def dense_keys_and_values(w: Weights, hidden: np.ndarray, site: int) -> list[np.ndarray]:
    statistic = np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + 1e-6)
    normalised = hidden / statistic * w["norm"][site]
    return [normalised, normalised @ w["a_k"][site].T, normalised @ w["a_v"][site].T]


def dense_ridge_update(w: Weights, hidden: np.ndarray, site: int) -> np.ndarray:
    normalised, keys, values = dense_keys_and_values(w, hidden, site)
    score = normalised @ w["readout.strength_weight"][site] + w["readout.strength_bias"][site]
    strength = 2 / (1 + np.exp(-score))
    diagonal = np.diag(strength)
    return np.concatenate([keys.T @ diagonal @ keys, keys.T @ diagonal @ values], axis=1)


def dense_ridge(w: Weights, state: np.ndarray, site: int) -> np.ndarray:
    width = len(state)
    gram, cross = state[:, :width], state[:, width:]
    lambda_0 = np.exp(w["readout.log_lambda_0"][site])
    lambda_1 = np.exp(w["readout.log_lambda_1"][site])
    ridge = lambda_0 + lambda_1 * np.trace(gram) / width
    return np.linalg.inv(gram + ridge * np.eye(width)) @ cross


def dense_svd(state: np.ndarray, rank: int, tolerance: float) -> np.ndarray:
    left, sigma, right = np.linalg.svd(state)
    kept = [n for n in range(rank) if sigma[n] > tolerance * sigma[0]]
    return sum((np.outer(left[:, n], right[n]) for n in kept), np.zeros(state.shape))


# Updates


def test_ridge_update_is_the_dense_one() -> None:
    generator = tiny_generator()
    hidden = random(LAYERS, TOKENS, D_MODEL)
    update = generator.update(hidden)
    for site in range(LAYERS):
        expected = dense_ridge_update(weights_of(generator), hidden[site].double().numpy(), site)
        np.testing.assert_allclose(update[site], expected, rtol=1e-5, atol=1e-5)


def test_svd_update_is_the_dense_one() -> None:
    generator = tiny_generator(tiny_config(SvdConfig(rank=5)))
    hidden = random(LAYERS, TOKENS, D_MODEL)
    update = generator.update(hidden)
    for site in range(LAYERS):
        dense = dense_keys_and_values(weights_of(generator), hidden[site].double().numpy(), site)
        np.testing.assert_allclose(update[site], dense[1].T @ dense[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5)])
def test_masked_tokens_contribute_nothing(readout: RidgeConfig | SvdConfig) -> None:
    generator = tiny_generator(tiny_config(readout))
    hidden = random(3, LAYERS, TOKENS, D_MODEL)
    mask = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.5
    updates = generator.update(hidden, mask)
    for row in range(3):
        alone = generator.update(hidden[row][:, mask[row]])
        torch.testing.assert_close(updates[row], alone, rtol=1e-5, atol=1e-5)
    assert not generator.update(hidden, torch.zeros_like(mask)).any()


@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5)])
def test_updates_of_tokens_add_up(readout: RidgeConfig | SvdConfig) -> None:
    generator = tiny_generator(tiny_config(readout))
    hidden = random(LAYERS, TOKENS, D_MODEL)
    parts = generator.update(hidden[:, :13]) + generator.update(hidden[:, 13:])
    torch.testing.assert_close(generator.update(hidden), parts, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5)])
def test_bfloat16_hidden_states_give_a_float32_update_nearby(
    readout: RidgeConfig | SvdConfig,
) -> None:
    generator = tiny_generator(tiny_config(readout))
    hidden = random(LAYERS, TOKENS, D_MODEL)
    exact, rounded = generator.update(hidden), generator.update(hidden.bfloat16())
    assert rounded.dtype == torch.float32
    # Three roundings of 2**-9 at most (hidden, weights, keys or values) on sums of random signs.
    assert (rounded - exact).norm() / exact.norm() < 3 * 2**-9 * 2


@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5)])
def test_exact_update_is_the_update_on_the_grid(readout: RidgeConfig | SvdConfig) -> None:
    generator = tiny_generator(tiny_config(readout))
    hidden = random(LAYERS, TOKENS, D_MODEL)
    value = from_grid(generator.exact_update(hidden), FLOAT32.grid_exponent)
    torch.testing.assert_close(value, generator.update(hidden), atol=2.0**-20, rtol=1e-7)


def test_a_hidden_state_that_is_no_number_is_refused() -> None:
    hidden = random(LAYERS, TOKENS, D_MODEL)
    hidden[1, 3, 4] = torch.nan
    with pytest.raises(NumericalError, match="update: holds NaN"):
        tiny_generator().exact_update(hidden)


def test_write_strength_is_between_nothing_and_twice() -> None:
    readout = RidgeReadOut(LAYERS, KEY, VALUE, D_MODEL)
    gates = 4 * random(LAYERS, TOKENS, 1)
    assert torch.equal(readout.write_strength(0 * gates), torch.ones(LAYERS, TOKENS, 1))
    with torch.no_grad():
        readout.strength_bias.copy_(torch.tensor([0.5, -0.5]))
    strength = readout.write_strength(gates).detach()
    assert 0 < strength.min() < 0.1
    assert 1.9 < strength.max() < 2
    expected = 2 / (1 + np.exp(-(gates[1].double().numpy() - 0.5)))
    np.testing.assert_allclose(strength[1], expected, rtol=1e-5)
    with torch.no_grad():
        readout.strength_bias.copy_(torch.tensor([-200.0, 200.0]))
    assert readout.write_strength(gates).flatten(1).tolist() == [[0.0] * TOKENS, [2.0] * TOKENS]


def test_before_training_every_token_is_written_once_and_nothing_is_applied() -> None:
    generator = Generator(tiny_config())
    hidden = random(LAYERS, TOKENS, D_MODEL)
    _, keys, values = dense_keys_and_values(weights_of(generator), hidden[1].double().numpy(), 1)
    expected = np.concatenate([keys.T @ keys, keys.T @ values], axis=1)
    found = generator.update(hidden).detach()
    np.testing.assert_allclose(found[1], expected, rtol=1e-5, atol=1e-5)
    assert not any(b.any() for b in generator.b)


# Ridge read-out


def ridge_state(seed: int = 0) -> tuple[Generator, Tensor]:
    generator = tiny_generator(seed=seed)
    return generator, generator.update(random(LAYERS, TOKENS, D_MODEL, seed=seed))


@pytest.mark.parametrize("seed", range(5))
def test_ridge_is_the_dense_solution(seed: int) -> None:
    generator, state = ridge_state(seed)
    found = generator.readout(state)
    for site in range(LAYERS):
        expected = dense_ridge(weights_of(generator), state[site].double().numpy(), site)
        np.testing.assert_allclose(found[site], expected, rtol=1e-4, atol=1e-5)


def test_ridge_is_the_least_squares_memory() -> None:
    """It minimises sum of strength * |k N - v|^2 + lambda |N|^2: every other N costs more."""
    generator, state = ridge_state()
    w = weights_of(generator)
    hidden = random(LAYERS, TOKENS, D_MODEL)[0].double().numpy()
    normalised, keys, values = dense_keys_and_values(w, hidden, 0)
    score = normalised @ w["readout.strength_weight"][0] + w["readout.strength_bias"][0]
    strength = 2 / (1 + np.exp(-score))
    mean_diagonal = np.trace((keys.T * strength) @ keys) / KEY
    lambda_0, lambda_1 = (np.exp(w[f"readout.log_lambda_{n}"][0]) for n in (0, 1))

    def cost(found: np.ndarray) -> float:
        errors = ((keys @ found - values) ** 2).sum(axis=1)
        return strength @ errors + (lambda_0 + lambda_1 * mean_diagonal) * (found**2).sum()

    best = generator.readout(state)[0].double().numpy()
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert cost(best + 1e-2 * rng.normal(size=best.shape)) > cost(best)


def test_ridge_recalls_what_was_written() -> None:
    generator, _ = ridge_state()
    readout = generator.readout
    with torch.no_grad():
        readout.log_lambda_0.fill_(-12.0)
        readout.log_lambda_1.fill_(-12.0)
    keys, values = random(LAYERS, KEY, KEY), random(LAYERS, KEY, VALUE, seed=1)
    state = readout.update(keys, values, torch.zeros(LAYERS, KEY, 1))
    torch.testing.assert_close(keys @ readout(state), values, atol=1e-2, rtol=0)


def test_ridge_of_a_batch_is_that_of_each() -> None:
    generator, first = ridge_state()
    second = generator.update(random(LAYERS, TOKENS, D_MODEL, seed=9))
    both = generator.readout(torch.stack([first, second]))
    torch.testing.assert_close(both[0], generator.readout(first))
    torch.testing.assert_close(both[1], generator.readout(second))


def test_ridge_of_chatter_with_fewer_tokens_than_keys_is_solvable() -> None:
    generator = tiny_generator()
    state = generator.update(random(LAYERS, 1, D_MODEL))
    assert torch.isfinite(generator.readout(state)).all()


@pytest.mark.parametrize("column", [0, KEY - 1, KEY, KEY + VALUE - 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_ridge_of_a_state_that_is_no_number_is_refused(column: int, bad: float) -> None:
    generator, state = ridge_state()
    state[1, 2, column] = bad
    with pytest.raises(NumericalError, match="not positive definite or not finite"):
        generator.readout(state)


def test_ridge_of_a_state_that_is_not_positive_is_refused() -> None:
    generator, state = ridge_state()
    with pytest.raises(NumericalError, match="not positive definite"):
        generator.readout(-100 * state)


# SVD read-out


@pytest.mark.parametrize("rank", [1, 3, VALUE])
@pytest.mark.parametrize("seed", range(3))
def test_svd_is_the_dense_normalisation(rank: int, seed: int) -> None:
    state = random(LAYERS, KEY, VALUE, seed=seed)
    found = svd_readout(rank)(state)
    for site in range(LAYERS):
        expected = dense_svd(state[site].double().numpy(), rank, 1e-6)
        np.testing.assert_allclose(found[site], expected, atol=1e-5)
        sigma = np.linalg.svd(found[site].numpy(), compute_uv=False)
        np.testing.assert_allclose(sigma, [1] * rank + [0] * (VALUE - rank), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 2.0, 1e9])
def test_svd_ignores_the_scale_of_a_state(scale: float) -> None:
    state = random(LAYERS, KEY, VALUE)
    found = svd_readout()(state * scale)
    torch.testing.assert_close(found, svd_readout()(state), atol=1e-5, rtol=0)


def test_svd_drops_directions_up_to_the_tolerance() -> None:
    state, left, right = matrix([10.0, 5.0, 1e-2, 1e-4])
    for tolerance, kept in [(1e-6, 4), (1e-4, 3), (1e-2, 2), (0.6, 1)]:
        found = svd_readout(tolerance=tolerance)(state)[0]
        np.testing.assert_allclose(found, left[:, :kept] @ right[:kept], atol=2e-3)
        sigma = np.linalg.svd(found.numpy(), compute_uv=False)
        assert (sigma > 0.5).sum() == kept


def test_svd_of_fewer_tokens_than_its_rank_has_no_noise_in_it() -> None:
    """The official code gives rounding noise in the null space full weight (its README, H)."""
    generator = tiny_generator(tiny_config(SvdConfig(rank=6)))
    hidden = random(LAYERS, 3, D_MODEL)
    found = generator.readout(generator.update(hidden))
    for site in range(LAYERS):
        _, keys, values = dense_keys_and_values(
            weights_of(generator), hidden[site].double().numpy(), site
        )
        expected = dense_svd(keys.T @ values, 3, 1e-6)
        np.testing.assert_allclose(found[site], expected, atol=1e-4)


def test_svd_noise_is_far_below_the_tolerance() -> None:
    """A state of 5 tokens has 5 directions; in float32 the others come out at 4e-7."""
    keys, values = random(5, 256), random(5, 256, seed=1)
    readout = SvdReadOut(rank=256, tolerance=1e-7, value_width=256)
    sigma = torch.linalg.svdvals(readout((keys.T @ values)[None])[0])
    assert (sigma > 0.5).sum() == 5


@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_the_grid_makes_no_directions(tokens: int) -> None:
    encoding = replace(FLOAT32, grid_exponent=COARSEST_SVD_GRID)
    generator = tiny_generator(tiny_config(SvdConfig(rank=6), encoding=encoding))
    state = generator.exact_update(random(LAYERS, tokens, D_MODEL))
    for readout in generator.read_out(state):
        assert (torch.linalg.svdvals(readout) > 0.5).sum() == tokens


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_svd_of_a_state_that_is_no_number_is_refused(bad: float) -> None:
    state = random(LAYERS, KEY, VALUE)
    state[1, 2, 3] = bad
    with pytest.raises(NumericalError, match="holds NaN or Inf"):
        svd_readout()(state)


def test_svd_factors_multiply_to_the_readout() -> None:
    state = random(LAYERS, KEY, VALUE)
    left, right = svd_readout(4).factors(state)
    assert left.shape == (LAYERS, KEY, 4)
    assert right.shape == (LAYERS, 4, VALUE)
    torch.testing.assert_close(left @ right, svd_readout(4)(state))


# Both


@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5)])
def test_the_empty_state_reads_out_to_zero(readout: RidgeConfig | SvdConfig) -> None:
    generator = tiny_generator(tiny_config(readout))
    empty = generator.empty_state()
    assert empty.dtype == torch.int64
    for found in (generator.read_out(empty), generator.readout(empty.float())):
        assert found.shape == (LAYERS, KEY, VALUE)
        assert not found.any()


@pytest.mark.parametrize("readout", [RidgeConfig(), SvdConfig(rank=5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_read_out_of_an_exact_state(readout: RidgeConfig | SvdConfig, dtype: str) -> None:
    config = tiny_config(readout, encoding=replace(FLOAT32, dtype=dtype))
    generator = tiny_generator(config)
    hidden = random(LAYERS, TOKENS, D_MODEL)
    found = generator.read_out(generator.exact_update(hidden))
    assert found.dtype == config.dtype
    assert not found.requires_grad
    expected = generator.readout(generator.update(hidden)).to(config.dtype)
    step = 2.0**-8 if dtype == "bfloat16" else 1e-4
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=step)


@pytest.mark.parametrize("rank", [0, -1, VALUE + 1, KEY])
def test_a_rank_above_the_width_is_refused(rank: int) -> None:
    with pytest.raises(ConfigurationError, match=r"readout\.rank"):
        tiny_config(SvdConfig(rank=rank))


# Gradients


@dataclass(frozen=True)
class Problem:
    """hidden states of two padded chunks -> ridge memory -> weighted sum of an adapter's output."""

    generator: Generator
    hidden: Tensor  # [chunk layer token d_model]
    mask: Tensor  # [chunk token]
    inputs: Tensor  # [layer token d_in]
    output_weights: Tensor  # [layer token d_out]

    def loss(self) -> Tensor:
        generator = self.generator
        state = generator.update(self.hidden, self.mask).sum(dim=0)
        readout = generator.readout(state)
        outputs = [
            adapter_output(x[None], a_q, n[None], b)[0] * generator.config.scale
            for x, a_q, n, b in zip(self.inputs, generator.a_q, readout, generator.b, strict=True)
        ]
        return (torch.stack(outputs) * self.output_weights).sum()

    def dense_loss(self, w: Weights) -> float:
        result = 0.0
        for site in range(LAYERS):
            state = sum(
                dense_ridge_update(w, hidden[site][mask].double().numpy(), site)
                for hidden, mask in zip(self.hidden, self.mask, strict=True)
            )
            readout = dense_ridge(w, np.asarray(state), site)
            adapter = w[f"b.{site}"] @ readout.T @ w[f"a_q.{site}"]
            outputs = self.inputs[site].double().numpy() @ adapter.T * self.generator.config.scale
            result += (outputs * self.output_weights[site].double().numpy()).sum()
        return float(result)


def small_problem() -> Problem:
    config = GeneratorConfig(
        d_model=6,
        layers=(0, 3),
        modules=("mlp.down_proj",),
        d_in=(7,),
        d_out=(4,),
        key_width=3,
        value_width=4,
        alpha=8.0,
        readout=RidgeConfig(),
        encoding=FLOAT32,
    )
    generator = tiny_generator(config, seed=3).requires_grad_(True)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    return Problem(
        generator,
        hidden=random(2, LAYERS, 10, 6, seed=4),
        mask=mask,
        inputs=random(LAYERS, 5, 7, seed=5),
        output_weights=random(LAYERS, 5, 4, seed=6),
    )


def test_gradients_of_every_weight_are_the_finite_differences() -> None:
    problem = small_problem()
    loss = problem.loss()
    loss.backward()
    w = weights_of(problem.generator)
    assert loss.item() == pytest.approx(problem.dense_loss(w), rel=1e-5)
    step = 1e-5
    for name, parameter in problem.generator.named_parameters():
        assert parameter.grad is not None, name
        differences = np.zeros(w[name].shape)
        for place in np.ndindex(*w[name].shape):
            ends = []
            for sign in (1, -1):
                moved = w[name].copy()
                moved[place] += sign * step
                ends.append(problem.dense_loss(w | {name: moved}))
            differences[place] = (ends[0] - ends[1]) / (2 * step)
        largest = np.abs(differences).max()
        assert largest > 0, name
        np.testing.assert_allclose(
            parameter.grad.numpy(), differences, rtol=0, atol=1e-4 * largest, err_msg=name
        )


def test_masked_tokens_have_no_gradient() -> None:
    problem = small_problem()
    problem.hidden.requires_grad_(True)
    problem.loss().backward()
    assert problem.hidden.grad is not None
    assert not problem.hidden.grad[1, :, 6:].any()
    assert problem.hidden.grad[1, :, :6].any()
