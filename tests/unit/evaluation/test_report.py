from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.errors import InvalidInput, NotFound
from memory_service.evaluation.report import (
    BreakEven,
    Interval,
    break_even,
    breakdown,
    compare,
    differences,
    report_object,
    retained,
    summarise,
)
from memory_service.evaluation.runner import Result

RESULT = Result(
    sample="ann",
    method="own",
    question="What is my dog called?",
    expected="Rex",
    value="Rex",
    answer="Rex",
    f1=0.75,
    exact=1.0,
    value_recall=1.0,
    log_likelihood=-1.0,
    rouge_l=1.0,
    prompt_tokens=10,
    answer_tokens=2,
    flops=1000,
    kept_bytes=100,
    turns=4,
    write_s=0.5,
    write_flops=400,
)
SEED = 1


def results(scores: dict[str, list[float]], method: str = "own") -> list[Result]:
    return [
        replace(RESULT, sample=sample, question=f"q{number}", f1=score, method=method)
        for sample, all_of_it in scores.items()
        for number, score in enumerate(all_of_it)
    ]


# Summaries


def test_means():
    two = [
        RESULT,
        replace(RESULT, f1=0.25, exact=0.0, value_recall=0.0, log_likelihood=-3, prompt_tokens=30),
        replace(RESULT, method="none", f1=0.0),
    ]
    report = summarise(two, "own", SEED)
    assert (report.method, report.questions) == ("own", 2)
    assert report.f1.mean == 0.5
    assert report.value_recall is not None and report.value_recall.mean == 0.5
    assert (report.exact, report.log_likelihood, report.prompt_tokens) == (0.5, -2.0, 20.0)


def test_questions_without_a_value_have_no_value_recall():
    without = replace(RESULT, value=None, value_recall=None)
    assert summarise([without], "own", SEED).value_recall is None
    report = summarise([without, replace(RESULT, value_recall=0.0)], "own", SEED)
    assert report.value_recall == Interval(0.0, 0.0, 0.0)


def test_method_without_results():
    with pytest.raises(NotFound, match="swap"):
        summarise([RESULT], "swap", SEED)


@given(
    st.floats(0, 1),
    st.dictionaries(st.text(max_size=3), st.integers(1, 5), min_size=1, max_size=6),
)
@settings(max_examples=30, deadline=None)
def test_constant_scores_have_no_width(score, samples):
    scores = {name: [score] * count for name, count in samples.items()}
    interval = summarise(results(scores), "own", SEED).f1
    assert interval.mean == pytest.approx(score)
    assert interval.high - interval.low == pytest.approx(0, abs=1e-12)


@given(st.dictionaries(st.text(max_size=3), st.lists(st.floats(0, 1), min_size=1), min_size=1))
@settings(max_examples=30, deadline=None)
def test_interval_holds_the_mean_and_stays_among_the_scores(scores):
    interval = summarise(results(scores), "own", SEED).f1
    everything = [score for several in scores.values() for score in several]
    assert interval.mean == pytest.approx(np.mean(everything))
    slack = 1e-9
    assert min(everything) - slack <= interval.low <= interval.high <= max(everything) + slack


def test_interval_is_that_of_a_normal_mean():
    # 400 samples of one question each, half right: the mean's standard deviation is 0.5 / 20.
    scores = {f"s{number:03}": [float(number % 2)] for number in range(400)}
    interval = summarise(results(scores), "own", SEED).f1
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_questions_of_one_sample_are_not_independent():
    apart = {f"s{number}": [float(number % 2)] for number in range(100)}
    together = {"a": [1.0] * 50, "b": [0.0] * 50}
    widths = []
    for scores in (apart, together):
        interval = summarise(results(scores), "own", SEED).f1
        widths.append(interval.high - interval.low)
    assert widths[0] < 0.25 < widths[1] == 1.0


def test_seed_decides():
    scores = {f"s{number}": [number / 7] for number in range(7)}
    assert summarise(results(scores), "own", 1) == summarise(results(scores), "own", 1)
    assert summarise(results(scores), "own", 1).f1 != summarise(results(scores), "own", 2).f1


# Costs


def test_costs_are_means_of_what_was_measured():
    timed = replace(RESULT, first_token_s=0.5, total_s=1.0)
    again = replace(RESULT, again_s=0.1, flops=3000, question="q2")
    other = replace(RESULT, sample="bob", turns=6, write_s=1.5, write_flops=600, kept_bytes=300)
    report = summarise([timed, again, other], "own", SEED)
    assert (report.ttft_ms, report.ttft_kept_ms, report.total_ms) == (500, 100, 1000)
    assert report.flops == pytest.approx(5000 / 3)
    assert report.bytes_per_user == 200  # of two people, not of three questions
    assert report.write_ms_per_turn == pytest.approx(1000 * (0.5 + 1.5) / 10)
    assert report.write_flops_per_turn == 100
    assert summarise([RESULT], "own", SEED).ttft_ms is None


def test_writing_pays_after_so_many_questions():
    own = replace(RESULT, total_s=0.5, write_s=6.0, write_flops=5000)
    history = replace(RESULT, method="history", total_s=2.5, flops=2000)
    even = break_even([own, history])
    assert even == BreakEven(by_flops=5000 / 1000, by_time=6.0 / 2.0)
    assert break_even([own]) is None
    assert break_even([own, replace(history, flops=10, total_s=0.1)]) == BreakEven(None, None)


