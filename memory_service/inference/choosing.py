"""Logits -> the next token of every row, each by its own sampling and its own random numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memory_service.domain.messages import Sampling

COLDEST = 1e-6
"""A lower temperature is read as this one: dividing by it could overflow."""

LIKELIEST = 1024
"""Tokens that are sorted first: they nearly always hold all that `top_p` keeps."""


class Choice:
    """Chooses the tokens of one answer. What it draws depends on its seed only, in any company."""

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)
        self._seen = torch.tensor(sorted(set(prompt)), dtype=torch.int64)

    @property
    def is_likeliest(self) -> bool:
        """Whether it is simply the token with the largest logit."""
        sampling = self._sampling
        return sampling.temperature == 0 and sampling.repetition_penalty == 1

    def token(self, logits: Tensor) -> int:
        """The next token from logits [vocabulary] in float32."""
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            logits = self._penalised(logits)
        if sampling.temperature == 0:
            chosen = int(logits.argmax())
        else:
            shares, tokens = kept(logits / max(sampling.temperature, COLDEST), sampling)
            drawn = torch.rand((), generator=self._random, dtype=torch.float64)
            sums = shares.double().cumsum(0)
            index = int(torch.searchsorted(sums, drawn * sums[-1], right=True))
            chosen = int(tokens[min(index, len(tokens) - 1)])
        if sampling.repetition_penalty != 1:
            self._seen = torch.cat([self._seen, torch.tensor([chosen])])
        return chosen

    def _penalised(self, logits: Tensor) -> Tensor:
        """Less likely where seen before (Keskar et al. 2019, arXiv 1909.05858, section 4.1)."""
        logits = logits.clone()
        penalty = self._sampling.repetition_penalty
        seen = logits[self._seen]
        logits[self._seen] = torch.where(seen > 0, seen / penalty, seen * penalty)
        return logits


def kept(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities and tokens that top_k, top_p and min_p leave, in this order.

    Every rule applies to what the one before left, renormalised, as in transformers.
    """
    if sampling.top_k or sampling.top_p < 1:
        shares, tokens = _likeliest(logits, sampling)
    else:
        shares, tokens = logits.softmax(0), torch.arange(len(logits))
    if sampling.min_p > 0:
        likely = shares >= sampling.min_p * shares.max()
        shares, tokens = shares[likely], tokens[likely]
    return shares, tokens


def _likeliest(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What top_k and top_p leave, likeliest first; sorts the vocabulary only where it must."""
    count = min(sampling.top_k or LIKELIEST, len(logits))
    values, tokens = logits.topk(count)
    total = values.logsumexp(0) if sampling.top_k else logits.logsumexp(0)
    shares = (values - total).exp()
    if not sampling.top_k and float(shares.sum()) < sampling.top_p:
        values, tokens = logits.sort(descending=True)
        shares = (values - total).exp()
    if sampling.top_p < 1:
        # The smallest set that reaches top_p, always at least the likeliest.
        within = shares.cumsum(0) - shares < sampling.top_p
        shares, tokens = shares[within], tokens[within]
    return shares, tokens


def choose(logits: Tensor, likeliest: Sequence[int], choices: Sequence[Choice]) -> list[int]:
    """The next token of every row, from logits [row vocabulary] and their likeliest tokens."""
    return [
        best if choice.is_likeliest else choice.token(row.float())
        for best, choice, row in zip(likeliest, choices, logits, strict=True)
    ]
