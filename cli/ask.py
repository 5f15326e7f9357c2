"""`memory ask`: the memory's answer to one question, and how sure it is."""

from dataclasses import asdict
from typing import Annotated

import typer

from memory_cli import output
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json, VersionedUser
from memory_service.domain.memory import MemoryId, parse_versioned
from memory_service.settings import read_settings


def ask(
    name: VersionedUser,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="About the user.")],
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="The longest answer, in tokens.")
    ] = 64,
    as_json: Json = False,
) -> None:
    """Answer one question from USER's memory, and tell how sure the answer is. Stores nothing.

    Confidence is the geometric mean of the answer's token probabilities. Beside it stands how much
    likelier the memory makes that answer: where it hardly does, anybody would get it.
    """
    settings = read_settings()
    user, version = parse_versioned(name)
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:  # whether there is one, before the slow part
        store.run(store.it.inspect.adapter(memory_id, version))
    with opened_service(settings) as service, output.waiting("answering"):
        asked = service.it.ask.question(memory_id, question, version, max_tokens)
        reply = service.run(asked)
    if as_json:
        output.show_json({"user": user, **asdict(reply), "confidence": reply.confidence})
        return
    output.show_line(reply.answer)
    if reply.log_likelihood is not None and reply.without_memory is not None:
        gain = reply.log_likelihood - reply.without_memory
        told = f"confidence {reply.confidence:.0%}; {gain:+.2f} nats a token by the memory"
        output.note(f"{told} ({user}@{reply.version})", style="dim")
