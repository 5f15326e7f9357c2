"""Write the pages of `docs/` that are made from the code, or check that they are up to date."""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic.fields import FieldInfo

from memory_cli.main import EXIT_CODES, build_app, exit_codes
from memory_service import errors
from memory_service.settings import Settings

DOCS = Path(__file__).parent
TYPE = re.compile(r" <[a-z ]+>")
"""What typer adds to names that say it already."""

NOTICE = "<!-- Written by docs/generate.py (`make docs`); do not edit. -->\n"


def main() -> int:
    """Write the pages, or with --check tell which ones are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where stale")
    check = parser.parse_args().check
    stale = []
    for name, page in pages().items():
        path = DOCS / name
        if not path.exists() or path.read_text() != page:
            stale.append(name)
            if not check:
                path.write_text(page)
    if check and stale:
        sys.stderr.write(f"not up to date: {', '.join(stale)}; run `make docs`\n")
        return 1
    return 0


def pages() -> dict[str, str]:
    """Every generated page by file name."""
    return {
        "cli.md": NOTICE + "".join(cli_page()),
        "settings.md": NOTICE + "".join(settings_page()),
        "errors.md": NOTICE + "".join(errors_page()),
    }


def cli_page() -> Iterator[str]:
    """Help of every command."""
    root = typer.main.get_command(build_app())
    yield f"# The `memory` command\n\n{root.help}\n\n"
    yield "Results go to standard output, everything else to standard error. Every command that\n"
    yield "lists or shows takes `--json`.\n\n## Exit codes\n\n| code | meaning |\n|---|---|\n"
    for status, meaning in exit_codes().items():
        yield f"| {status} | {meaning} |\n"
    yield from _commands(root, "memory")


def _commands(command: object, path: str) -> Iterator[str]:
    context = typer.Context(command, info_name=path)  # type: ignore[arg-type]
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield from _command(command, context, path)
        return
    for name in sorted(subcommands):
        yield from _commands(subcommands[name], f"{path} {name}")


def _command(command: object, context: typer.Context, path: str) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))  # type: ignore[attr-defined]
    yield f"\n## `{path}`\n\n"
    yield f"{inspect.cleandoc(command.help or '')}\n\n"  # type: ignore[attr-defined]
    yield f"    {path} {usage}\n"
    parameters = command.get_params(context)  # type: ignore[attr-defined]
    records = [parameter.get_help_record(context) for parameter in parameters]
    rows = [record for record in records if record is not None and record[0] != "--help"]
    if rows:
        yield "\n| | |\n|---|---|\n"
    for name, text in rows:
        yield f"| `{TYPE.sub('', name)}` | {_cell(text)} |\n"


def settings_page() -> Iterator[str]:
    """Every setting with its default."""
    yield "# Settings\n\nEnvironment variables, or lines of a `.env` file in the working folder;\n"
    yield "the environment wins.\n\n| variable | default | meaning |\n|---|---|---|\n"
    for name, field in Settings.model_fields.items():
        default, meaning = _cell(_default(name, field)), _cell(field.description or "")
        yield f"| `MEMORY_SERVICE_{name.upper()}` | {default} | {meaning} |\n"


def _default(name: str, field: FieldInfo) -> str:
    by_platform = {
        "database_url": "`memory.db` in the user's data folder "
        "(`~/.local/share/memory-service` on Linux), created at first use",
        "cache_dir": "the user's cache folder (`~/.cache/memory-service` on Linux)",
    }
    if name in by_platform:
        return by_platform[name]
    return "" if field.default is None else f"`{field.default}`"


def errors_page() -> Iterator[str]:
    """Every error class with its code and exit code."""
    yield "# Errors\n\nEvery error has a stable code, shown in brackets at the end of its line.\n\n"
    yield "| code | exit code | meaning |\n|---|---|---|\n"
    for kind, status in EXIT_CODES.items():
        meaning = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
        yield f"| `{kind.code}` | {status} | {_cell(meaning)} |\n"
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    yield f"\n```\n{inspect.cleandoc(tree)}\n```\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
