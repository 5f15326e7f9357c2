"""The command tree, and how every way to end a command becomes one line and an exit code.

The groups are imported only when Ctrl-C is already caught.
"""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from memory_cli import interrupts
from memory_cli.options import EXIT_DECLINED
from memory_service import __version__
from memory_service.errors import (
    BackendError,
    ConfigurationError,
    Forbidden,
    IncompatibleState,
    InvalidInput,
    MemoryServiceError,
    NotFound,
    NumericalError,
    Overloaded,
    QuotaExceeded,
    Rejected,
    StateConflict,
    Timeout,
    Unauthenticated,
    Unavailable,
)

EXIT_CODES: dict[type[MemoryServiceError], int] = {
    InvalidInput: 3,
    NotFound: 4,
    StateConflict: 5,
    IncompatibleState: 6,
    NumericalError: 7,
    ConfigurationError: 8,
    Unavailable: 9,
    Timeout: 10,
    Rejected: 11,
    BackendError: 12,
    Overloaded: 13,
    Unauthenticated: 14,
    Forbidden: 15,
    QuotaExceeded: 16,
}
"""Exit code of every error class; 0 is success."""

EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

OTHER_EXIT_CODES = {
    EXIT_DECLINED: "a question was answered with no",
    EXIT_USAGE: "the command line itself is wrong",
    EXIT_BUG: "a bug; the line tells where the traceback is",
    EXIT_INTERRUPTED: "Ctrl-C",
    EXIT_BROKEN_PIPE: "the reader of a pipe went away",
}


def main() -> NoReturn:
    """Run the command line of this process."""
    interrupts.listen()
    # Threads that spin while they wait slow down everything else on the machine, us included.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with exits():
            build_app()(prog_name="memory")
    finally:
        interrupts.ignore()  # what was asked for is done, or told
    sys.exit(0)


def exit_codes() -> dict[int, str]:
    """What every exit code means, for help and documentation."""
    meanings = {0: "success"} | OTHER_EXIT_CODES
    meanings |= {status: kind.code.replace("_", " ") for kind, status in EXIT_CODES.items()}
    return dict(sorted(meanings.items()))


class Commands(TyperGroup):
    """The root group: every way out of a command has its line and its exit code."""

    def main(self, *args: Any, **extra: Any) -> None:
        """Run one command line and exit."""
        extra["standalone_mode"] = False
        with exits():
            try:
                status = super().main(*args, **extra)
            except typer.TyperException as error:
                _fail_of_usage(error)
            sys.stdout.flush()
            raise SystemExit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer has ways of its own to end these two."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            leave_interrupted()
        except BrokenPipeError as error:
            _fail_of_system(error)


def _fail_of_usage(error: typer.TyperException) -> None:
    from memory_cli import output

    context = getattr(error, "ctx", None)
    message = error.format_message()
    if "\n" in message:  # a group without its command: the help
        output.note(message)
    else:
        command = context.command_path if context is not None else "memory"
        output.fail(f"{message.rstrip('.')}; see `{command} --help`", "usage")
    raise SystemExit(EXIT_USAGE)


def build_app() -> typer.Typer:
    """The command tree: one file per group."""
    from memory_cli import (
        adapters,
        ask,
        chat,
        db,
        demo,
        evaluate,
        inspect,
        keys,
        models,
        profile,
        quarantine,
        serve,
        tenants,
        train,
        turns,
        users,
        versions,
    )

    app = typer.Typer(
        cls=Commands,
        name="memory",
        help="A memory for chat assistants that lives in weights, not in the prompt.",
        epilog="Exit codes: "
        + ", ".join(f"{status} {meaning}" for status, meaning in exit_codes().items())
        + ".\n\nSettings are MEMORY_SERVICE_* variables, or lines of a .env file in the working "
        "folder: see docs/settings.md.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    app.add_typer(turns.app, name="turns")
    app.command("chat")(chat.chat)
    app.command("ask")(ask.ask)
    app.command("serve")(serve.serve)
    app.add_typer(keys.app, name="keys")
    app.add_typer(users.app, name="users")
    app.add_typer(tenants.app, name="tenants")
    app.command("history")(versions.history)
    app.command("rollback")(versions.rollback)
    app.add_typer(adapters.app, name="adapters")
    app.add_typer(quarantine.app, name="quarantine")
    app.command("inspect")(inspect.inspect)
    app.command("why")(inspect.why)
    app.command("profile")(profile.profile)
    app.add_typer(models.app, name="models")
    app.add_typer(db.app, name="db")
    app.add_typer(train.app, name="train")
    app.add_typer(evaluate.app, name="eval")
    app.command("demo")(demo.demo)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from memory_cli import output

        output.show_line(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@contextmanager
def exits() -> Iterator[None]:
    """Turn what leaves the block into one line on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        leave_interrupted()
    except Exception as error:  # noqa: BLE001  # the outermost edge; the log gets the traceback
        if interrupts.received():
            leave_interrupted()
        if isinstance(error, MemoryServiceError):
            _fail(str(error), error.code, exit_code(error))
        if isinstance(error, OSError):
            _fail_of_system(error)
        _fail_of_bug(error)


def exit_code(error: MemoryServiceError) -> int:
    """The exit code of an error: its class's, or its nearest ancestor's."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def leave_interrupted() -> NoReturn:
    """End after Ctrl-C, in one line; another Ctrl-C can no longer disturb."""
    interrupts.ignore()
    words = interrupts.last_words()
    begin = "\n" if sys.stderr.isatty() else ""  # after what was being written, and ^C
    with suppress(OSError):
        sys.stderr.write(f"{begin}interrupted{': ' if words else ''}{words}\n")
    sys.exit(EXIT_INTERRUPTED)


def _fail(text: str, code: str, status: int) -> NoReturn:
    from memory_cli import output

    output.fail(text, code)
    sys.exit(status)


def _fail_of_system(error: OSError) -> NoReturn:
    """Render what the operating system refused: a full disk, a file that may not be read."""
    if isinstance(error, BrokenPipeError):
        _discard_output()
        sys.exit(EXIT_BROKEN_PIPE)
    where = f"{error.filename}: " if error.filename else ""
    _discard_output()
    _fail(f"{where}{error.strerror or error}", Unavailable.code, EXIT_CODES[Unavailable])


def _fail_of_bug(error: Exception) -> NoReturn:
    place = _write_traceback(error)
    shown = f"; the traceback is in {place}" if place else ""
    _fail(f"unexpected {type(error).__name__}{shown}", "bug", EXIT_BUG)


def _write_traceback(error: Exception) -> Path | None:
    """Keep the traceback in a file that only this user may read; to stderr where that fails."""
    lines = traceback.format_exception(error)
    try:
        import platformdirs

        folder = Path(platformdirs.user_log_dir("memory-service", ensure_exists=True))
        stamp = time.strftime("%Y%m%d-%H%M%S-")
        descriptor, name = tempfile.mkstemp(prefix=f"traceback-{stamp}", suffix=".log", dir=folder)
        with os.fdopen(descriptor, "w") as file:
            file.writelines(lines)
    except OSError:
        sys.stderr.writelines(lines)
        return None
    return Path(name)


def _discard_output() -> None:
    """Let what is still buffered for stdout vanish instead of failing again at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
