"""The only place that prints: results to stdout, everything else to stderr.

Text that people wrote is shown with its control characters made visible, so that a stored turn
cannot move the cursor, recolour the terminal or forge a line of ours.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

UNBOUNDED_WIDTH = 100_000
"""Width of what is piped: nothing is wrapped or cut for a program that reads it."""

PIECE_CHARS = 4096

WIDE = 120
"""Columns from which six texts fit side by side."""

BAR = "█"
PARTS_OF_BAR = " ▏▎▍▌▋▊▉"

Report = Callable[[str], None]
Step = Callable[[int, int], None]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _InPieces:
    """A stream whose long writes are cut: an unbuffered one drops what a pipe does not take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        for start in range(0, len(text), PIECE_CHARS):
            self._stream.write(text[start : start + PIECE_CHARS])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def results() -> Console:
    """Where results go."""
    width = None if sys.stdout.isatty() else UNBOUNDED_WIDTH
    return _Console(file=cast(TextIO, _InPieces(sys.stdout)), highlight=False, width=width)


def messages() -> Console:
    """Where progress, notes and errors go."""
    if sys.stderr.isatty():
        return _Console(stderr=True, highlight=False)
    return _Console(stderr=True, highlight=False, width=UNBOUNDED_WIDTH)


def visible(text: str) -> str:
    """Replace control characters by pictures of them and lone surrogates by their numbers."""
    if text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character in "\n\t":
        return character
    number = ord(character)
    if number < 0x20:
        return chr(0x2400 + number)
    if number == 0x7F:
        return "␡"
    # Cf holds the marks that turn the direction of text, and the joiners of emoji, which stay.
    if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or 0x202A <= number <= 0x202E:
        return f"\\u{number:04x}"
    return character


# --- results -------------------------------------------------------------------------------------


def show_json(value: object) -> None:
    """Print one JSON document."""
    _write(_escape_controls(json.dumps(value, indent=2, ensure_ascii=False, default=_jsonable)))


def show_json_line(value: object) -> None:
    """Print one JSON document on one line, for streams."""
    _write(_escape_controls(json.dumps(value, ensure_ascii=False, default=_jsonable)))


def show_line(text: str, style: str = "") -> None:
    """Print one line."""
    results().print(Text(visible(text), style=style), soft_wrap=True)


def show_piece(text: str) -> None:
    """Print a piece of an answer as it comes."""
    results().print(Text(visible(text)), end="", soft_wrap=True)


def show_fields(fields: Mapping[str, object]) -> None:
    """Print names and values below each other."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, _cell(value))
    results().print(table)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table; columns whose name ends with a space are aligned to the right."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=title or None, title_justify="left"
    )
    for name in columns:
        right = name.endswith(" ")
        table.add_column(name.strip(), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    results().print(table)


def show_side_by_side(
    rows: Sequence[tuple[str, str | None, Mapping[str, tuple[str, bool | None]]]],
) -> None:
    """Print questions with the expected answer and an answer by each way, marked where it holds.

    One column a way where there is room for it, else one line a way.
    """
    console = results()
    if not console.is_terminal:
        console.width = WIDE
    if console.width < WIDE:
        _show_below_each_other(console, rows)
        return
    table = Table(header_style="bold", show_lines=True)
    ways = list(rows[0][2]) if rows else []
    for name in ("question", "expected", *ways):
        table.add_column(name, overflow="fold", ratio=1)
    for question, expected, answers in rows:
        marked = [_marked(*answers[way]) for way in ways]
        table.add_row(_cell(question), _cell(expected), *marked)
    console.print(table)


def _show_below_each_other(
    console: Console,
    rows: Sequence[tuple[str, str | None, Mapping[str, tuple[str, bool | None]]]],
) -> None:
    for question, expected, answers in rows:
        console.print()
        console.print(Text(visible(question), style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("expected", _cell(expected))
        for way, (text, holds) in answers.items():
            table.add_row(way, _marked(text, holds))
        console.print(table)


def _marked(text: str, holds: bool | None) -> Text:
    marks = {True: ("✓ ", "green"), False: ("✗ ", ""), None: ("", "")}
    mark, style = marks[holds]
    return Text(f"{mark}{visible(text)}", style=style)


def bar(value: float, largest: float, width: int = 32) -> str:
    """A bar whose length is value / largest of the width."""
    eighths = round(8 * width * value / largest) if largest > 0 else 0
    full, rest = divmod(eighths, 8)
    return BAR * full + (PARTS_OF_BAR[rest] if rest else "")


def count(number: int, noun: str) -> str:
    """A number of things: "1 turn", "2,000 turns"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def when(time: datetime) -> str:
    """A time for people, in UTC, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S}"


def in_bytes(size: int) -> str:
    """A size for people: exact below 10 kB, then in kB or MB (powers of ten)."""
    if size < 10_000:
        return f"{size:,} bytes"
    if size < 10_000_000:
        return f"{size / 1000:,.1f} kB"
    return f"{size / 1_000_000:,.1f} MB"


# --- messages ------------------------------------------------------------------------------------


def note(text: str, style: str = "") -> None:
    """Tell what happened, on stderr."""
    messages().print(Text(visible(text), style=style), soft_wrap=True)


def warn(text: str) -> None:
    """Tell what the person should know, on stderr."""
    messages().print(Text(visible(f"warning: {text}"), style="yellow"), soft_wrap=True)


def fail(text: str, code: str) -> None:
    """Tell in one line on stderr why a command did not do its work."""
    line = " ".join(visible(text).split())
    with suppress(OSError):  # the exit code still tells
        messages().print(Text(f"error: {line} [{code}]", style="red"), soft_wrap=True)


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def can_ask() -> bool:
    """Whether there is somebody who can answer a question."""
    return sys.stdin.isatty()


def confirm(question: str) -> bool:
    """Ask a yes-or-no question on the terminal."""
    messages().print(Text(visible(f"{question} [y/N] ")), end="")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def read_message(prompt: str) -> str:
    """Read one line from the person, with editing and recall of earlier lines.

    Raises:
        EOFError: they closed the input.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  # what makes input() editable, where it exists
    return input(prompt)


