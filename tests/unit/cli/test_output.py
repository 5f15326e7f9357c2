"""What people wrote is shown harmlessly, and numbers readably."""

import json
from datetime import UTC, datetime

import pytest

from memory_cli import output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Åse 👋", "plain Åse 👋"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("over\rwritten", "over␍written"),
        ("bell\x07 del\x7f", "bell␇ del␡"),
        ("c1 \x9b31m", "c1 \\u009b31m"),
        ("lone \ud800", "lone \\ud800"),
        ("turned \u202egnp.exe", "turned \\u202egnp.exe"),
        ("family 👨\u200d👩", "family 👨\u200d👩"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert output.visible(text) == shown


def test_markup_in_text_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(["text"], [["[red]not markup[/red] [link=x]y[/link] :smile:"]])
    output.show_line("[bold]no[/bold]")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "[red]not markup[/red] [link=x]y[/link] :smile:",
        "[bold]no[/bold]",
    ]


def test_json_is_harmless_for_a_terminal_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "é \x1b \x9b \x7f \ud800 [b]", "time": datetime(2026, 3, 1, tzinfo=UTC)}
    output.show_json(value)
    out = capsys.readouterr().out
    assert "é" in out
    assert not {"\x1b", "\x9b", "\x7f", "\ud800"} & set(out)
    assert json.loads(out) == {"text": value["text"], "time": "2026-03-01T00:00:00+00:00"}


def test_piped_tables_are_neither_wrapped_nor_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(["text"], [["word " * 200]])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_error_is_one_line_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    output.fail("first\nsecond \x1b[2J", "not_found")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: first second ␛[2J [not_found]\n"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, ""), (4.0, "████"), (2.0, "██"), (0.5, "▌"), (3.25, "███▎")]
)
def test_a_bar_is_as_long_as_its_share(value: float, shown: str) -> None:
    assert output.bar(value, 4.0, width=4) == shown


def test_a_bar_of_nothing() -> None:
    assert output.bar(0.0, 0.0) == ""


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (9999, "9,999 bytes"), (983_368, "983.4 kB"), (29_900_000, "29.9 MB")],
)
def test_sizes(size: int, shown: str) -> None:
    assert output.in_bytes(size) == shown


def test_answers_stand_side_by_side_with_marks(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {"no memory": ("A [red]cat", False), "own": ("Rex", True), "none": ("-", None)}
    output.show_side_by_side([("Who?", "Rex", answers)])
    out = capsys.readouterr().out
    assert "✗ A [red]cat" in out
    assert "✓ Rex" in out
    assert max(len(line) for line in out.splitlines()) <= output.WIDE
