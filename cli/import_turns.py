"""`memory turns import`: whole histories from a file, again as often as it takes."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from memory_cli import interrupts, output
from memory_cli.jsonl import Line, Source, at_line, decoded, numbered_lines
from memory_cli.opening import opened_service, opened_store
from memory_cli.options import Json
from memory_cli.storing import storable, told
from memory_service.domain.dialogues import dialogue_from_record
from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import turn_from_record
from memory_service.errors import InvalidInput, MemoryServiceError
from memory_service.services.append import Stored
from memory_service.settings import Settings, read_settings

TURNS_AT_ONCE = 500
"""Most turns of one transaction."""


def import_turns(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines.")],
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Whose memory, where the lines do not name it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Import whole histories from FILE; run it again to continue where it was interrupted.

    A line is a turn {"text", "role", "session", "time", "id", "user"}, or a dialogue {"id",
    "sessions": [[{"speaker", "text"}]], ...} as of Multi-Session Chat, whose user has the
    dialogue's id. A turn without an id gets one made of what it says; without a time, that of the
    file's last change.
    """
    settings = read_settings()
    progress = _Progress()
    try:
        with interrupts.told(progress.told), file.open("rb") as stream:
            _store(settings, _Reader(stream, user), progress)
            versions = _encode(settings, progress)
    except (MemoryServiceError, OSError):
        if not interrupts.received():
            output.note(progress.told())
        raise
    stored = progress.stored
    if as_json:
        output.show_json(
            {
                "new": stored.new,
                "known": stored.known,
                "forgotten": stored.forgotten,
                "versions": versions,
            }
        )
    else:
        output.show_line(f"{output.count(len(versions), 'user')}: {told(stored)}")


class _Progress:
    """How far an import came: of whom and how many turns are stored."""

    def __init__(self) -> None:
        self.users: dict[str, Stored] = {}

    @property
    def stored(self) -> Stored:
        return sum(self.users.values(), Stored())

    def told(self) -> str:
        if not self.users:
            return "nothing is known to be stored; run it again to continue"
        return f"{told(self.stored)} stored; run it again to continue"


class _Reader:
    """Turns of a file with whose they are, batch by batch."""

    def __init__(self, stream: BinaryIO, user: str | None) -> None:
        status = os.fstat(stream.fileno())
        self.size_bytes = status.st_size
        self._stream = stream
        self._user = user
        self._changed = datetime.fromtimestamp(status.st_mtime, UTC)
        self._same: Counter[str] = Counter()

    def batches(self) -> Iterator[dict[str, list[Line]]]:
        """Yield the turns that were read together, by user; the good ones before a bad line too.

        Raises:
            InvalidInput: names the line, the field and the value.
        """
        for lines in numbered_lines(cast(Source, self._stream)):
            batch: dict[str, list[Line]] = defaultdict(list)
            for number, line in lines:
                if not line.strip():
                    continue
                try:
                    for user, turn in self._turns(number, decoded(line)):
                        batch[MemoryId(user).user].append(turn)
                except InvalidInput as error:
                    yield batch
                    raise at_line(number, error) from None
            yield batch

    def read_bytes(self) -> int:
        """How much of the file was read."""
        return self._stream.tell()

    def _turns(self, number: int, record: object) -> Iterator[tuple[str, Line]]:
        if isinstance(record, Mapping) and "sessions" in record:
            dialogue = dialogue_from_record(record)
            user = self._user or dialogue.id
            yield from ((user, Line(number, turn, is_dated=True)) for turn in dialogue.turns)
        elif isinstance(record, Mapping):
            yield self._turn(number, record)
        else:
            turn_from_record(record)  # which refuses it

    def _turn(self, number: int, record: Mapping[str, object]) -> tuple[str, Line]:
        user = record.get("user", self._user)
        if not isinstance(user, str):
            problem = "is missing; name it in the line, or give --user"
            raise InvalidInput("user", user, problem if user is None else "must be a string")
        if self._user is not None and user != self._user:
            raise InvalidInput("user", user, f"is not {self._user}, whom --user names")
        said = {name: value for name, value in record.items() if name != "user"}
        time = self._changed + timedelta(microseconds=number)
        filled = {"time": time.isoformat(), "id": self._id(user, said), **said}
        return user, Line(number, turn_from_record(filled), is_dated="time" in said)

    def _id(self, user: str, said: Mapping[str, object]) -> str:
        """The same for the same line of the same file: the nth turn that says this."""
        if "id" in said:
            return ""
        content = hashlib.sha256(json.dumps([user, said], sort_keys=True).encode()).hexdigest()[:24]
        self._same[content] += 1
        return f"import-{content}-{self._same[content]}"


def _store(settings: Settings, reader: _Reader, progress: _Progress) -> None:
    """Store a file's turns in bounded transactions, each of one user."""
    with opened_store(settings) as store, output.counting("storing", "kB") as report:
        for batch in reader.batches():
            for user, lines in batch.items():
                memory_id = MemoryId(user, settings.tenant)
                progress.users.setdefault(user, Stored())
                rest = iter(lines)
                while piece := list(islice(rest, TURNS_AT_ONCE)):
                    for stored in storable(store, memory_id, piece):
                        progress.users[user] += stored
            report(reader.read_bytes() // 1000, max(1, reader.size_bytes // 1000))
    if not progress.users:
        raise InvalidInput("file", "", "holds no turns")


def _encode(settings: Settings, progress: _Progress) -> dict[str, int]:
    """Encode what is pending of everybody in the file; the version of each."""
    versions = {}
    with opened_service(settings) as service, output.counting("encoding", "turns") as report:
        ids = [MemoryId(user, settings.tenant) for user in progress.users]
        pending = {
            one: service.run(service.it.store.inspect.user(one)).head.pending_turns for one in ids
        }
        total, done = sum(pending.values()), 0
        for memory_id, turns in pending.items():
            share = _share_of(report, done, turns, total)
            versions[memory_id.user] = service.run(
                service.it.remember.encode_pending(memory_id, share)
            )
            done += turns
    return versions


def _share_of(
    report: Callable[[int, int], None], before: int, turns: int, total: int
) -> Callable[[int, int], None]:
    """One user's chunks, as a part of everybody's turns."""
    return lambda done, chunks: report(before + turns * done // max(1, chunks), total)
