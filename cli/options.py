"""Arguments and options that several commands share."""

from typing import Annotated

import typer

EXIT_DECLINED = 1
"""Exit code where a person answered a question with no."""

User = Annotated[str, typer.Argument(metavar="USER", help="Whose memory.")]
VersionedUser = Annotated[
    str, typer.Argument(metavar="USER[@VERSION]", help="Whose adapter; the newest unless named.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
