"""`memory quarantine`: chunks that cannot be encoded, and trying them again."""

from collections.abc import Sequence
from typing import Any

import typer

from memory_cli import output
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json, User
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import QuarantinedChunk
from memory_service.settings import read_settings

app = typer.Typer(
    help="Chunks that cannot be encoded: the rest of a memory goes on without them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_quarantined(user: User, as_json: Json = False) -> None:
    """List the chunks of USER's turns that cannot be encoded, and why."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        chunks = store.run(store.it.inspect.quarantined(memory_id))
    if as_json:
        output.show_json([quarantined_record(chunk) for chunk in chunks])
    else:
        show_quarantined(chunks)


@app.command("retry")
def retry_quarantined(user: User, as_json: Json = False) -> None:
    """Try again to encode what is quarantined of USER; what fails again stays there."""
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:
        store.run(store.it.inspect.user(memory_id))  # whether there is one, before the slow part
    with opened_service(settings) as service, output.counting("encoding", "chunks") as report:
        retried = service.run(service.it.remember.retry(memory_id, report))
    if as_json:
        output.show_json(
            {
                "user": user,
                "tried": retried.tried,
                "version": retried.version,
                "quarantined": [quarantined_record(chunk) for chunk in retried.quarantined],
            }
        )
        return
    left = len(retried.quarantined)
    output.show_line(
        f"{user}@{retried.version}: {output.count(retried.tried, 'chunk')} tried again, "
        f"{left:,} still quarantined"
    )
    if left:
        show_quarantined(retried.quarantined)


def show_quarantined(chunks: Sequence[QuarantinedChunk]) -> None:
    """A table of quarantined chunks."""
    output.show_table(
        ["session", "chunk", "turns ", "since (UTC)", "because"],
        [
            (chunk.session, chunk.digest[:12], len(chunk.turn_ids), chunk.since, chunk.reason)
            for chunk in chunks
        ],
    )


def quarantined_record(chunk: QuarantinedChunk) -> dict[str, Any]:
    """A quarantined chunk for programs."""
    return {
        "session": chunk.session,
        "chunk": chunk.digest,
        "turn_ids": list(chunk.turn_ids),
        "reason": chunk.reason,
        "since": chunk.since,
    }
