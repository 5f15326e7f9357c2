"""`memory db`: upgrade and current."""

import typer

from memory_cli import output
from memory_cli.options import Json
from memory_service.settings import read_settings

app = typer.Typer(
    help="Create the database's tables, and tell where they stand.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("upgrade")
def upgrade_database() -> None:
    """Create the tables, or bring them up to date."""
    from memory_service.storage import migrate  # Alembic is slow to import

    url = read_settings().database_url.get_secret_value()
    before, _ = migrate.current(url)
    with output.waiting("upgrading the database"):
        migrate.upgrade(url)
    after, _ = migrate.current(url)
    if before == after:
        output.show_line(f"already at {after}")
    else:
        output.show_line(f"from {before or 'nothing'} to {after}")


@app.command("current")
def show_current(as_json: Json = False) -> None:
    """Tell the database's revision and the one this program needs."""
    from memory_service.storage import migrate  # Alembic is slow to import

    found, needed = migrate.current(read_settings().database_url.get_secret_value())
    if as_json:
        output.show_json({"revision": found, "needed": needed, "current": found == needed})
        return
    output.show_fields({"revision": found, "needed": needed})
    if found != needed:
        output.note("not up to date: run `memory db upgrade`")
