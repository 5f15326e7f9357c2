"""Reports of `memory eval` for people."""

from typing import TYPE_CHECKING

from memory_cli import output

if TYPE_CHECKING:
    from memory_service.evaluation.intervals import Interval
    from memory_service.evaluation.report import Difference, MethodReport, Report
    from memory_service.evaluation.tasks.profile import ProfileReport
    from memory_service.evaluation.tasks.provenance import FoundTurns

LONGEST_BREAKDOWN = 12
"""Groups with more values than this are in the JSON only."""


def show_report(report: "Report", people: int) -> None:
    """Scores, costs, breakdowns."""
    questions = report.methods[0].questions
    output.show_table(
        ["method", "F1 ", "exact ", "holds the value ", "ROUGE-L recall ", "log-likelihood "],
        [
            (
                one.method,
                interval(one.f1),
                f"{one.exact:.3f}",
                None if one.value_recall is None else interval(one.value_recall),
                f"{one.rouge_l:.3f}",
                f"{one.log_likelihood:.2f}",
            )
            for one in report.methods
        ],
        title=f"{report.task}: {questions} questions about {people} people "
        "(95% bootstrap intervals over people)",
    )
    _show_costs(report)
    comparison = report.own_against_swap
    if comparison is not None:
        output.show_line(
            f"own minus swap: F1 {interval(comparison.f1_difference)}; the expected answer is "
            f"likelier under own for {interval(comparison.likelier, percent=True)} of questions"
        )
    for one in report.preferences:
        output.show_line(
            f"{one.method}: the right answer is likelier than the outdated one for "
            f"{interval(one.right, percent=True)} of the questions that know one"
        )
    for kept in report.retention:
        output.show_line(
            f"{kept.method}: after {kept.distance} more sessions it recalls "
            f"{interval(kept.share, percent=True)} of what it did after {kept.nearest}"
        )
    for name, values in report.breakdown.items():
        if 1 < len(values) <= LONGEST_BREAKDOWN:
            _show_breakdown(name, values)


def show_differences(task: str, found: "list[Difference]") -> None:
    """Second run minus first."""
    output.show_table(
        ["method", "questions ", "F1 ", "exact ", "holds the value ", "log-likelihood "],
        [
            (
                one.method,
                one.questions,
                interval(one.f1),
                interval(one.exact),
                None if one.value_recall is None else interval(one.value_recall),
                interval(one.log_likelihood),
            )
            for one in found
        ],
        title=f"{task}: B minus A on the same questions (95% bootstrap intervals over people)",
    )


def show_provenance(found: "FoundTurns") -> None:
    """How often the turn was found, against the cheap shares and chance."""
    output.show_line(
        f"provenance: {found.traced} of {found.questions} questions were answered right and have "
        "an evidence turn"
    )
    output.show_table(
        ["ranked by", "first ", "in the top 3 "],
        [
            ("leaving out", interval(found.first), interval(found.top)),
            ("shares alone", interval(found.first_by_share), interval(found.top_by_share)),
            ("chance", f"{found.first_by_chance:.3f}", f"{found.top_by_chance:.3f}"),
        ],
        title="The evidence turn is (95% bootstrap intervals over people)",
    )


def show_profile(report: "ProfileReport") -> None:
    """Precision and recall."""
    if report.precision is None:
        output.show_line(f"profile: no line about {report.people} people")
    else:
        right = interval(report.precision, percent=True)
        output.show_line(f"{right} of {report.lines} lines about {report.people} people are true")
    if report.recall is not None:
        found = interval(report.recall, percent=True)
        output.show_line(f"{found} of {report.told} facts told on these topics are in a line")


def interval(found: "Interval", *, percent: bool = False) -> str:
    """A mean with its interval."""
    if percent:
        return f"{found.mean:.0%} [{found.low:.0%}, {found.high:.0%}]"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _show_costs(report: "Report") -> None:
    output.show_table(
        [
            *("method", "prompt tokens ", "GFLOPs ", "first token ", "kept cache "),
            *("whole answer ", "kept per user ", "write a turn ", "GFLOPs a turn "),
        ],
        [
            (
                one.method,
                f"{one.prompt_tokens:,.0f}",
                f"{one.flops / 1e9:,.1f}",
                _ms(one.ttft_ms),
                _ms(one.ttft_kept_ms),
                _ms(one.total_ms),
                output.in_bytes(round(one.bytes_per_user)),
                f"{one.write_ms_per_turn:.1f} ms",
                f"{one.write_flops_per_turn / 1e9:,.1f}",
            )
            for one in report.methods
        ],
        title="Costs of a question, and of writing",
    )
    output.show_line(f"peak resident memory of the run: {output.in_bytes(report.peak_rss_bytes)}")
    even = report.break_even
    if even is not None:
        output.show_line(
            "writing once is cheaper than reading the history again after "
            f"{_count(even.by_flops)} questions by FLOPs, {_count(even.by_time)} by time"
        )


def _show_breakdown(name: str, values: "dict[str, list[MethodReport]]") -> None:
    output.show_table(
        [name, "method", "questions ", "F1 ", "holds the value ", "log-likelihood "],
        [
            (
                value.strip(),
                one.method,
                one.questions,
                interval(one.f1),
                None if one.value_recall is None else interval(one.value_recall),
                f"{one.log_likelihood:.2f}",
            )
            for value, rows in values.items()
            for one in rows
        ],
        title=f"By {name}",
    )


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f} ms"


def _count(value: float | None) -> str:
    return "no number of" if value is None else f"{value:,.1f}"
