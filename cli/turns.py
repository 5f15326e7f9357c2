"""`memory turns`: append, list and search; the others are in `forget.py`, `import_turns.py`."""

import sys
from typing import Annotated, cast

import typer

from memory_cli import interrupts, output
from memory_cli.expiry import expire_turns, keep_turns
from memory_cli.forget import edit_turn, forget_turns
from memory_cli.import_turns import import_turns
from memory_cli.jsonl import Source, read_turns
from memory_cli.opening import Opened, opened_service, opened_store
from memory_cli.options import Json, User
from memory_cli.storing import storable, told, told_interrupted, told_pending
from memory_service.bootstrap import Store
from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn, new_turn, parse_role
from memory_service.errors import InvalidInput, MemoryServiceError
from memory_service.services.append import Stored
from memory_service.services.inspect import KeptTurn
from memory_service.settings import Settings, read_settings

app = typer.Typer(
    help="Append turns to a memory, list and search them, and take them back.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


app.command("forget")(forget_turns)
app.command("edit")(edit_turn)
app.command("import")(import_turns)
app.command("keep")(keep_turns)
app.command("expire")(expire_turns)


@app.command("append")
def append_turns(
    user: User,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="One turn's text. Without it, turns are read from standard input, one JSON "
            'object a line: {"text", "role", "session", "time", "id", "expires_at"}; only text is '
            "required.",
        ),
    ] = None,
    role: Annotated[
        str, typer.Option(metavar="ROLE", help="Who said it: user or assistant.")
    ] = "user",
    session: Annotated[
        str, typer.Option(metavar="NAME", help="The sitting it belongs to.")
    ] = "default",
    time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it was said (ISO 8601); now unless given."),
    ] = None,
    turn_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="Its id: the same id again is the same turn. A new one if none.",
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it is to be forgotten (ISO 8601)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Append turns to USER's memory and encode them into the adapter.

    A turn is stored before anything is encoded. With JSON lines, the good lines before a bad one
    stay stored, and --role and --session stand in for what a line does not say.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    if text is not None:
        turn = new_turn(
            text, role=role, session=session, time=time, turn_id=turn_id, expires_at=expires
        )
        stored = _store_one(settings, memory_id, turn, is_dated=time is not None)
    else:
        if (time, turn_id, expires) != (None, None, None):
            raise typer.BadParameter("--time, --id, --expires go with one TEXT, not JSON lines")
        if sys.stdin is None or sys.stdin.isatty():
            raise typer.BadParameter("give a TEXT, or JSON lines on standard input")
        defaults = {"role": parse_role(role).value, "session": session}
        with opened_store(settings) as store:
            stored = _store_lines(store, memory_id, defaults)
    version = _encode(settings, memory_id, stored)
    if as_json:
        output.show_json(
            {
                "user": user,
                "version": version,
                "new": stored.new,
                "known": stored.known,
                "forgotten": stored.forgotten,
            }
        )
    else:
        output.show_line(f"{user}@{version}: {told(stored)}")


