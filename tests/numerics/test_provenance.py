"""Shares and weights of turns against what they are defined to be, computed densely."""

import torch

from memory_service.domain.messages import Message
from memory_service.generator.config import RidgeConfig, SvdConfig
from memory_service.generator.provenance import share_gauge, shares
from memory_service.generator.state import from_grid
from memory_service.generator.strength import fullness
from tests.helpers.histories import turn
from tests.helpers.tiny_generator import DOWN_PROJ, O_PROJ, tiny_config
from tests.helpers.tiny_inference import TinyInference, tiny_inference

CONFIGS = {
    "ridge": tiny_config(RidgeConfig(), modules=(O_PROJ, DOWN_PROJ)),
    "svd": tiny_config(SvdConfig(rank=6), modules=(O_PROJ, DOWN_PROJ)),
}
TURNS = [turn(number, f"{number} Rex is a dog") for number in range(6)]
PROMPT = [Message("user", "Who is Rex?")]


def parts_of(made: TinyInference) -> list[torch.Tensor]:
    return [made.encoder.encode(chunk) for chunk in made.encoder.chunk(TURNS)]


def value(made: TinyInference, state: torch.Tensor) -> torch.Tensor:
    return from_grid(state, made.generator.config.encoding.grid_exponent)


def test_shares_of_all_parts_add_up_to_one_in_every_module() -> None:
    for config in CONFIGS.values():
        made = tiny_inference(config)
        parts = parts_of(made)
        assert len(parts) > 2
        state = sum(parts[1:], parts[0])
        inputs = [torch.randn(5, width) for width in config.d_in * len(config.layers)]
        for given in (None, inputs):
            gauge = share_gauge(made.generator, value(made, state), given)
            total = sum(shares(gauge, value(made, part)) for part in parts)
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-3, rtol=0)


def test_a_share_is_the_component_along_the_whole_output() -> None:
    """Ridge, by its definition: y_part = B N_part^T A x with N_part = (G + lambda)^-1 C_part."""
    made = tiny_inference(CONFIGS["ridge"])
    generator, parts = made.generator, parts_of(made)
    state = value(made, sum(parts[1:], parts[0]))
    width, readout = generator.config.key_width, generator.readout
    inputs = [torch.randn(4, a_q.shape[1]) for a_q in generator.a_q]
    gauge = share_gauge(generator, state, inputs)
    found = shares(gauge, value(made, parts[0]))
    for index, (a_q, b, x) in enumerate(zip(generator.a_q, generator.b, inputs, strict=True)):
        gram, cross = state[index, :, :width].double(), state[index, :, width:].double()
        gram = (gram + gram.T) / 2
        ridge = (
            readout.log_lambda_0[index].exp()
            + readout.log_lambda_1[index].exp() * gram.diagonal().mean()
        )
        inverse = torch.linalg.inv(gram + ridge * torch.eye(width))
        one = value(made, parts[0])[index, :, width:].double()
        whole, part = (
            x.double() @ a_q.double().T @ inverse @ c @ b.double().T for c in (cross, one)
        )
        expected = (part * whole).sum() / (whole * whole).sum()
        torch.testing.assert_close(found[index].double(), expected, atol=1e-4, rtol=1e-3)


def test_turns_of_a_chunk_share_what_the_chunk_has() -> None:
    """But for the header's tokens, which are no turn's."""
    made = tiny_inference(CONFIGS["ridge"])
    chunk = made.encoder.chunk(TURNS)[0]
    state = made.encoder.encode(chunk)
    gauge = made.encoder.gauge(state, PROMPT, "a dog")
    (found,) = made.encoder.weigh(chunk, [gauge])
    assert set(found) == set(chunk.turn_ids)
    hidden = made.encoder._hidden(chunk, None)
    header = made.generator.update(hidden[:, : made.encoder.count_tokens(chunk.header)])
    rest = float(shares(gauge, header).mean())
    assert abs(sum(found.values()) + rest - 1) < 1e-2


def test_fullness_is_the_share_of_directions_in_use() -> None:
    """Ridge: trace(G (G + lambda)^-1) / width. svd: kept directions / rank."""
    made = tiny_inference(CONFIGS["ridge"])
    parts = parts_of(made)
    state = value(made, sum(parts[1:], parts[0]))
    readout, width = made.generator.readout, made.generator.config.key_width
    found = fullness(made.generator, sum(parts[1:], parts[0])).modules
    for index, module in enumerate(found):
        gram = state[index, :, :width].double()
        gram = (gram + gram.T) / 2
        ridge = (
            readout.log_lambda_0[index].exp()
            + readout.log_lambda_1[index].exp() * gram.diagonal().mean()
        )
        used = (gram @ torch.linalg.inv(gram + ridge * torch.eye(width))).trace()
        assert abs(module.value - 100 * float(used) / width) < 0.1
    made = tiny_inference(CONFIGS["svd"])
    part = parts_of(made)[0]
    rank = torch.linalg.matrix_rank(value(made, part).double(), rtol=1e-6).clamp(max=6)
    full = [module.value for module in fullness(made.generator, part).modules]
    assert full == [100 * float(one) / 6 for one in rank]
    assert not any(m.value for m in fullness(made.generator, made.encoder.empty_state()).modules)
