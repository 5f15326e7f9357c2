"""Storing turns that came as lines, and telling what is stored, however it ended."""

from collections.abc import Iterator, Sequence

from memory_cli import output
from memory_cli.jsonl import Line
from memory_cli.opening import Opened
from memory_service.bootstrap import Store
from memory_service.domain.memory import MemoryId
from memory_service.errors import StateConflict
from memory_service.services.append import Stored


def storable(store: Opened[Store], memory_id: MemoryId, batch: Sequence[Line]) -> Iterator[Stored]:
    """Store a batch at once, or one by one up to the turn that is in conflict.

    Raises:
        StateConflict: names the line whose id is known with other content.
    """
    undated = {line.turn.id for line in batch if not line.is_dated}
    append = store.it.append
    try:
        yield store.run(append.turns(memory_id, [line.turn for line in batch], undated))
        return
    except StateConflict:
        pass
    for line in batch:
        try:
            yield store.run(append.turns(memory_id, [line.turn], undated & {line.turn.id}))
        except StateConflict as error:
            raise StateConflict(f"line {line.number}: {error.subject}", error.problem) from None


def told(stored: Stored) -> str:
    """How many turns were new, known and forgotten."""
    new = output.count(stored.new, "new turn")
    known = f", {stored.known:,} known before" if stored.known else ""
    return f"{new}{known}{f', {stored.forgotten:,} forgotten before' if stored.forgotten else ''}"


def told_pending(stored: Stored) -> str:
    """What is stored and not encoded yet."""
    if stored == Stored():
        return "nothing was stored"
    return f"{told(stored)} stored; what is not encoded yet will be with the next append"


def told_interrupted(memory_id: MemoryId, stored: Stored) -> str:
    """What is known to be stored; what was on its way may be stored as well."""
    if stored == Stored():
        return f"something may be stored already; `memory turns list {memory_id.user}` tells"
    return f"at least {told_pending(stored)}"
