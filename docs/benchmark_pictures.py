"""The pictures of the page on benchmarks, from reports of `memory eval`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

Report = Mapping[str, Any]

COSTS = {
    "flops": "FLOPs a question",
    "ttft_ms": "time to first token, ms",
    "bytes_per_user": "bytes kept per user",
}


def draw_plane(report: Report, path: Path) -> None:
    """F1 against what a question costs: operations, time, bytes."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for number, one in enumerate(report["methods"]):
            if one[cost]:
                _point(axes, one[cost], one, f"C{number}")
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.35)
        axes.set_xlabel(label)
    panels[0].set_ylabel("token F1")
    _save(figure, path)


def cells(reports: Iterable[Report], axis: str) -> dict[str, list[tuple[int, Report]]]:
    """Rows along an axis of a grid, by method; of two runs of one cell, the later counts."""
    found: dict[str, dict[int, Report]] = {}
    for report in reports:
        for value, rows in report["breakdown"][axis].items():
            for one in rows:
                found.setdefault(one["method"], {})[int(value)] = one
    return {
        method: sorted(points.items(), key=lambda point: point[0])
        for method, points in found.items()
    }


def draw_curve(rows: Mapping[str, Sequence[tuple[int, Report]]], label: str, path: Path) -> None:
    """Value recall along an axis of a grid, each method with its interval."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for method, points in rows.items():
        x = [value for value, _ in points]
        mean, low, high = (
            [one[f"value_recall{end}"] for _, one in points] for end in ("", "_low", "_high")
        )
        axes.plot(x, mean, marker="o", label=method)
        axes.fill_between(x, low, high, alpha=0.15)
    axes.set_ylim(0, 1)
    axes.set_xlabel(label)
    axes.set_ylabel("answers holding the value")
    axes.legend()
    _save(figure, path)


def draw_lengths(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Time to first token and bytes kept against the tokens of a history."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [one["tokens"] for one in rows]
    for label, time, size in (
        ("ours", "own_ms", "own_bytes"),
        ("whole history in the prompt", "history_ms", "history_bytes"),
        ("kept KV cache of the history", "kept_ms", "kept_bytes"),
        ("retrieval (BM25, 8 turns)", "bm25_ms", "bm25_bytes"),
    ):
        left.plot(x, [one[time] for one in rows], marker="o", label=label)
        right.plot(x, [one[size] for one in rows], marker="o", label=label)
    for axes, label in ((left, "time to first token, ms"), (right, "bytes kept per user")):
        axes.set_yscale("log")
        axes.set_xlabel("prompt tokens with the whole history")
        axes.set_ylabel(label)
    left.legend(fontsize=8)
    _save(figure, path)


def _point(axes: Axes, cost: float, one: Report, color: str) -> None:
    below, above = one["f1"] - one["f1_low"], one["f1_high"] - one["f1"]
    axes.errorbar([cost], [one["f1"]], [[below], [above]], marker="o", capsize=3, color=color)
    axes.annotate(
        one["method"],
        (cost, one["f1"]),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8,
        color=color,
    )


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100)
