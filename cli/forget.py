"""`memory turns forget` and `edit`: what would go is shown; what went is told in a receipt."""

import uuid
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from memory_cli import output
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import EXIT_DECLINED, Json, User, Yes
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Receipt, Removal
from memory_service.domain.turns import Turn, parse_time
from memory_service.errors import ConfigurationError, NotFound
from memory_service.services.forget import Selection
from memory_service.settings import Settings, read_settings

SHOWN_TURNS = 20

HOW = {
    Removal.SUBTRACTED: "subtracted from the state, exact to the last bit",
    Removal.REBUILT: "the adapter was withdrawn and made anew from the kept turns",
    Removal.WITHDRAWN: "the adapter was withdrawn; the kept turns wait to be encoded",
}


def forget_turns(
    user: User,
    turn_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of turns.")
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only turns of this session.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only turns said then or later (ISO 8601).")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only turns said before then.")
    ] = None,
    matching: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="Only turns that `memory turns search` finds by them."),
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Forget turns of USER for good: by ids, session, time or words; all that is given must hold.

    Their text, what they did to the adapter and every earlier version of them go; the adapter that
    remains is that of a memory that never saw them. Prints a receipt.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    selection = Selection(
        turn_ids=frozenset(turn_ids or ()),
        session=session,
        since=None if since is None else parse_time(since),
        until=None if until is None else parse_time(until),
        matching=matching,
    )
    with opened_store(settings) as store:
        found = store.run(store.it.forget.find(memory_id, selection))
    if not found:
        raise NotFound("turn", user, "nothing that was kept is meant by this")
    if not yes:
        _ask(user, found)
    receipt = _forget(settings, memory_id, [turn.id for turn in found])
    if as_json:
        output.show_json({"user": user} | asdict(receipt))
    else:
        show_receipt(user, receipt)


def edit_turn(
    user: User,
    turn_id: Annotated[str, typer.Argument(metavar="ID", help="Which turn.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What it says instead.")],
    new_id: Annotated[
        str | None,
        typer.Option("--new-id", metavar="ID", help="The id of the new text. A new one if none."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Replace what a turn of USER says: the old text is forgotten, the new one remembered.

    Session, role and time stay. The new text has a new id; the old one stays forgotten.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    new_id = uuid.uuid4().hex if new_id is None else new_id
    with opened_store(settings) as store:  # whether there is one, before the slow part
        store.run(store.it.forget.find(memory_id, Selection(turn_ids=frozenset({turn_id}))))
    with opened_service(settings) as service, output.counting("encoding", "chunks") as report:
        work = service.it.edit.turn(memory_id, turn_id, text, new_id, report)
        receipt = service.run(work)
    if as_json:
        output.show_json({"user": user, "id": new_id} | asdict(receipt))
    else:
        output.show_line(f"{new_id}: edited")
        show_receipt(user, receipt)


def _ask(user: str, found: list[Turn]) -> None:
    if not output.can_ask():
        raise typer.BadParameter("nobody can be asked here: give --yes to forget")
    output.show_table(
        ["time (UTC)", "session", "role", "text"],
        [(turn.time, turn.session, turn.role.value, turn.text) for turn in found[:SHOWN_TURNS]],
    )
    if len(found) > SHOWN_TURNS:
        output.show_line(f"and {len(found) - SHOWN_TURNS:,} more")
    if not output.confirm(f"Forget {output.count(len(found), 'turn')} of {user} for good?"):
        output.note("nothing was forgotten")
        raise typer.Exit(EXIT_DECLINED)


def _forget(settings: Settings, memory_id: MemoryId, turn_ids: Collection[str]) -> Receipt:
    """Forget with the model; where there is none, without it, and the adapter with the turns."""
    with ExitStack() as stack:
        try:
            service = stack.enter_context(opened_service(settings))
        except (NotFound, ConfigurationError) as error:
            store = stack.enter_context(opened_store(settings))
            return store.run(store.it.forget.withdraw(memory_id, turn_ids, str(error)))
        report = stack.enter_context(output.counting("encoding", "chunks"))
        return service.run(service.it.forget_turns.turns(memory_id, turn_ids, report))


def show_receipt(user: str, receipt: Receipt) -> None:
    """Print what went, how, and which state remains."""
    erased = receipt.erased
    fields: dict[str, object] = {
        "turns forgotten": erased.turns,
        "sessions gone": erased.sessions,
        "versions rewritten": erased.rewritten_versions,
        "adapters deleted": erased.adapters,
        "how": HOW[receipt.removal],
    }
    if receipt.reason:
        fields["because"] = receipt.reason
    fields["adapter"] = f"{user}@{receipt.version}" if receipt.version else None
    fields["state"] = receipt.state_digest
    output.show_fields(fields)
    if receipt.removal is Removal.WITHDRAWN:
        output.note(f"`memory users rebuild {user}` makes an adapter of the kept turns")
