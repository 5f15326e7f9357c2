"""`memory users`: list, show, delete, rebuild; the others are in `moving.py`."""

from dataclasses import asdict
from typing import Annotated

import typer

from memory_cli import moving, output
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import EXIT_DECLINED, Json, User, Yes
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Head
from memory_service.settings import read_settings

app = typer.Typer(help="Whose memories there are.", no_args_is_help=True, rich_markup_mode=None)

app.command("export")(moving.export_user)
app.command("import")(moving.import_user)
app.command("merge")(moving.merge_users)
app.command("migrate")(moving.migrate_users)


@app.command("list")
def list_users(
    after: Annotated[str, typer.Option(metavar="NAME", help="Begin after this name.")] = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N users.")] = 100,
    as_json: Json = False,
) -> None:
    """List users by name."""
    settings = read_settings()
    with opened_store(settings) as store:
        heads = store.run(store.it.inspect.users(settings.tenant, after=after, limit=limit))
    if as_json:
        output.show_json([_record(head) for head in heads])
    else:
        output.show_table(
            ["user", "version ", "turns ", "pending ", "quarantined ", "since (UTC)"],
            [
                (
                    head.memory_id.user,
                    head.version,
                    head.turns,
                    head.pending_turns,
                    head.quarantined_turns,
                    head.created_at,
                )
                for head in heads
            ],
        )
    if len(heads) == limit:
        output.note(f"there may be more: --after {heads[-1].memory_id.user}", style="dim")


@app.command("show")
def show_user(user: User, as_json: Json = False) -> None:
    """Show USER's memory in numbers."""
    settings = read_settings()
    with opened_store(settings) as store:
        overview = store.run(store.it.inspect.user(MemoryId(user, settings.tenant)))
    head, sizes = overview.head, overview.sizes
    if as_json:
        output.show_json(_record(head) | asdict(sizes))
        return
    output.show_fields(
        {
            "user": user,
            "adapter": f"{user}@{head.version}" if head.version else None,
            "turns": head.turns,
            "pending turns": head.pending_turns,
            "quarantined turns": head.quarantined_turns,
            "sessions": sizes.sessions,
            "chunks": sizes.chunks,
            "text": f"{sizes.text_chars:,} characters",
            "state": output.in_bytes(sizes.state_bytes),
            "kept adapters": output.in_bytes(sizes.adapters_bytes),
            "since (UTC)": head.created_at,
        }
    )


@app.command("delete")
def delete_user(user: User, yes: Yes = False, as_json: Json = False) -> None:
    """Delete all that is stored of USER: turns, state and adapters. Prints what went."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        if not yes:
            head = store.run(store.it.inspect.user(memory_id)).head
            if not output.can_ask():
                raise typer.BadParameter("nobody can be asked here: give --yes to delete")
            turns = output.count(head.turns, "turn")
            question = f"Delete {turns} and the adapter of {user} for good?"
            if not output.confirm(question):
                output.note("nothing was deleted")
                raise typer.Exit(EXIT_DECLINED)
        with output.waiting("deleting"):
            deleted = store.run(store.it.forget.user(memory_id))
    if as_json:
        output.show_json({"user": user, "deleted": dict(deleted)})
    else:
        output.show_line(f"deleted {user}")
        output.show_table(["what", "rows "], list(deleted.items()))


@app.command("rebuild")
def rebuild_user(user: User, as_json: Json = False) -> None:
    """Encode USER's kept turns anew, for another generator or base model."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        store.run(store.it.inspect.user(memory_id))  # whether there is one, before the slow part
    with opened_service(settings) as service, output.counting("encoding", "chunks") as report:
        version = service.run(service.it.remember.rebuild(memory_id, report))
    if as_json:
        output.show_json({"user": user, "version": version})
    else:
        output.show_line(f"{user}@{version}: encoded anew")


def _record(head: Head) -> dict[str, object]:
    return {
        "user": head.memory_id.user,
        "version": head.version,
        "turns": head.turns,
        "pending_turns": head.pending_turns,
        "quarantined_turns": head.quarantined_turns,
        "created_at": head.created_at,
    }