@contextmanager
def waiting(what: str) -> Iterator[Report]:
    """Show that something of unknown length goes on; the report replaces what is shown."""
    console = messages()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(Text(what, style="dim"), spinner="dots") as status:
        yield lambda text: status.update(Text(visible(text), style="dim"))


@contextmanager
def counting(what: str, unit: str) -> Iterator[Step]:
    """Show a bar from the first step on; called with steps done and steps to do."""
    console = messages()
    progress = Progress(
        TextColumn("{task.description}", style="dim"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit, style="dim"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def fractions(what: str) -> Iterator[Callable[[str, float | None], None]]:
    """Show a bar for stages that tell their name and the fraction done, or None for unknown.

    Where stderr is no terminal, each stage is one line.
    """
    console = messages()
    shown: set[str] = set()
    progress = Progress(
        TextColumn("{task.description}", style="dim"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task(what, total=None)

        def report(text: str, fraction: float | None) -> None:
            if text.startswith("warning: "):
                warn(text.removeprefix("warning: "))
            elif console.is_terminal:
                total = None if fraction is None else 1.0
                progress.update(task, description=text, completed=fraction or 0.0, total=total)
            elif text not in shown:
                shown.add(text)
                note(text)

        yield report


@contextmanager
def training(steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show how far a training run is, with its latest numbers; a line now and then in a log."""
    console = messages()
    latest: dict[str, float] = {}
    progress = Progress(
        TextColumn("training", style="dim"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[numbers]}"),
        console=console,
        transient=True,
        speed_estimate_period=300,  # a step takes seconds
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("training", total=steps, numbers="")

        def show(step: int, numbers: Mapping[str, float]) -> None:
            latest.update(numbers)
            text = "  ".join(f"{name} {value:.2f}" for name, value in latest.items())
            progress.update(task, completed=step, numbers=text)
            if not console.is_terminal and len(numbers) > 1:
                note(f"step {step}/{steps}  {text}")

        yield show


# --- shared --------------------------------------------------------------------------------------


def _write(text: str) -> None:
    _InPieces(sys.stdout).write(text + "\n")
    sys.stdout.flush()


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, datetime):
        return Text(when(value))
    return Text(visible(str(value)))


def _escape_controls(text: str) -> str:
    """Keep JSON valid and harmless: what json.dumps lets through but a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(
        f"\\u{ord(character):04x}"
        if character != "\n" and unicodedata.category(character) in {"Cc", "Cs"}
        else character
        for character in text
    )


def _jsonable(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be shown as JSON")
