"""Sampling against transformers' own processors, and seeds that do not depend on company."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from memory_service.domain.messages import Sampling
from memory_service.inference import choosing
from memory_service.inference.choosing import Choice, choose, kept


def logits_of(seed: int, vocabulary: int = 200) -> torch.Tensor:
    return 3 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))


def transformers_shares(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities of all tokens by the processors of transformers, in their order."""
    steps = []
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    row = logits.unsqueeze(0)
    for step in steps:
        row = step(None, row)
    return row.softmax(-1)[0]


@given(
    seed=st.integers(0, 1000),
    top_k=st.sampled_from([0, 1, 5, 60]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    few=st.booleans(),
)
def test_what_is_kept_is_what_transformers_keeps(seed, top_k, top_p, min_p, few):
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = logits_of(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "LIKELIEST", 20 if few else 1024)  # then all must be sorted
        shares, tokens = kept(logits, sampling)
    dense = torch.zeros(len(logits)).index_put((tokens,), shares / shares.sum())
    torch.testing.assert_close(dense, transformers_shares(logits, sampling))


@given(seed=st.integers(0, 1000), penalty=st.sampled_from([0.8, 1.3, 5.0]))
def test_repetition_penalty_is_that_of_transformers(seed, penalty):
    logits = logits_of(seed)
    prompt, said = [3, 7, 7, 120], []
    choice = Choice(Sampling(repetition_penalty=penalty), prompt)
    process = RepetitionPenaltyLogitsProcessor(penalty)
    for _ in range(5):
        expected = process(torch.tensor([prompt + said]), logits.unsqueeze(0))[0].argmax()
        said.append(choice.token(logits))
        assert said[-1] == int(expected)


def test_temperature_is_that_of_transformers():
    logits = logits_of(0, 6)
    expected = TemperatureLogitsWarper(0.7)(None, logits.unsqueeze(0)).softmax(-1)[0]
    choice = Choice(Sampling(temperature=0.7, seed=5), [])
    drawn = Counter(choice.token(logits) for _ in range(20_000))
    for token, share in enumerate(expected.tolist()):
        assert abs(drawn[token] / 20_000 - share) < 0.015


def test_a_seed_gives_the_same_tokens_in_any_company():
    steps = [logits_of(seed) for seed in range(12)]
    alone = Choice(Sampling(temperature=1.0, seed=9), [])
    expected = [alone.token(logits) for logits in steps]
    one, noisy = (
        Choice(Sampling(temperature=1.0, seed=9), []),
        Choice(Sampling(temperature=2.0), []),
    )
    made = [choose(torch.stack([-logits, logits]), [0, 0], [noisy, one])[1] for logits in steps]
    assert made == expected
    other = Choice(Sampling(temperature=1.0, seed=10), [])
    assert [other.token(logits) for logits in steps] != expected


def test_the_coldest_temperature_takes_the_likeliest():
    logits = logits_of(3)
    assert Choice(Sampling(temperature=1e-30), []).token(logits) == int(logits.argmax())


def test_greedy_rows_take_the_likeliest_without_looking():
    logits = torch.stack([logits_of(1), logits_of(2)])
    choices = [Choice(Sampling(), []), Choice(Sampling(), [])]
    assert choose(logits, [5, 7], choices) == [5, 7]
