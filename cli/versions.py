"""`memory history` and `memory rollback`: earlier versions of a memory."""

from dataclasses import asdict
from typing import Annotated

import typer

from memory_cli import output
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json, User
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Removal
from memory_service.domain.turns import parse_time
from memory_service.services.inspect import HistoryEntry
from memory_service.settings import read_settings


def history(
    user: User,
    before: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only versions before this one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N versions.")] = 20,
    as_json: Json = False,
) -> None:
    """Show how USER's memory changed, newest version first."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        entries = store.run(store.it.inspect.history(memory_id, before=before, limit=limit))
    if as_json:
        output.show_json([_record(user, entry) for entry in entries])
        return
    output.show_table(
        ["version", "because of", "made at (UTC)", "turns ", "added ", "removed ", "state"],
        [
            (
                f"{user}@{entry.adapter.version}",
                entry.adapter.reason,
                entry.adapter.created_at,
                entry.adapter.turns,
                entry.added,
                entry.removed,
                entry.adapter.state_digest[:12] or "rewritten: turns were forgotten",
            )
            for entry in entries
        ],
    )
    if len(entries) == limit and entries[-1].adapter.version > 1:
        output.note(f"there is more: --before {entries[-1].adapter.version}", style="dim")


def rollback(
    user: User,
    version: Annotated[
        int | None, typer.Argument(min=1, metavar="[VERSION]", help="To which version.")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Or: to what was said until then (ISO 8601)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make USER's memory hold the turns of an earlier version, or what was said until a time.

    It is a new version. The other turns are kept but set aside; rolling back to a version that
    holds them brings them back. What was forgotten does not come back.
    """
    if (version is None) == (as_of is None):
        raise typer.BadParameter("give a VERSION or --as-of TIME")
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    time = None if as_of is None else parse_time(as_of)
    with opened_store(settings) as store:  # whether there is one, before the slow part
        if version is None:
            store.run(store.it.inspect.user(memory_id))
        else:
            store.run(store.it.inspect.adapter(memory_id, version))
    with opened_service(settings) as service, output.counting("encoding", "chunks") as report:
        roll = service.it.rollback
        if time is not None:
            receipt = service.run(roll.as_of(memory_id, time, report))
        elif version is not None:
            receipt = service.run(roll.version(memory_id, version, report))
    if as_json:
        output.show_json(
            {
                "user": user,
                "version": receipt.version,
                "state_digest": receipt.state_digest,
                "removal": receipt.removal,
                "reason": receipt.reason,
            }
        )
    elif receipt.removal is Removal.WITHDRAWN:
        output.show_line(f"{user}: rolled back; its turns wait to be encoded")
        output.note(f"because {receipt.reason}")
    else:
        target = f"until {as_of}" if version is None else f"of {user}@{version}"
        output.show_line(f"{user}@{receipt.version}: holds the turns {target}")


def _record(user: str, entry: HistoryEntry) -> dict[str, object]:
    adapter = entry.adapter
    return {
        "adapter": f"{user}@{adapter.version}",
        "version": adapter.version,
        "reason": adapter.reason,
        "created_at": adapter.created_at,
        "turns": adapter.turns,
        "added": entry.added,
        "removed": entry.removed,
        "state_digest": adapter.state_digest or None,
        "fingerprint": {"digest": adapter.fingerprint.digest, **asdict(adapter.fingerprint)},
    }
