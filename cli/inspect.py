"""`memory inspect` and `memory why`: what a memory is made of, and what an answer rests on."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_cli import output
from memory_cli.adapters import show_strength
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json, User
from memory_cli.quarantine import quarantined_record, show_quarantined
from memory_service.bootstrap import state_fullness
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import SessionHead
from memory_service.services.inspect import Inspection
from memory_service.settings import read_settings

if TYPE_CHECKING:
    from memory_service.generator.strength import Strength
    from memory_service.services.why import Reasons, TurnWeight


def inspect(
    user: User,
    strongest: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Show the N turns with the largest shares in the adapter. The base model reads "
            "every chunk for that; 0 is quick.",
        ),
    ] = 5,
    as_json: Json = False,
) -> None:
    """Show what USER's memory is made of: sessions, bytes, fullness, strongest turns, fingerprint.

    Fullness is the share of the directions that a layer can tell apart and that is in use.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store, output.waiting("reading the memory"):
        found = store.run(store.it.inspect.memory(memory_id))
        fullness = None if found.state is None else state_fullness(settings, found.state)
    weights: list[TurnWeight] = []
    if strongest and found.state is not None:
        with opened_service(settings) as service, output.counting("reading", "chunks") as report:
            weights = service.run(service.it.why.strongest(memory_id, strongest, report))
    if as_json:
        output.show_json(_record(user, found, fullness, weights))
        return
    _show(user, found, fullness)
    if weights:
        output.show_line("")
        output.show_table(
            ["share ", *_TURN_COLUMNS],
            [(f"{weight.share:.1%}", *_turn(weight)) for weight in weights],
            title="strongest turns",
        )


def why(
    user: User,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="About the user.")],
    answer: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Account for this answer, not for the memory's own."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, metavar="N", help="Show at most N turns.")] = 5,
    as_json: Json = False,
) -> None:
    """Show which turns an answer of USER's memory rests on, by leaving them out one by one.

    A turn's weight is how much less likely the answer is without it, in nats a token: the chunk
    that the turn is in is taken out of the state and the rest of it is encoded anew.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:  # whether there is one, before the slow part
        store.run(store.it.inspect.adapter(memory_id))
    with opened_service(settings) as service:
        if answer is None:
            with output.waiting("answering"):
                reply = service.run(service.it.ask.question(memory_id, question))
            answer = reply.answer
        with output.counting("leaving out", "chunks and turns") as report:
            found = service.run(service.it.why.claim(memory_id, question, answer, report))
    if as_json:
        output.show_json({"user": user, **reasons_record(found, turns)})
        return
    output.show_line(found.claim.answer)
    gain = found.log_likelihood - found.without_memory
    output.note(f"{gain:+.2f} nats a token by the memory ({user}@{found.version})", style="dim")
    output.show_table(
        ["without it ", "its chunk ", "share ", *_TURN_COLUMNS],
        [
            (_nats(weight.loss), _nats(weight.chunk_loss), f"{weight.share:.1%}", *_turn(weight))
            for weight in found.turns[:turns]
        ],
    )


_TURN_COLUMNS = ("time (UTC)", "session", "role", "text")


def _turn(weight: "TurnWeight") -> tuple[object, ...]:
    turn = weight.turn
    return turn.time, turn.session, turn.role.value, turn.text


def _nats(loss: float | None) -> str | None:
    return None if loss is None else f"{-loss:+.2f}"


def _show(user: str, found: Inspection, fullness: "Strength | None") -> None:
    head, sizes = found.overview.head, found.overview.sizes
    output.show_fields(
        {
            "user": user,
            "adapter": f"{user}@{head.version}" if head.version else None,
            "turns": head.turns,
            "pending turns": head.pending_turns,
            "quarantined turns": head.quarantined_turns,
            "text": f"{sizes.text_chars:,} characters",
            "state": output.in_bytes(sizes.state_bytes),
            "kept adapters": output.in_bytes(sizes.adapters_bytes),
            "versions": head.version,
            "fingerprint": None if found.adapter is None else found.adapter.fingerprint.short,
            "since (UTC)": head.created_at,
        }
    )
    output.show_line("")
    output.show_table(
        ["session", "turns ", "first (UTC)", "last (UTC)", ""],
        [
            (one.name, one.turns, one.first_at, one.last_at, "pending" if one.is_pending else "")
            for one in found.sessions
        ],
    )
    if found.quarantined:
        output.show_line("")
        show_quarantined(found.quarantined)
    if fullness is not None:
        show_strength(fullness, "fullness", largest=100)
    elif found.state is not None:
        output.note("fullness: another generator made the state")


def _record(
    user: str,
    found: Inspection,
    fullness: "Strength | None",
    strongest: Sequence["TurnWeight"],
) -> dict[str, Any]:
    head, adapter = found.overview.head, found.adapter
    return {
        "user": user,
        "version": head.version,
        "turns": head.turns,
        "pending_turns": head.pending_turns,
        "quarantined_turns": head.quarantined_turns,
        "created_at": head.created_at,
        **asdict(found.overview.sizes),
        "fingerprint": None
        if adapter is None
        else {"digest": adapter.fingerprint.digest, **asdict(adapter.fingerprint)},
        "fullness": None if fullness is None else asdict(fullness),
        "by_session": [_session(one) for one in found.sessions],
        "quarantined": [quarantined_record(chunk) for chunk in found.quarantined],
        "strongest": [weight_record(weight) for weight in strongest],
    }


def _session(head: SessionHead) -> dict[str, Any]:
    return {
        "session": head.name,
        "turns": head.turns,
        "pending": head.is_pending,
        "first_at": head.first_at,
        "last_at": head.last_at,
    }


def reasons_record(found: "Reasons", turns: int) -> dict[str, Any]:
    """An answer and what it rests on, for programs."""
    return {
        "question": found.claim.question,
        "answer": found.claim.answer,
        "version": found.version,
        "log_likelihood": found.log_likelihood,
        "without_memory": found.without_memory,
        "turns": [weight_record(weight) for weight in found.turns[:turns]],
    }


def weight_record(weight: "TurnWeight") -> dict[str, Any]:
    """A turn and how much it carries, for programs."""
    turn = weight.turn
    return {
        "id": turn.id,
        "session": turn.session,
        "role": turn.role.value,
        "time": turn.time,
        "text": turn.text,
        "share": weight.share,
        "chunk_loss": weight.chunk_loss,
        "loss": weight.loss,
    }