def test_breakdown_is_the_same_means_over_parts():
    first = replace(RESULT, groups={"session": "1"}, f1=1.0)
    second = replace(RESULT, groups={"session": "2", "speaker": "user"}, f1=0.0)
    parts = breakdown([first, second, replace(second, f1=0.5), RESULT], SEED)
    assert {name: list(values) for name, values in parts.items()} == {
        "session": ["1", "2"],
        "speaker": ["user"],
    }
    (row,) = parts["session"]["2"]
    assert (row.method, row.questions, row.f1.mean) == ("own", 2, 0.25)


def test_what_programs_read_comes_first():
    report = report_object("dmr", "f", [RESULT, replace(RESULT, method="none")], ["none"], SEED)
    record = report.record()
    assert list(record)[:3] == ["task", "n", "methods"]
    (row,) = record["methods"]
    assert list(row)[:11] == [
        *("method", "f1", "f1_low", "f1_high", "exact", "value_recall"),
        *("log_likelihood", "prompt_tokens", "flops", "ttft_ms", "bytes_per_user"),
    ]
    assert record["peak_rss_bytes"] > 10**7


# Two runs


def test_differences_of_two_runs_are_paired():
    before = results({"a": [0.0, 0.2], "b": [0.9]})
    after = [replace(one, f1=one.f1 + 0.1) for one in reversed(before)]
    (found,) = differences(before, [*after, replace(RESULT, method="none")], SEED)
    assert (found.method, found.questions) == ("own", 3)
    assert found.f1.low == pytest.approx(0.1) == found.f1.high
    assert found.value_recall == Interval(0.0, 0.0, 0.0)


def test_runs_that_asked_other_things_are_not_compared():
    with pytest.raises(InvalidInput, match="only 1 are the same"):
        differences(results({"a": [0.0, 0.2]}), results({"a": [0.0]}), SEED)
    with pytest.raises(InvalidInput, match="no method in common"):
        differences(results({"a": [0.0]}), results({"a": [0.0]}, "none"), SEED)


# Retention


def remembered(distance: int, recalls: list[float]) -> list[Result]:
    return [
        replace(
            RESULT, sample=f"{distance}-{n}", groups={"distance": f"{distance:3}"}, value_recall=r
        )
        for n, r in enumerate(recalls)
    ]


def test_what_is_left_is_a_share_of_what_there_was():
    grid = remembered(10, [0.25, 0.5]) + remembered(0, [0.5, 1.0]) + remembered(40, [0.0, 0.0])
    ten, forty = retained(grid, "own", SEED)
    assert (ten.distance, ten.nearest, forty.distance) == (10, 0, 40)
    # Everyone keeps half: however people are drawn, the share is the same.
    assert ten.share == Interval(0.5, 0.5, 0.5)
    assert forty.share == Interval(0.0, 0.0, 0.0)


def test_one_distance_or_no_recall_is_no_retention():
    assert retained(remembered(0, [1.0]), "own", SEED) == []
    assert retained([RESULT], "own", SEED) == []
    assert retained(remembered(0, [0.0]) + remembered(4, [1.0]), "own", SEED) == []
    assert retained(remembered(0, [1.0]) + remembered(4, [1.0]), "swap", SEED) == []


# Own against swap


def paired(own: dict[str, list[float]], swap: dict[str, list[float]]) -> list[Result]:
    return results(own) + results(swap, "swap")


def test_difference_of_every_pair():
    comparison = compare(paired({"a": [1.0, 0.5], "b": [0.5]}, {"a": [0.5, 0.0], "b": [0.0]}), SEED)
    assert comparison is not None
    assert comparison.f1_difference == Interval(0.5, 0.5, 0.5)
    assert comparison.likelier.mean == 0.0  # equal likelihoods: not likelier


def test_pairing_makes_the_interval_narrow():
    """Questions differ much, methods always by the same: only a paired comparison sees it."""
    hard_and_easy = {f"s{number}": [number / 50] for number in range(40)}
    easier = {name: [score + 0.1 for score in scores] for name, scores in hard_and_easy.items()}
    comparison = compare(paired(easier, hard_and_easy), SEED)
    assert comparison is not None
    assert comparison.f1_difference.low == pytest.approx(0.1)
    assert comparison.f1_difference.high == pytest.approx(0.1)


def test_share_of_questions_that_are_likelier_under_own():
    own = results({"a": [0, 0, 0, 0]})
    swap = [
        replace(one, method="swap", log_likelihood=likelihood)
        for one, likelihood in zip(own, (-2.0, -2.0, -2.0, -0.5), strict=True)
    ]
    comparison = compare(own + swap, SEED)
    assert comparison is not None
    assert comparison.likelier.mean == 0.75


@pytest.mark.parametrize(
    "given_results",
    [
        [],
        results({"a": [1.0]}),
        results({"a": [1.0]}, "swap"),
        paired({"a": [1.0, 1.0]}, {"a": [1.0]}),
        paired({"a": [1.0], "b": [1.0]}, {"a": [1.0, 1.0]}),
        paired({"a": [1.0], "b": [0.0]}, {"b": [0.0], "a": [1.0]}),
    ],
    ids=["nothing", "no swap", "no own", "fewer", "other samples", "other order"],
)
def test_what_cannot_be_paired_is_not_compared(given_results):
    assert compare(given_results, SEED) is None
