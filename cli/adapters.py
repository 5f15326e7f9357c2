"""`memory adapters`: list, show, diff, export."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory_cli import output
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json, User, VersionedUser
from memory_service.bootstrap import adapter_distance, adapter_strength
from memory_service.domain.memory import MemoryId, parse_versioned
from memory_service.domain.records import StoredAdapter
from memory_service.domain.turns import Turn
from memory_service.services.inspect import Recipe
from memory_service.settings import read_settings

if TYPE_CHECKING:
    from memory_service.generator.strength import Strength

FIRST_TURNS = 3

app = typer.Typer(
    help="See and export what chat applies.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_adapters(
    user: User,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N versions.")] = 20,
    as_json: Json = False,
) -> None:
    """List the versions of USER's adapter, newest first."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        adapters = store.run(store.it.inspect.adapters(memory_id, limit=limit))
    if as_json:
        output.show_json([_record(user, adapter) for adapter in adapters])
        return
    output.show_table(
        ["adapter", "turns ", "chunks ", "bytes ", "made by", "because of", "made at (UTC)"],
        [
            (
                f"{user}@{adapter.version}",
                adapter.turns,
                adapter.chunks,
                adapter.size_bytes,
                adapter.fingerprint.short,
                adapter.reason,
                adapter.created_at,
            )
            for adapter in adapters
        ],
    )


@app.command("show")
def show_adapter(
    name: VersionedUser,
    turns: Annotated[bool, typer.Option("--turns", help="Also show the turns' text.")] = False,
    as_json: Json = False,
) -> None:
    """Show an adapter: what made it, from which turns, and how strong it is in each layer."""
    settings = read_settings()
    user, version = parse_versioned(name)
    memory_id = MemoryId(user, settings.tenant)
    texts: dict[str, Turn] = {}
    with opened_store(settings) as store, output.waiting("reading the adapter"):
        recipe = store.run(store.it.inspect.adapter(memory_id, version))
        if turns:
            ids = [turn_id for chunk in recipe.chunks for turn_id in chunk.turn_ids]
            texts = store.run(store.it.inspect.turns_by_id(memory_id, ids))
        strength = adapter_strength(settings, recipe.adapter)
    if as_json:
        output.show_json(_full_record(user, recipe, strength, texts if turns else None))
        return
    _show_head(user, recipe.adapter)
    _show_chunks(recipe, texts)
    show_strength(strength)


