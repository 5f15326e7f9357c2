"""`memory tenants`: delete one."""

from typing import Annotated

import typer

from memory_cli import output
from memory_cli.opening import opened_store
from memory_cli.options import EXIT_DECLINED, Json, Yes
from memory_service.settings import read_settings

app = typer.Typer(help="Who owns memories.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    pass


@app.command("delete")
def delete_tenant(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Which one.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete all that is stored of TENANT: keys, users, turns, states, adapters. Prints what went.

    Interrupted, it deletes the rest when run again.
    """
    settings = read_settings()
    with opened_store(settings) as store:
        if not yes:
            if not output.can_ask():
                raise typer.BadParameter("nobody can be asked here: give --yes to delete")
            users, turns = store.run(store.it.inspect.tenant_size(tenant))
            what = f"{output.count(users, 'user')} with {output.count(turns, 'turn')}"
            if not output.confirm(f"Delete {what} and all keys of {tenant} for good?"):
                output.note("nothing was deleted")
                raise typer.Exit(EXIT_DECLINED)
        with output.waiting("deleting") as report:
            deleted = store.run(
                store.it.forget.tenant(
                    tenant, lambda done: report(f"deleted {output.count(done, 'user')}")
                )
            )
    if as_json:
        output.show_json({"tenant": tenant, "deleted": dict(deleted)})
    else:
        output.show_line(f"deleted {tenant}")
        output.show_table(["what", "rows "], list(deleted.items()))
