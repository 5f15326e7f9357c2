"""`memory users export`, `import`, `merge` and `migrate`: memories on the move."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from memory_cli import output
from memory_cli.opening import Opened, opened_service, opened_store
from memory_cli.options import Json, User
from memory_service.bootstrap import Service, Store, generator_path
from memory_service.domain.memory import MemoryId
from memory_service.errors import MemoryServiceError
from memory_service.settings import Settings, read_settings

File = Annotated[Path, typer.Argument(metavar="FILE", help="The archive.")]
PAGE_USERS = 100


def export_user(user: User, file: File, as_json: Json = False) -> None:
    """Write USER's memory to a new FILE: turns, tombstones, newest state and adapter.

    A ZIP of JSON and safetensors that any program can read; `memory users import` makes the same
    memory of it, to the last bit. It holds all that USER said: keep it as you keep the database.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store, output.waiting("exporting"):
        size_bytes = store.run(store.it.export_memory.archive(memory_id, file))
    if as_json:
        output.show_json({"user": user, "file": file, "size_bytes": size_bytes})
    else:
        output.show_line(f"{file}: the memory of {user}, {output.in_bytes(size_bytes)}")


def import_user(
    file: File,
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Under which name; the exported one unless given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new user's memory of an archive that `memory users export` wrote.

    A file that is damaged, or not of this tenant, is refused whole. Where another generator made
    the state, the turns are imported and encoded anew.
    """
    settings = read_settings()
    with opened_store(settings) as store, output.waiting("reading"):
        archive = store.it.read_archive(file)
    memory_id = MemoryId(user or archive.memory_id.user, settings.tenant)
    with opened_service(settings) as service, output.counting("encoding", "chunks") as report:
        imported = service.run(service.it.import_memory.archive(archive, memory_id, report))
        running = service.it.encoder.fingerprint.short
    if as_json:
        output.show_json(
            {
                "user": memory_id.user,
                "version": imported.version,
                "turns": imported.turns,
                "state_digest": imported.state_digest,
                "encoded_anew": imported.is_reencoded,
            }
        )
        return
    name = f"{memory_id.user}@{imported.version}"
    output.show_line(f"{name}: {output.count(imported.turns, 'turn')} imported")
    if imported.is_reencoded:
        output.note(
            f"its state was made by {imported.made_by} and {running} is running: the turns were "
            "encoded anew"
        )


def merge_users(
    into: Annotated[str, typer.Argument(metavar="USER", help="Whose memory grows.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Whose memory is added.")],
    as_json: Json = False,
) -> None:
    """Merge OTHER's memory into USER's: the union of their turns. OTHER's stays as it is.

    What one of them forgot is forgotten in the merged memory too. A turn that differs between them
    ends the merge before anything is changed.
    """
    settings = read_settings()
    memory_id, other_id = MemoryId(into, settings.tenant), MemoryId(other, settings.tenant)
    with opened_store(settings) as store:  # whether there are both, before the slow part
        for one in (memory_id, other_id):
            store.run(store.it.inspect.user(one))
    with opened_service(settings) as service, output.counting("encoding", "chunks") as report:
        merged = service.run(service.it.merge.users(memory_id, other_id, report))
    if as_json:
        output.show_json({"user": into} | asdict(merged))
        return
    added = output.count(merged.new, "turn")
    output.show_line(f"{into}@{merged.version}: {added} of {other} added")
    output.show_fields(
        {
            "known to both": merged.known,
            f"forgotten by {into}, not added": merged.forgotten,
            f"forgotten by {other}, erased": merged.erased,
        }
    )


def migrate_users(
    user: Annotated[
        str | None, typer.Argument(metavar="[USER]", help="Whose memory; or --all.")
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="For which generator; the configured one unless given."),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="All users of the tenant.")] = False,
    as_json: Json = False,
) -> None:
    """Encode USER's kept turns for another generator, or for another base model.

    Until it is done the old version stays and serves. Who has a version by that generator already
    is passed over, so --all continues where it was interrupted.
    """
    if (user is None) != everybody:
        raise typer.BadParameter("give a USER or --all")
    settings = read_settings()
    if generator is not None:
        settings = settings.model_copy(update={"generator": generator})
        generator_path(settings)
    with opened_store(settings) as store:
        ids = _everybody(settings, store) if user is None else [MemoryId(user, settings.tenant)]
        if user is not None:
            store.run(store.it.inspect.user(ids[0]))
    with opened_service(settings) as service:
        records, failure = _migrate(service, ids, is_one=user is not None)
        fingerprint = service.it.encoder.fingerprint.short
    if as_json:
        output.show_json({"fingerprint": fingerprint, "users": records})
    else:
        done = sum(not record["was_done"] for record in records)
        before = len(records) - done
        passed = f", {output.count(before, 'user')} before" if before else ""
        output.show_line(f"{output.count(done, 'user')} encoded for {fingerprint}{passed}")
    if failure is not None:
        raise failure
    if generator is not None:
        output.note(f"set MEMORY_SERVICE_GENERATOR={generator} to use it", style="dim")


def _everybody(settings: Settings, store: Opened[Store]) -> list[MemoryId]:
    ids: list[MemoryId] = []
    while True:
        after = ids[-1].user if ids else ""
        page = store.run(store.it.inspect.users(settings.tenant, after=after, limit=PAGE_USERS))
        ids += [head.memory_id for head in page]
        if len(page) < PAGE_USERS:
            return ids


def _migrate(
    service: Opened[Service], ids: list[MemoryId], *, is_one: bool
) -> tuple[list[dict[str, object]], MemoryServiceError | None]:
    """Migrate one after the other; who cannot be is told, and keeps nobody else waiting."""
    records: list[dict[str, object]] = []
    failure: MemoryServiceError | None = None
    with ExitStack() as stack:
        unit = "chunks" if is_one else "users"
        report = stack.enter_context(output.counting("encoding", unit))
        for number, memory_id in enumerate(ids, start=1):
            work = service.it.migrate.user(memory_id, report if is_one else None)
            try:
                migrated = service.run(work)
            except MemoryServiceError as error:
                failure = error
                if not is_one:
                    output.warn(f"{memory_id.user}: {error}")
                continue
            records.append({"user": memory_id.user} | asdict(migrated))
            if not is_one:
                report(number, len(ids))
    return records, failure