@app.command("list")
def list_turns(
    user: User,
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the turns of this session.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Only the newest N turns; all unless given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List USER's turns, oldest first.

    Pending ones are stored but not in the adapter yet, quarantined ones cannot be encoded
    (`memory quarantine`), and a rollback set the others aside.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        kept = store.run(store.it.inspect.turns(memory_id, session=session, limit=limit))
    if as_json:
        output.show_json([_record(one) for one in kept])
        return
    output.show_table(
        ["time (UTC)", "session", "role", "text", ""], [_row(one)[1:] for one in kept]
    )


@app.command("search")
def search_turns(
    user: User,
    words: Annotated[
        str,
        typer.Argument(
            metavar="WORDS",
            help="All must be in a turn; '\"golden retriever\"' is a phrase, bisc* a beginning.",
        ),
    ],
    before: Annotated[
        str | None, typer.Option(metavar="ID", help="Only turns older than this one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N turns.")] = 20,
    as_json: Json = False,
) -> None:
    """Search the text of USER's turns, newest first.

    Case does not matter, and words are not changed: "dogs" is found by "dogs" and by "dog*".
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        found = store.run(store.it.inspect.search(memory_id, words, before=before, limit=limit))
    if as_json:
        output.show_json([_record(one) for one in found])
    else:
        output.show_table(
            ["id", "time (UTC)", "session", "role", "text", ""], [_row(one) for one in found]
        )
    if len(found) == limit:
        output.note(f"there may be more: --before {found[-1].turn.id}", style="dim")


@app.command("show")
def show_turn(
    user: User,
    turn_id: Annotated[str, typer.Argument(metavar="ID", help="Which turn.")],
    as_json: Json = False,
) -> None:
    """Show one turn of USER."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        kept = store.run(store.it.inspect.turn(memory_id, turn_id))
    if as_json:
        output.show_json(_record(kept))
        return
    turn = kept.turn
    state = _where(kept) or "encoded"
    output.show_fields(
        {
            "id": turn.id,
            "session": turn.session,
            "time (UTC)": turn.time,
            "role": turn.role.value,
            "text": turn.text,
            "in the memory": state,
            "expires (UTC)": turn.expires_at,
        }
    )


@app.command("sessions")
def list_sessions(
    user: User,
    after: Annotated[str, typer.Option(metavar="NAME", help="Begin after this name.")] = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most N sessions.")] = 100,
    as_json: Json = False,
) -> None:
    """List USER's sessions by name."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        heads = store.run(store.it.inspect.sessions(memory_id, after=after, limit=limit))
    if as_json:
        output.show_json(
            [
                {
                    "session": head.name,
                    "turns": head.turns,
                    "pending": head.is_pending,
                    "first_at": head.first_at,
                    "last_at": head.last_at,
                }
                for head in heads
            ]
        )
        return
    output.show_table(
        ["session", "turns ", "first (UTC)", "last (UTC)", ""],
        [
            (
                head.name,
                head.turns,
                head.first_at,
                head.last_at,
                "pending" if head.is_pending else "",
            )
            for head in heads
        ],
    )
    if len(heads) == limit:
        output.note(f"there may be more: --after {heads[-1].name}", style="dim")


def _store_one(settings: Settings, memory_id: MemoryId, turn: Turn, *, is_dated: bool) -> Stored:
    with (
        interrupts.told(lambda: told_interrupted(memory_id, Stored())),
        opened_store(settings) as store,
    ):
        undated = set() if is_dated else {turn.id}
        return store.run(store.it.append.turns(memory_id, [turn], undated))


def _store_lines(store: Opened[Store], memory_id: MemoryId, defaults: dict[str, str]) -> Stored:
    """Store standard input batch by batch; tells what is stored when it ends early."""
    stored = Stored()
    try:
        with (
            interrupts.told(lambda: told_interrupted(memory_id, stored)),
            output.waiting("reading turns") as report,
        ):
            for batch in read_turns(cast(Source, sys.stdin.buffer), defaults):
                for part in storable(store, memory_id, batch):
                    stored += part
                report(f"stored {stored.new + stored.known + stored.forgotten:,} turns")
    except (MemoryServiceError, OSError):
        output.note(told_pending(stored))
        raise
    if stored == Stored():
        raise InvalidInput("standard input", "", "holds no turns")
    return stored


def _encode(settings: Settings, memory_id: MemoryId, stored: Stored) -> int:
    """Bring the adapter up to date; where that fails, say that the turns are safe."""
    try:
        with (
            interrupts.told(lambda: told_pending(stored)),
            opened_service(settings) as service,
            output.counting("encoding", "chunks") as report,
        ):
            return service.run(service.it.remember.encode_pending(memory_id, report))
    except MemoryServiceError:
        if not interrupts.received():
            output.note(told_pending(stored))
        raise


def _where(kept: KeptTurn) -> str:
    """What keeps a turn out of the state; empty where nothing does."""
    if kept.is_aside:
        return "set aside"
    return "pending" if kept.is_pending else "quarantined" if kept.is_quarantined else ""


def _row(kept: KeptTurn) -> tuple[object, ...]:
    turn = kept.turn
    state = _where(kept)
    return (turn.id, turn.time, turn.session, turn.role.value, turn.text, state)


def _record(kept: KeptTurn) -> dict[str, object]:
    turn = kept.turn
    return {
        "id": turn.id,
        "session": turn.session,
        "role": turn.role.value,
        "time": turn.time,
        "text": turn.text,
        "expires_at": turn.expires_at,
        "pending": kept.is_pending,
        "set_aside": kept.is_aside,
        "quarantined": kept.is_quarantined,
    }
