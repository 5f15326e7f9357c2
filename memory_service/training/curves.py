"""Curves of a training run, drawn from its log."""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = {
    "loss": ("loss", "value_nll", "own_nll"),
    "value recall": ("own_recalled", "swap_recalled"),
    "swap gap, nats": ("swap_gap",),
    "cosine of two users' read-outs": ("readout_cosine",),
}
"""Title of a panel -> the log's fields in it."""

SMOOTHED_STEPS = 20
"""What every step reports is drawn as the mean of so many."""


def draw_curves(log: Path, picture: Path) -> None:
    """Draw a run's log as a PNG, which is replaced in one step.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a line of the log is no JSON.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, fields) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(visible=True, alpha=0.3)
        for field in fields:
            _draw(axes, field, [(one["step"], one[field]) for one in lines if _has(one, field)])
    unfinished = picture.with_suffix(".part")
    with unfinished.open("wb") as file:
        canvas.print_png(file)
    unfinished.replace(picture)


def _draw(axes: Axes, field: str, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, values = zip(*points, strict=True)
    is_dense = len(steps) > SMOOTHED_STEPS and steps[1] - steps[0] == 1
    axes.plot(steps, _smooth(values) if is_dense else values, label=field.replace("_", " "))
    axes.legend()


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Means of the last few values, of fewer at the beginning."""
    windows = [values[max(0, end - SMOOTHED_STEPS) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def _has(line: dict[str, float | None], field: str) -> bool:
    return line.get(field) is not None
