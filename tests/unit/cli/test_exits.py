"""Every way to end a command has one line and an exit code."""

import os
import stat
from pathlib import Path

import pytest

from memory_cli import interrupts, main
from memory_service import errors
from memory_service.errors import MemoryServiceError


def leaves(kind: type[MemoryServiceError]) -> list[type[MemoryServiceError]]:
    below = kind.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


def ended_by(error: BaseException) -> int:
    with pytest.raises(SystemExit) as caught, main.exits():
        raise error
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_every_leaf_error_has_its_own_exit_code() -> None:
    package_errors = [
        leaf for leaf in leaves(MemoryServiceError) if leaf.__module__ == errors.__name__
    ]
    missing = [leaf.__name__ for leaf in package_errors if leaf not in main.EXIT_CODES]
    assert not missing
    codes = [*main.EXIT_CODES.values(), *main.OTHER_EXIT_CODES, 0]
    assert len(codes) == len(set(codes))


def test_a_new_error_takes_the_code_of_its_nearest_ancestor() -> None:
    class Unheard(errors.Timeout):
        pass

    expected = main.EXIT_CODES[errors.Timeout]
    assert main.exit_code(Unheard("database", "silent")) == expected


def test_an_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(errors.NotFound("user", "ann")) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no user named 'ann' [not_found]\n"


def test_ctrl_c_is_one_line_with_what_became_of_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(SystemExit) as caught,
        main.exits(),
        interrupts.told(lambda: "some turns are stored"),
        interrupts.told(lambda: "3 turns are stored"),
    ):
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted: 3 turns are stored\n"
    assert ended_by(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_ended_otherwise_is_not_told_later(capsys: pytest.CaptureFixture[str]) -> None:
    with interrupts.told(lambda: "done"):
        pass
    with pytest.raises(errors.NotFound), interrupts.told(lambda: "failed"):
        raise errors.NotFound("user", "ann")
    assert ended_by(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_refusal_of_the_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(OSError(28, "No space left on device", "/somewhere/file")) == 9
    err = capsys.readouterr().err
    assert err == "error: /somewhere/file: No space left on device [unavailable]\n"


def test_a_broken_pipe_ends_silently(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(BrokenPipeError()) == 141
    assert capsys.readouterr().err == ""


def test_a_bug_is_one_line_and_a_private_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert ended_by(ZeroDivisionError("a detail")) == 70
    (log,) = tmp_path.rglob("*.log")
    err = capsys.readouterr().err
    assert err == f"error: unexpected ZeroDivisionError; the traceback is in {log} [bug]\n"
    assert "a detail" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_bug_without_a_place_for_the_log_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert ended_by(ZeroDivisionError("a detail")) == 70
    assert "a detail" in capsys.readouterr().err


def test_the_help_tells_every_exit_code() -> None:
    meanings = main.exit_codes()
    assert set(main.EXIT_CODES.values()) | {0, 1, 2, 70, 130, 141} == set(meanings)
    assert os.EX_OK in meanings
