"""Measure serving, draw the figures, and write the page on them (`make bench-serve`).

Each part runs in a process of its own and is kept under `runs/serving/`: what is there already is
not measured again.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from serving_measures import ANSWER_TOKENS, PARTS, ROWS

DOCS = Path(__file__).parent
PAGE = DOCS / "serving-benchmarks.md"
PICTURES = DOCS / "benchmarks"
NOTICE = "<!-- Written by docs/bench_serve.py (`make bench-serve`); do not edit. -->\n"

Measured = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Wanted:
    """A row of the table: what it says, and how far it should be."""

    title: str
    figure: Callable[[Measured], float]
    least: float
    unit: str = "x"
    is_ceiling: bool = False  # the least good value is the largest that will do

    def is_reached(self, value: float) -> bool:
        """Whether a value will do."""
        return value <= self.least if self.is_ceiling else value >= self.least


WANTED = (
    Wanted(
        f"tokens/s, {ROWS} users together / one after another",
        lambda it: _ratio(it["batches"], "together, tokens/s", "one by one, tokens/s"),
        4,
    ),
    Wanted(
        f"tokens/s with {ROWS} different adapters / base model alone, same batch",
        lambda it: _ratio(it["batches"], "together, tokens/s", "base, tokens/s"),
        0.80,
    ),
    Wanted(
        f"tokens/s, {ROWS} different adapters in a batch, ours / PEFT mixed-adapter batch",
        lambda it: _ratio(it["batches"], "together, tokens/s", "peft, tokens/s"),
        3,
    ),
    Wanted(
        "time to first token, 1,000 turns of history / 10 turns, same window",
        lambda it: _ratio(it["history"], "1000 turns, first token s", "10 turns, first token s"),
        1.05,
        is_ceiling=True,
    ),
    Wanted(
        "time to first token, whole history in the prompt / ours",
        lambda it: _ratio(it["context"], "whole, first token s", "ours, first token s"),
        20,
    ),
    Wanted(
        "time to first token, kept keys and values of the history / ours",
        lambda it: _ratio(it["context"], "kept, first token s", "ours, first token s"),
        1,
    ),
    Wanted(
        "bytes per user, kept keys and values of the history / ours",
        lambda it: _ratio(it["context"], "kept, bytes", "ours, bytes"),
        1,
    ),
    Wanted(
        "append acknowledged, p99, while 8 streams decode",
        lambda it: it["append"]["p99 s"] * 1000,
        50,
        unit=" ms",
        is_ceiling=True,
    ),
    Wanted(
        "resident memory after 10,000 requests / after 100 (tiny random model, short answers)",
        lambda it: _ratio(it["resident"], "10000 requests, bytes", "100 requests, bytes"),
        1.05,
        is_ceiling=True,
    ),
)


def main() -> int:
    """Measure what is missing, then draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/serving"), help="where it is kept")
    parser.add_argument("--part", choices=PARTS, help="measure this one only, and print it")
    given = parser.parse_args()
    if given.part is not None:
        sys.stdout.write(json.dumps(PARTS[given.part](), indent=2) + "\n")
        return 0
    given.runs.mkdir(parents=True, exist_ok=True)
    measured = {}
    for name in PARTS:
        file = given.runs / f"{name}.json"
        if not file.exists():
            sys.stderr.write(f"measuring {name}\n")
            command = [sys.executable, __file__, "--part", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603
            file.write_bytes(done.stdout)
        measured[name] = json.loads(file.read_text(encoding="utf-8"))
    PICTURES.mkdir(exist_ok=True)
    record = {"machine": _machine(), "parts": measured, "rows": _rows(measured)}
    (PICTURES / "serving.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _draw(measured, PICTURES / "serving.png")
    page = "".join(_page(measured))
    PAGE.write_text(NOTICE + page, encoding="utf-8")
    sys.stdout.write(page)
    return 0


def _ratio(figures: Mapping[str, float], upper: str, lower: str) -> float:
    return figures[upper] / figures[lower]


def _rows(measured: Measured) -> list[dict[str, object]]:
    return [
        {
            "figure": one.title,
            "value": one.figure(measured),
            "least": one.least,
            "is_reached": one.is_reached(one.figure(measured)),
        }
        for one in WANTED
    ]


def _machine() -> str:
    cores, processor = torch.get_num_threads(), platform.processor() or platform.machine()
    return f"{processor}, {cores} threads, torch {torch.__version__}"


def _page(measured: Measured) -> Iterator[str]:
    yield "# Serving, measured\n\n"
    yield (
        "    make bench-serve\n\n"
        f"One run on one machine ({_machine()}); both sides of every ratio were measured in turns. "
        "The model is the shipped one but for resident memory. Parts and all values: "
        "[serving.json](benchmarks/serving.json).\n\n"
        "| figure | measured | wanted | |\n|---|---|---|---|\n"
    )
    for one in WANTED:
        value = one.figure(measured)
        sign = "at most" if one.is_ceiling else "at least"
        verdict = "reached" if one.is_reached(value) else "**missed**"
        yield (
            f"| {one.title} | {value:,.2f}{one.unit} | {sign} {one.least:g}{one.unit} "
            f"| {verdict} |\n"
        )
    yield "\n![Each figure as a share of what is wanted](benchmarks/serving.png)\n\n"
    yield (
        f"Speeds are of {ROWS} prompts of 30 tokens and {ANSWER_TOKENS} new tokens each, reading "
        "included, greedy, ends ignored; every adapter was made of another person's words. PEFT "
        "is `generate(adapter_names=[...])` on a copy of the base model with the same adapters as "
        "LoRAs of the key width. History is real turns, encoded; the question is the same, in a "
        "new session. Resident memory is the server's, with 50 users, one request in ten stored.\n"
    )
    for part, figures in measured.items():
        yield f"\n## {part}\n\n{PARTS[part].__doc__}\n\n| | |\n|---|---|\n"
        for name, value in figures.items():
            yield f"| {name} | {value:,.4g} |\n" if value < 1000 else f"| {name} | {value:,.0f} |\n"


def _draw(measured: Measured, path: Path) -> None:
    """How far each figure is, on a scale where one is just enough."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(reversed(WANTED)):
        value = one.figure(measured)
        share = one.least / value if one.is_ceiling else value / one.least
        axes.barh(place, share, color="#4a7" if one.is_reached(value) else "#c55")
        axes.annotate(f" {value:,.2f}{one.unit}", (share, place), va="center", fontsize=8)
    axes.set_yticks(range(len(WANTED)), [one.title for one in reversed(WANTED)], fontsize=7)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.margins(x=0.25)
    axes.set_xlabel("share of what is wanted (1: just enough)")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
