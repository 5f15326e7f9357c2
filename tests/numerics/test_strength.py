"""Strengths shown to people are norms of the weight change that is really applied."""

import pytest
import torch
from torch import Tensor

from memory_service.generator.strength import (
    norms_of_readouts,
    share_of_weights,
    weight_change_norms,
)
from tests.helpers.tiny_generator import (
    DOWN_PROJ,
    O_PROJ,
    random_readouts,
    tiny_config,
    tiny_generator,
)

GENERATOR = tiny_generator(tiny_config(modules=(O_PROJ, DOWN_PROJ)))


def dense_norms(readouts: Tensor) -> list[float]:
    norms = []
    for a_q, n, b in zip(GENERATOR.a_q, readouts, GENERATOR.b, strict=True):
        change = GENERATOR.config.scale * b.double() @ n.double().T @ a_q.double()
        norms.append(change.norm().item())
    return norms


def test_weight_changes_are_the_dense_ones() -> None:
    readouts = random_readouts(GENERATOR, 1)[0]
    found = weight_change_norms(GENERATOR, readouts).tolist()
    assert found == pytest.approx(dense_norms(readouts), rel=1e-5)
    assert not weight_change_norms(GENERATOR, torch.zeros_like(readouts)).any()
    assert weight_change_norms(GENERATOR, 3 * readouts).tolist() == pytest.approx(
        [3 * norm for norm in found]
    )


def test_shares_are_percentages_of_each_module() -> None:
    readouts = random_readouts(GENERATOR, 1)[0].bfloat16()
    weight_norms = [2.0, 4.0, 0.0, 8.0]
    strength = share_of_weights(GENERATOR, readouts, weight_norms)
    dense = dense_norms(readouts)
    expected = [100 * dense[0] / 2, 100 * dense[1] / 4, 0.0, 100 * dense[3] / 8]
    assert [module.value for module in strength.modules] == pytest.approx(expected, rel=1e-5)
    assert [(m.layer, m.module) for m in strength.modules] == GENERATOR.config.sites


def test_norms_of_readouts_need_no_generator() -> None:
    readouts = random_readouts(GENERATOR, 1)[0]
    strength = norms_of_readouts(readouts.bfloat16())
    expected = [readout.bfloat16().double().norm().item() for readout in readouts]
    assert [module.value for module in strength.modules] == pytest.approx(expected, rel=1e-5)
    assert [module.layer for module in strength.modules] == [0, 1, 2, 3]
