"""Means with bootstrap intervals over people."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import InvalidInput

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% bootstrap interval over samples."""

    mean: float
    low: float
    high: float


def mean_over_people(scores: Sequence[tuple[str, float]], seed: int) -> Interval:
    """The mean of scores (person, score), with its interval.

    Raises:
        InvalidInput: there is no score.
    """
    mean, means = resampled(scores, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def resampled(scores: Sequence[tuple[str, float]], seed: int) -> tuple[float, NDArray[np.float64]]:
    """The mean, and those of resampled people: questions about one person depend on each other.

    Raises:
        InvalidInput: there is no score.
    """
    if not scores:
        raise InvalidInput("scores", 0, "must be at least one")
    names = sorted({name for name, _ in scores})
    index = {name: number for number, name in enumerate(names)}
    totals, counts = np.zeros(len(names)), np.zeros(len(names))
    for name, score in scores:
        totals[index[name]] += score
        counts[index[name]] += 1
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return float(totals.sum() / counts.sum()), means