@app.command("diff")
def diff_adapters(
    user: User,
    first: Annotated[int, typer.Argument(min=1, metavar="V1", help="A version.")],
    second: Annotated[int, typer.Argument(min=1, metavar="V2", help="Another version.")],
    as_json: Json = False,
) -> None:
    """Show what V2 of USER's adapter was made from and V1 was not, and how far they are apart."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store, output.waiting("reading the adapters"):
        found = store.run(store.it.inspect.difference(memory_id, first, second))
        changed = store.run(store.it.inspect.turns_by_id(memory_id, [*found.added, *found.removed]))
        distance = adapter_distance(settings, found.first, found.second)
    if as_json:
        output.show_json(
            {
                "user": user,
                "versions": [first, second],
                "added": found.added,
                "removed": found.removed,
                "distance": None if distance is None else asdict(distance),
            }
        )
        return
    for title, ids in (("added", found.added), ("removed", found.removed)):
        turns = sorted((changed[turn_id] for turn_id in ids), key=lambda turn: turn.order)
        output.show_table(
            ["time (UTC)", "session", "role", "text"],
            [(turn.time, turn.session, turn.role.value, turn.text) for turn in turns],
            title=f"{title}: {output.count(len(turns), 'turn')}",
        )
        output.show_line("")
    if distance is None:
        output.note("distance: both read-outs must be kept and of one generator")
    else:
        show_strength(distance, "distance")


@app.command("export")
def export_adapter(
    name: VersionedUser,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float32 or bfloat16.")] = "float32",
    as_json: Json = False,
) -> None:
    """Write the newest adapter as a LoRA that peft and vLLM load."""
    settings = read_settings()
    user, version = parse_versioned(name)
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        store.run(store.it.inspect.user(memory_id))  # whether there is one, before the slow part
    with opened_service(settings) as service, output.waiting("exporting"):
        exported = service.run(service.it.export.lora(memory_id, version, directory, dtype))
    if as_json:
        output.show_json(
            {
                "adapter": f"{user}@{exported.version}",
                "directory": exported.directory,
                "size_bytes": exported.size_bytes,
            }
        )
    else:
        output.show_line(
            f"{user}@{exported.version}: {output.in_bytes(exported.size_bytes)} in "
            f"{exported.directory}"
        )


def _show_head(user: str, adapter: StoredAdapter) -> None:
    fields: dict[str, object] = {
        "adapter": f"{user}@{adapter.version}",
        "made at (UTC)": adapter.created_at,
        "because of": adapter.reason,
        "turns": adapter.turns,
        "chunks": adapter.chunks,
        "bytes": adapter.size_bytes,
        "shape": _shape(adapter),
        "state": adapter.state_digest[:12] or "unknown: turns it held were forgotten since",
        "fingerprint": adapter.fingerprint.short,
    }
    parts = asdict(adapter.fingerprint)
    digests = ("generator", "base_model", "tokenizer")
    fields |= {
        f"  {part.replace('_', ' ')}": value[:12] if part in digests else value
        for part, value in parts.items()
    }
    output.show_fields(fields)


def _shape(adapter: StoredAdapter) -> str | None:
    if adapter.readouts is None:
        return None
    modules, keys, values = adapter.readouts.shape
    dtype = str(adapter.readouts.dtype).removeprefix("torch.")
    return f"{modules} modules, each {keys} x {values} {dtype} (a LoRA of rank at most {keys})"


def _show_chunks(recipe: Recipe, texts: dict[str, Turn]) -> None:
    output.show_line("")
    rows: list[tuple[object, ...]] = []
    for number, chunk in enumerate(recipe.chunks, start=1):
        rows.append((number, chunk.session, len(chunk.turn_ids), chunk.tokens or None))
    output.show_table(["chunk ", "session", "turns ", "tokens "], rows, title="made from")
    if not texts:
        return
    output.show_line("")
    output.show_table(
        ["chunk ", "time (UTC)", "role", "text"],
        [
            (number, turn.time, turn.role.value, turn.text)
            for number, chunk in enumerate(recipe.chunks, start=1)
            for turn in (texts.get(turn_id) for turn_id in chunk.turn_ids)
            if turn is not None
        ],
    )


def show_strength(
    strength: "Strength | None", title: str = "strength", largest: float | None = None
) -> None:
    """A bar for each module, as long as the largest, or as `largest`, fills the width."""
    output.show_line("")
    if strength is None:
        output.note("strength: its read-outs are no longer kept, only those of newer versions")
        return
    if largest is None:
        largest = max((module.value for module in strength.modules), default=0.0)
    output.show_table(
        ["layer ", "module", f"{strength.unit} ", ""],
        [
            (module.layer, module.module, f"{module.value:.2f}", output.bar(module.value, largest))
            for module in strength.modules
        ],
        title=title,
    )


def _record(user: str, adapter: StoredAdapter) -> dict[str, object]:
    return {
        "adapter": f"{user}@{adapter.version}",
        "user": user,
        "version": adapter.version,
        "created_at": adapter.created_at,
        "reason": adapter.reason,
        "turns": adapter.turns,
        "chunks": adapter.chunks,
        "size_bytes": adapter.size_bytes,
        "state_digest": adapter.state_digest or None,
        "fingerprint": {"digest": adapter.fingerprint.digest, **asdict(adapter.fingerprint)},
    }


def _full_record(
    user: str, recipe: Recipe, strength: "Strength | None", texts: dict[str, Turn] | None
) -> dict[str, object]:
    adapter = recipe.adapter
    made_from = []
    for chunk in recipe.chunks:
        record: dict[str, object] = {
            "session": chunk.session,
            "digest": chunk.digest or None,
            "turn_ids": list(chunk.turn_ids),
            "tokens": chunk.tokens or None,
        }
        if texts is not None:
            kept = [texts[turn_id] for turn_id in chunk.turn_ids if turn_id in texts]
            record["texts"] = [{"role": turn.role.value, "text": turn.text} for turn in kept]
        made_from.append(record)
    return _record(user, adapter) | {
        "shape": None if adapter.readouts is None else list(adapter.readouts.shape),
        "made_from": made_from,
        "strength": None if strength is None else asdict(strength),
    }
