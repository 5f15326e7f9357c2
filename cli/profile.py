"""`memory profile`: what a memory says it knows about a person."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from memory_cli import output
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json, User
from memory_service.domain.memory import MemoryId
from memory_service.settings import read_settings

if TYPE_CHECKING:
    from memory_service.services.profile import ProfileLine


def profile(user: User, as_json: Json = False) -> None:
    """Show what USER's memory says it knows about the person, each line with the turn that says so.

    The adapter is asked some thirty questions; an answer is shown where a turn of the person names
    the topic and holds the answer. `memory why` tells more of one answer.
    """
    settings = read_settings()
    memory_id = MemoryId(user, settings.tenant)
    with opened_store(settings) as store:  # whether there is one, before the slow part
        store.run(store.it.inspect.adapter(memory_id))
    with opened_service(settings) as service, output.counting("asking", "questions") as report:
        lines = service.run(service.it.profile.of(memory_id, report=report))
    if as_json:
        output.show_json({"user": user, "lines": [profile_record(line) for line in lines]})
        return
    if not lines:
        output.show_line("nothing that a turn of the person could be shown for")
        return
    output.show_table(
        ["", "what it says", "sure ", "because of", "session"],
        [
            (line.topic, line.answer, f"{line.confidence:.0%}", line.turn.text, line.turn.session)
            for line in lines
        ],
    )


def profile_record(line: "ProfileLine") -> dict[str, Any]:
    """A line for programs."""
    turn = asdict(line.turn)
    return {
        "topic": line.topic,
        "question": line.question,
        "answer": line.answer,
        "confidence": line.confidence,
        "gain": line.gain,
        "turn": {name: turn[name] for name in ("id", "session", "role", "time", "text")},
    }
