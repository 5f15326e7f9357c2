"""Arguments and options that several commands share."""

from typing import Annotated

import typer

from memory_service.errors import InvalidInput

EXIT_DECLINED = 1
"""Exit code where a person answered a question with no."""

User = Annotated[str, typer.Argument(metavar="USER", help="Whose memory.")]
VersionedUser = Annotated[
    str, typer.Argument(metavar="USER[@VERSION]", help="Whose adapter; the newest unless named.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def numbers(field: str, text: str) -> list[int]:
    """What an option says that takes several numbers.

    Raises:
        InvalidInput: it says something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InvalidInput(field, text, "must be whole numbers from 0, separated by commas")
    return [int(part) for part in parts]
