"""Report: means with bootstrap intervals, and own against swap, question by question."""

import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from memory_service.errors import InvalidInput, NotFound
from memory_service.evaluation.intervals import RESAMPLES, Interval, mean_over_people, resampled
from memory_service.evaluation.runner import Result
from memory_service.evaluation.tasks.locality import Drift


@dataclass(frozen=True)
class MethodReport:
    """One row of a report: scores, then costs of a question, then costs of writing.

    Times are of the questions that were asked alone; None where there was none.
    """

    method: str
    questions: int
    f1: Interval
    exact: float
    value_recall: Interval | None
    rouge_l: float
    log_likelihood: float
    prompt_tokens: float
    flops: float
    ttft_ms: float | None
    ttft_kept_ms: float | None
    total_ms: float | None
    bytes_per_user: float
    write_ms_per_turn: float
    write_flops_per_turn: float

    def record(self) -> dict[str, object]:
        """The row as plain JSON; what programs read first stands first."""
        recall = self.value_recall
        return {
            "method": self.method,
            "f1": self.f1.mean,
            "f1_low": self.f1.low,
            "f1_high": self.f1.high,
            "exact": self.exact,
            "value_recall": None if recall is None else recall.mean,
            "log_likelihood": self.log_likelihood,
            "prompt_tokens": self.prompt_tokens,
            "flops": self.flops,
            "ttft_ms": self.ttft_ms,
            "bytes_per_user": self.bytes_per_user,
            "value_recall_low": None if recall is None else recall.low,
            "value_recall_high": None if recall is None else recall.high,
            "rouge_l": self.rouge_l,
            "questions": self.questions,
            "ttft_kept_ms": self.ttft_kept_ms,
            "total_ms": self.total_ms,
            "write_ms_per_turn": self.write_ms_per_turn,
            "write_flops_per_turn": self.write_flops_per_turn,
        }


@dataclass(frozen=True)
class Comparison:
    """Own against swap on the same questions: this difference is memory, the rest is style."""

    f1_difference: Interval
    likelier: Interval  # share of questions whose expected answer is likelier under own


@dataclass(frozen=True)
class Report:
    """All that a run says; `record` is what `--json` prints."""

    task: str
    fingerprint: str
    methods: list[MethodReport]
    own_against_swap: "Comparison | None"
    preferences: list["Preference"]
    retention: list["Retention"]
    break_even: "BreakEven | None"
    breakdown: dict[str, dict[str, list[MethodReport]]]
    peak_rss_bytes: int

    def record(self) -> dict[str, object]:
        """As plain JSON."""
        swap = self.own_against_swap
        return {
            "task": self.task,
            "n": self.methods[0].questions,
            "methods": [one.record() for one in self.methods],
            "fingerprint": self.fingerprint,
            "own_against_swap": None if swap is None else asdict(swap),
            "right_over_outdated": [asdict(one) for one in self.preferences],
            "retention": [asdict(one) for one in self.retention],
            "break_even": None if self.break_even is None else asdict(self.break_even),
            "peak_rss_bytes": self.peak_rss_bytes,
            "breakdown": {
                name: {
                    value.strip(): [one.record() for one in rows] for value, rows in values.items()
                }
                for name, values in self.breakdown.items()
            },
        }


