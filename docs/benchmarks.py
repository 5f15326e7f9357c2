"""Run the evaluations of the page on benchmarks, draw its figures, and write it (`make bench`).

Every run is a `memory eval` command with `--out`, kept under `runs/`: what is there already is not
answered again, and someone who doubts a number finds the samples there.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

DOCS = Path(__file__).parent
PICTURES = DOCS / "benchmarks"
PAGE = DOCS / "benchmarks.md"
NOTICE = "<!-- Written by docs/benchmarks.py (`make bench`); do not edit. -->\n"

ALL = "none,own,swap,history,history+swap,last_k,bm25,embedding,own+bm25"
GRID = "own,swap,history,bm25"

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """One evaluation: its folder, what it shows, and its options besides `--out`."""

    name: str
    title: str
    options: tuple[str, ...]
    axis: str = ""  # the group that its curve runs along

    def command(self, runs: Path) -> list[str]:
        """What a reader runs to print the same."""
        return ["memory", "eval", *self.options, "--out", str(runs / self.name)]


def benches(limit: int, dmr: Path | None, membench: Path | None) -> list[Bench]:
    """Every evaluation for which there is data; `limit` people in each."""
    people = ("--people", str(max(2, limit // 4)))
    found = [
        Bench(
            "facts",
            "Recall by facts in one session",
            ("recall", *people, "--facts", "2,8,32", "--methods", GRID),
            "facts",
        ),
        Bench(
            "sessions",
            "Recall of eight facts by number of sessions",
            ("recall", *people, "--facts", "8", "--sessions", "1,4,8", "--methods", GRID),
            "sessions",
        ),
        Bench(
            "distance",
            "Recall of one session's facts after further sessions",
            ("recall", *people, "--facts", "8", "--further", "0,10,40", "--methods", GRID),
            "distance",
        ),
    ]
    limited = ("--limit", str(limit))
    if dmr is not None:
        options = ("dmr", "--data", str(dmr), *limited, "--methods", ALL)
        found.insert(0, Bench("dmr", "Real dialogues", options))
    if membench is not None:
        options = ("membench", "--data", str(membench), *limited)
        found.append(Bench("membench", "Facts that changed", options))
    return found


def main() -> int:
    """Run what is missing, then draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=int, default=60, help="people of every evaluation")
    parser.add_argument("--dmr", type=Path, help="dialogues with questions, JSON lines")
    parser.add_argument("--membench", type=Path, help="the same with outdated answers")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept")
    given = parser.parse_args()
    measured = []
    for bench in benches(given.limit, given.dmr, given.membench):
        command = bench.command(given.runs)
        sys.stderr.write(f"{shlex.join(command)}\n")
        program = [sys.executable, "-m", "memory_cli"]
        done = subprocess.run([*program, *command[1:]], check=False)  # noqa: S603  # our own
        if done.returncode:
            return done.returncode
        folder = given.runs / bench.name
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        measured.append((bench, report, manifest))
    PICTURES.mkdir(exist_ok=True)
    PAGE.write_text(NOTICE + "".join(_page(measured, given.runs)), encoding="utf-8")
    return 0


def _page(measured: Sequence[tuple[Bench, Report, Report]], runs: Path) -> Iterator[str]:
    _, _, manifest = measured[0]
    machine = manifest["machine"]
    yield "# Benchmarks\n\n"
    yield (
        f"Generator {manifest['fingerprint'][:12]}, commit {manifest['commit'][:12]}, "
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}; greedy. "
        "Brackets are 95% bootstrap intervals over people. What the methods and columns mean: "
        "[measuring](evaluation.md).\n"
    )
    for bench, report, _ in measured:
        yield f"\n## {bench.title}\n\n"
        yield f"    {shlex.join(bench.command(runs))}\n\n"
        yield from _table(report)
        for one in report["retention"]:
            yield (
                f"\n{one['method']}: after {one['distance']} more sessions it recalls "
                f"{_percent(one['share'])} of what it did after {one['nearest']}.\n"
            )
        swap = report["own_against_swap"]
        if swap is not None:
            difference = swap["f1_difference"]
            yield (
                f"\nOwn minus swap: F1 {difference['mean']:.3f} [{difference['low']:.3f}, "
                f"{difference['high']:.3f}]; the expected answer is likelier under own for "
                f"{_percent(swap['likelier'])}.\n"
            )
        for one in report["right_over_outdated"]:
            yield f"\n{one['method']}: right over outdated for {_percent(one['right'])}.\n"
        picture = PICTURES / f"{bench.name}.png"
        if bench.axis:
            _draw_curve(report, bench, picture)
        else:
            _draw_plane(report, picture)
        yield f"\n![{bench.title}](benchmarks/{picture.name})\n"


def _table(report: Report) -> Iterator[str]:
    yield (
        "| method | F1 | holds the value | log-likelihood | prompt tokens | GFLOPs | first token "
        "| kept per user |\n|---|---|---|---|---|---|---|---|\n"
    )
    for one in report["methods"]:
        recall = "" if one["value_recall"] is None else f"{one['value_recall']:.1%}"
        ttft = "" if one["ttft_ms"] is None else f"{one['ttft_ms']:,.0f} ms"
        yield (
            f"| {one['method']} | {one['f1']:.3f} [{one['f1_low']:.3f}, {one['f1_high']:.3f}] "
            f"| {recall} | {one['log_likelihood']:.2f} | {one['prompt_tokens']:,.0f} "
            f"| {one['flops'] / 1e9:,.1f} | {ttft} | {one['bytes_per_user'] / 1000:,.1f} kB |\n"
        )


def _draw_plane(report: Report, path: Path) -> None:
    """F1 against what a question costs: operations, time, bytes."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    costs = {
        "flops": "FLOPs a question",
        "ttft_ms": "time to first token, ms",
        "bytes_per_user": "bytes kept per user",
    }
    for axes, (cost, label) in zip(panels, costs.items(), strict=True):
        for one in report["methods"]:
            if one[cost]:
                _point(axes, one[cost], one)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.3)
        axes.set_xlabel(label)
    panels[0].set_ylabel("token F1")
    _save(figure, path)


def _point(axes: Axes, cost: float, one: Mapping[str, Any]) -> None:
    below, above = one["f1"] - one["f1_low"], one["f1_high"] - one["f1"]
    axes.errorbar([cost], [one["f1"]], [[below], [above]], marker="o", capsize=3)
    axes.annotate(
        one["method"], (cost, one["f1"]), xytext=(4, 4), textcoords="offset points", fontsize=8
    )


def _draw_curve(report: Report, bench: Bench, path: Path) -> None:
    """Value recall along a grid's axis, each method with its interval."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    cells: dict[str, list[tuple[int, float, float, float]]] = {}
    for value, rows in report["breakdown"][bench.axis].items():
        for one in rows:
            recall = (one["value_recall"], one["value_recall_low"], one["value_recall_high"])
            cells.setdefault(one["method"], []).append((int(value), *recall))
    for method, points in cells.items():
        x, mean, low, high = zip(*sorted(points), strict=True)
        axes.plot(x, mean, marker="o", label=method)
        axes.fill_between(x, low, high, alpha=0.15)
    axes.set_ylim(0, 1)
    axes.set_xlabel(bench.axis if bench.axis != "distance" else "further sessions")
    axes.set_ylabel("answers holding the value")
    axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def _percent(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.0%} [{interval['low']:.0%}, {interval['high']:.0%}]"


if __name__ == "__main__":
    raise SystemExit(main())
