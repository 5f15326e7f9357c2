"""Report: means with bootstrap intervals, and own against swap, question by question."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memory_service.errors import InvalidInput, NotFound
from memory_service.evaluation.runner import Result
from memory_service.evaluation.tasks.locality import Drift

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% bootstrap interval over samples."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class MethodReport:
    """One row of a report."""

    method: str
    questions: int
    f1: Interval
    exact: float
    value_recall: Interval | None
    log_likelihood: float
    prompt_tokens: float


@dataclass(frozen=True)
class Comparison:
    """Own against swap on the same questions: this difference is memory, the rest is style."""

    f1_difference: Interval
    likelier: Interval  # share of questions whose expected answer is likelier under own


def summarise(results: Sequence[Result], method: str, seed: int) -> MethodReport:
    """Aggregate one method's results.

    Raises:
        NotFound: the method has none.
    """
    mine = [result for result in results if result.method == method]
    if not mine:
        raise NotFound("results of a method", method)
    with_value = [result for result in mine if result.value_recall is not None]
    return MethodReport(
        method=method,
        questions=len(mine),
        f1=_bootstrap([(result.sample, result.f1) for result in mine], seed),
        exact=float(np.mean([result.exact for result in mine])),
        value_recall=(
            _bootstrap([(r.sample, float(r.value_recall or 0.0)) for r in with_value], seed)
            if with_value
            else None
        ),
        log_likelihood=float(np.mean([result.log_likelihood for result in mine])),
        prompt_tokens=float(np.mean([result.prompt_tokens for result in mine])),
    )


def compare(results: Sequence[Result], seed: int) -> Comparison | None:
    """Own minus swap, paired; None where not both answered the same questions."""
    own = [result for result in results if result.method == "own"]
    swap = [result for result in results if result.method == "swap"]
    if not own or [_asked(one) for one in own] != [_asked(one) for one in swap]:
        return None
    pairs = list(zip(own, swap, strict=True))
    return Comparison(
        f1_difference=_bootstrap([(a.sample, a.f1 - b.f1) for a, b in pairs], seed),
        likelier=_bootstrap(
            [(a.sample, float(a.log_likelihood > b.log_likelihood)) for a, b in pairs], seed
        ),
    )


@dataclass(frozen=True)
class Preference:
    """How often the right answer is likelier than the outdated one, by one method."""

    method: str
    right: Interval


def prefer_right(results: Sequence[Result], method: str, seed: int) -> Preference | None:
    """Right over outdated, over the questions that know an outdated answer; None without any."""
    scores = [
        (result.sample, float(result.log_likelihood > result.outdated_log_likelihood))
        for result in results
        if result.method == method and result.outdated_log_likelihood is not None
    ]
    return Preference(method, _bootstrap(scores, seed)) if scores else None


def perplexity_ratio(drifts: Sequence[Drift], seed: int) -> Interval:
    """Perplexity with the adapter over perplexity without, resampled over people.

    Raises:
        InvalidInput: there is nothing to compare.
    """
    if not drifts:
        raise InvalidInput("drifts", 0, "must be at least one")
    nats = np.array([one.on_nats - one.off_nats for one in drifts])
    tokens = np.array([one.tokens for one in drifts], dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(drifts), (RESAMPLES, len(drifts)))
    ratios = np.exp(nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(np.exp(nats.sum() / tokens.sum())), float(low), float(high))


def _asked(result: Result) -> tuple[str, str, str]:
    return result.sample, result.question, result.expected


def _bootstrap(scores: Sequence[tuple[str, float]], seed: int) -> Interval:
    """Resample whole samples: questions about one person are not independent."""
    names = sorted({name for name, _ in scores})
    index = {name: number for number, name in enumerate(names)}
    totals, counts = np.zeros(len(names)), np.zeros(len(names))
    for name, score in scores:
        totals[index[name]] += score
        counts[index[name]] += 1
    drawn = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(totals.sum() / counts.sum()), float(low), float(high))
