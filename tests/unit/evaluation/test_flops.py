"""Counted operations against formulas derived by hand from the shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.evaluation.flops import ModelFlops, count_flops
from memory_service.generator.config import SvdConfig
from tests.helpers.tiny_generator import tiny_config, tiny_generator
from tests.helpers.tiny_model import SIZES, tiny_llama

D, FF, LAYERS = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_hidden_layers"]
KV = D // SIZES["num_attention_heads"] * SIZES["num_key_value_heads"]
VOCABULARY = SIZES["vocab_size"]
GENERATOR = tiny_generator()
CONFIG = GENERATOR.config
FLOPS = ModelFlops(tiny_llama(), GENERATOR)


def passed(new: int, kept: int) -> int:
    """q, k, v, o projections; gate, up, down; scores and their product with the values."""
    projections = 2 * new * (D * D + 2 * D * KV + D * D)
    mlp = 3 * 2 * new * D * FF
    attention = 2 * (2 * new * (kept + new) * D)  # a sum over both, where the paper multiplies
    return LAYERS * (projections + mlp + attention)


HEAD = 2 * D * VOCABULARY
ADAPTER = (
    LAYERS
    * 2
    * (D * CONFIG.key_width + CONFIG.key_width * CONFIG.value_width + CONFIG.value_width * D)
)


@pytest.mark.parametrize(("new", "kept"), [(1, 0), (7, 0), (1, 50), (300, 1000)])
def test_reading_is_what_the_shapes_say(new, kept):
    assert FLOPS.reading(new, kept, False) == passed(new, kept) + HEAD
    assert FLOPS.reading(new, kept, True) == passed(new, kept) + HEAD + new * ADAPTER


def test_reading_without_numbers_counts_as_the_real_modules_do():
    model = tiny_llama()
    model.set_attn_implementation("eager")  # the counter knows no fused attention of processors
    ids = torch.zeros(1, 9, dtype=torch.int64)
    counted = count_flops(lambda: model(ids, use_cache=False, logits_to_keep=1))
    assert counted == FLOPS.reading(9, 0, False)


@given(st.integers(1, 60), st.integers(1, 30), st.booleans())
@settings(max_examples=15, deadline=None)
def test_answering_is_the_sum_of_its_passes(prompt, answer, adapted):
    passes = [FLOPS.reading(prompt, 0, adapted)]
    passes += [FLOPS.reading(1, prompt + said, adapted) for said in range(answer - 1)]
    assert FLOPS.answering(prompt, answer, adapted=adapted) == sum(passes)


def test_kept_tokens_are_not_read_again():
    whole = FLOPS.answering(100, 1, adapted=False)
    rest = FLOPS.answering(100, 1, kept=90, adapted=False)
    assert rest == passed(10, 90) + HEAD
    assert whole == passed(100, 0) + HEAD


def test_writing_is_a_pass_without_head_and_an_update():
    tokens, key, value = 11, CONFIG.key_width, CONFIG.value_width
    columns = key + value  # G and C
    gate = 1
    update = LAYERS * 2 * tokens * (D * key + D * value + D * gate + key * columns)
    solve = LAYERS * (key**3 // 3 + 2 * key**2 * value)
    assert FLOPS.writing([tokens]) == passed(tokens, 0) + update + solve
    assert FLOPS.writing([tokens, tokens]) == 2 * (passed(tokens, 0) + update) + solve
    assert FLOPS.writing([]) == 0


def test_an_svd_costs_more_than_a_solve():
    svd = ModelFlops(tiny_llama(), tiny_generator(tiny_config(SvdConfig(rank=4, tolerance=1e-6))))
    assert svd.reading_out > FLOPS.reading_out
