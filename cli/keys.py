"""`memory keys`: create, list, revoke."""

from typing import Annotated

import typer

from memory_cli import output
from memory_cli.opening import opened_store
from memory_cli.options import Json
from memory_service.domain.keys import ApiKey, parse_scopes
from memory_service.settings import read_settings

app = typer.Typer(help="API keys.", no_args_is_help=True, rich_markup_mode=None)


@app.command("create")
def create_key(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose data it reaches.")],
    scope: Annotated[
        str, typer.Option(metavar="SCOPES", help="read, write, admin; several with commas.")
    ] = "read,write",
    as_json: Json = False,
) -> None:
    """Make a key. It is shown this once; stored is only its digest."""
    settings = read_settings()
    scopes = parse_scopes(scope)
    with opened_store(settings) as store:
        key, token = store.run(store.it.keys.create(tenant, scopes))
    if as_json:
        output.show_json(_record(key) | {"key": token})
    else:
        output.show_line(token)
        output.note(f"key {key.id} of {tenant}; it cannot be shown again")


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """List all keys, revoked ones too."""
    settings = read_settings()
    with opened_store(settings) as store:
        keys = store.run(store.it.keys.list())
    if as_json:
        output.show_json([_record(key) for key in keys])
    else:
        output.show_table(
            ["key", "tenant", "scopes", "since (UTC)", "revoked (UTC)"],
            [
                (key.id, key.tenant, ",".join(sorted(key.scopes)), key.created_at, key.revoked_at)
                for key in keys
            ],
        )


@app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, as listed.")],
) -> None:
    """End a key at once, also for a running server."""
    settings = read_settings()
    with opened_store(settings) as store:
        store.run(store.it.keys.revoke(key))
    output.show_line(f"revoked {key}")


def _record(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
