"""`memory tenants`: what one may keep and for how long; delete one."""

from dataclasses import asdict
from typing import Annotated

import typer

from memory_cli import output
from memory_cli.opening import opened_store
from memory_cli.options import EXIT_DECLINED, Json, Yes
from memory_service.domain.quotas import Quota, Usage
from memory_service.settings import read_settings

app = typer.Typer(help="Who owns memories.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    pass


@app.command("quota")
def quota(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose; may be new.")],
    users: Annotated[
        str | None, typer.Option(metavar="N|none", help="The most users; none is no limit.")
    ] = None,
    turns: Annotated[
        str | None, typer.Option(metavar="N|none", help="The most turns of all users.")
    ] = None,
    text_bytes: Annotated[
        str | None,
        typer.Option("--bytes", metavar="N|none", help="The most bytes of all turns' texts."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what TENANT keeps and may keep; with options, change what it may keep.

    What is there already stays; turns and users beyond a limit are refused whole.
    """
    given = {"users": users, "turns": turns, "text_bytes": text_bytes}
    limits = {name: _limit(name, value) for name, value in given.items() if value is not None}
    with opened_store(read_settings()) as store:
        quotas = store.it.quotas
        found = store.run(quotas.change(tenant, limits) if limits else quotas.show(tenant))
    _show_quota(tenant, *found, as_json=as_json)


def _limit(name: str, value: str) -> int | None:
    if value == "none":
        return None
    if not value.isdecimal():
        option = "bytes" if name == "text_bytes" else name
        raise typer.BadParameter(f"--{option} is {value!r} and must be a number or none")
    return int(value)


def _show_quota(tenant: str, limits: Quota, kept: Usage, *, as_json: bool) -> None:
    if as_json:
        output.show_json({"tenant": tenant, "kept": asdict(kept), "limits": asdict(limits)})
        return
    rows = []
    for name, amount in asdict(kept).items():
        limit = getattr(limits, name)
        shown = "no limit" if limit is None else f"{limit:,}"
        rows.append((name.replace("_", " "), f"{amount:,}", shown))
    output.show_table(["what", "kept ", "may keep "], rows)


@app.command("expiry")
def expiry(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose; may be new.")],
    after: Annotated[
        str | None,
        typer.Option(metavar="DAYS|none", help="Days after it was said; none is never."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or change after how many days turns of TENANT are forgotten, those kept now too.

    A turn's own date (`memory turns keep`) comes first. `memory serve` forgets what is over by
    itself; without a server `memory turns expire` does.
    """
    with opened_store(read_settings()) as store:
        if after is not None:
            store.run(store.it.expiry.change_rule(tenant, _limit("after", after)))
        days = store.run(store.it.expiry.rule(tenant))
    if as_json:
        output.show_json({"tenant": tenant, "expire_after_days": days})
    else:
        shown = "never" if days is None else f"{output.count(days, 'day')} after they were said"
        output.show_fields({"tenant": tenant, "turns are forgotten": shown})


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