def report_object(
    task: str, fingerprint: str, results: Sequence[Result], methods: Sequence[str], seed: int
) -> Report:
    """Everything about a run.

    Raises:
        NotFound: a method has no results.
    """
    preferences = [prefer_right(results, name, seed) for name in methods]
    return Report(
        task=task,
        fingerprint=fingerprint,
        methods=[summarise(results, name, seed) for name in methods],
        own_against_swap=compare(results, seed),
        preferences=[one for one in preferences if one is not None],
        retention=[one for name in methods for one in retained(results, name, seed)],
        break_even=break_even(results),
        breakdown=breakdown(results, seed),
        peak_rss_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def summarise(results: Sequence[Result], method: str, seed: int) -> MethodReport:
    """Aggregate one method's results.

    Raises:
        NotFound: the method has none.
    """
    mine = [result for result in results if result.method == method]
    if not mine:
        raise NotFound("results of a method", method)
    with_value = [(one.sample, one.value_recall) for one in mine if one.value_recall is not None]
    written = {one.sample: one for one in mine}.values()
    turns = sum(one.turns for one in written) or 1
    return MethodReport(
        method=method,
        questions=len(mine),
        f1=mean_over_people([(one.sample, one.f1) for one in mine], seed),
        exact=_mean([one.exact for one in mine]),
        value_recall=mean_over_people(with_value, seed) if with_value else None,
        rouge_l=_mean([one.rouge_l for one in mine]),
        log_likelihood=_mean([one.log_likelihood for one in mine]),
        prompt_tokens=_mean([one.prompt_tokens for one in mine]),
        flops=_mean([one.flops for one in mine]),
        ttft_ms=_mean_ms([one.first_token_s for one in mine]),
        ttft_kept_ms=_mean_ms([one.again_s for one in mine]),
        total_ms=_mean_ms([one.total_s for one in mine]),
        bytes_per_user=_mean([one.kept_bytes for one in written]),
        write_ms_per_turn=1000 * sum(one.write_s for one in written) / turns,
        write_flops_per_turn=sum(one.write_flops for one in written) / turns,
    )


@dataclass(frozen=True)
class BreakEven:
    """After how many questions writing once is cheaper than reading the history every time.

    None where a question costs as much with the adapter as with the history, or was not timed.
    """

    by_flops: float | None
    by_time: float | None


def break_even(results: Sequence[Result]) -> BreakEven | None:
    """Own against history, of the questions of this run; None without both."""
    own = [one for one in results if one.method == "own"]
    history = [one for one in results if one.method == "history"]
    if not own or not history:
        return None
    people = {one.sample: one for one in own}.values()
    return BreakEven(
        by_flops=_ratio(
            _mean([one.write_flops for one in people]),
            _mean([one.flops for one in history]) - _mean([one.flops for one in own]),
        ),
        by_time=_ratio(
            1000 * _mean([one.write_s for one in people]),
            (_mean_ms([one.total_s for one in history]) or 0.0)
            - (_mean_ms([one.total_s for one in own]) or 0.0),
        ),
    )


def breakdown(results: Sequence[Result], seed: int) -> dict[str, dict[str, list[MethodReport]]]:
    """The same means over parts of the questions: name of the group, its value, each method."""
    methods = list(dict.fromkeys(one.method for one in results))
    parts: dict[str, dict[str, list[MethodReport]]] = {}
    for name in sorted({name for one in results for name in one.groups}):
        known = [one for one in results if name in one.groups]
        for value in sorted({one.groups[name] for one in known}):
            part = [one for one in known if one.groups[name] == value]
            rows = [summarise(part, m, seed) for m in methods if any(m == p.method for p in part)]
            parts.setdefault(name, {})[value] = rows
    return parts


@dataclass(frozen=True)
class Difference:
    """One method of two runs on the same questions: the second run minus the first."""

    method: str
    questions: int
    f1: Interval
    exact: Interval
    value_recall: Interval | None
    log_likelihood: Interval


def differences(before: Sequence[Result], after: Sequence[Result], seed: int) -> list[Difference]:
    """Paired differences of every method that both runs measured.

    Raises:
        InvalidInput: they have no method in common, or asked other questions.
    """
    found = []
    for method in dict.fromkeys(one.method for one in before):
        first = {_asked(one): one for one in before if one.method == method}
        second = {_asked(one): one for one in after if one.method == method}
        if not second:
            continue
        if first.keys() != second.keys():
            alike = len(first.keys() & second.keys())
            problem = f"of {len(first)} and {len(second)} only {alike} are the same"
            raise InvalidInput(f"questions of {method}", alike, problem)
        found.append(_difference(method, [(first[key], second[key]) for key in first], seed))
    if not found:
        raise InvalidInput("runs", "two", "have no method in common")
    return found


def _difference(method: str, pairs: Sequence[tuple[Result, Result]], seed: int) -> Difference:
    values = [
        (a.sample, b.value_recall - a.value_recall)
        for a, b in pairs
        if a.value_recall is not None and b.value_recall is not None
    ]
    return Difference(
        method=method,
        questions=len(pairs),
        f1=mean_over_people([(a.sample, b.f1 - a.f1) for a, b in pairs], seed),
        exact=mean_over_people([(a.sample, b.exact - a.exact) for a, b in pairs], seed),
        value_recall=mean_over_people(values, seed) if values else None,
        log_likelihood=mean_over_people(
            [(a.sample, b.log_likelihood - a.log_likelihood) for a, b in pairs], seed
        ),
    )


def compare(results: Sequence[Result], seed: int) -> Comparison | None:
    """Own minus swap, paired; None where not both answered the same questions."""
    own = [result for result in results if result.method == "own"]
    swap = [result for result in results if result.method == "swap"]
    if not own or [_asked(one) for one in own] != [_asked(one) for one in swap]:
        return None
    pairs = list(zip(own, swap, strict=True))
    return Comparison(
        f1_difference=mean_over_people([(a.sample, a.f1 - b.f1) for a, b in pairs], seed),
        likelier=mean_over_people(
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
    return Preference(method, mean_over_people(scores, seed)) if scores else None


@dataclass(frozen=True)
class Retention:
    """What is left after so many more sessions: value recall over that at the shortest distance."""

    method: str
    distance: int
    nearest: int
    share: Interval


def retained(results: Sequence[Result], method: str, seed: int) -> list[Retention]:
    """Of a method whose results have several distances (group "distance"); else nothing.

    The same people are asked at every distance, so the same are drawn for both sides of a ratio.
    """
    by_distance: dict[int, list[tuple[str, float]]] = {}
    for one in results:
        if one.method == method and "distance" in one.groups and one.value_recall is not None:
            scores = by_distance.setdefault(int(one.groups["distance"]), [])
            scores.append((one.sample, one.value_recall))
    if len(by_distance) < 2:
        return []
    nearest, *further = sorted(by_distance)
    near_mean, near = resampled(by_distance[nearest], seed)
    found = []
    for distance in further:
        mean, means = resampled(by_distance[distance], seed)
        known = near > 0
        if near_mean > 0 and known.any():
            low, high = np.quantile(means[known] / near[known], [0.025, 0.975])
            share = Interval(mean / near_mean, float(low), float(high))
            found.append(Retention(method, distance, nearest, share))
    return found


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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_ms(seconds: Sequence[float | None]) -> float | None:
    measured = [one for one in seconds if one is not None]
    return 1000 * _mean(measured) if measured else None


def _ratio(cost: float, saved: float) -> float | None:
    return cost / saved if saved > 0 else None
