"""Recorded dialogues with questions: the JSON Lines that examples and evaluations read.

One record is `{"id", "sessions": [[{"speaker": "A"|"B", "text"}, ...], ...], "session_dates"?,
"questions": [{"question", "answer", "asked_by"?, ...}]}`, the shape of Multi-Session Chat.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from memory_service.domain.turns import Role, Turn, parse_time
from memory_service.errors import InvalidInput

DEFAULT_ASKER = "B"
FIRST_SESSION = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""Start of the first session of a record without dates."""

BETWEEN_SESSIONS = timedelta(weeks=1)
BETWEEN_TURNS = timedelta(minutes=1)
NOON = time(12, tzinfo=UTC)
WEEKDAY = re.compile(r"\s*\([A-Za-z]+\)\s*")
DATE_FORMATS = ("%Y/%m/%d %H:%M", "%I:%M %p on %d %B, %Y")


@dataclass(frozen=True)
class DialogueQuestion:
    """A question that the user asks after the dialogue.

    `value` is the part of the answer that carries the fact, `evidence_session` the number of the
    session that states it, `evidence_turn` the id of the turn that does (in records its place in
    the session, from 0), `about` the speaker whose fact it is, `outdated` what was true before
    (`wrong_answer` in records), `kind` what sort of question it is (`category`), `speaker` who said
    the evidence, `asked_at` when it is asked (`question_date`); None where the record says nothing.
    An answer of None was never written: only a reader can judge what the model says.
    """

    text: str
    answer: str | None
    value: str | None
    evidence_session: int | None
    about: Role | None
    outdated: str | None = None
    kind: str | None = None
    speaker: Role | None = None
    asked_at: datetime | None = None
    evidence_turn: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """All sessions of two speakers, and what is asked about them."""

    id: str
    turns: tuple[Turn, ...]
    questions: tuple[DialogueQuestion, ...]


def dialogue_from_record(record: object) -> Dialogue:
    """Make a dialogue from one decoded JSON object; the speaker who asks becomes the user.

    Raises:
        InvalidInput: names the field that is missing or wrong.
    """
    return _dialogue(record, "")


def read_dialogues(lines: Iterable[str]) -> Iterator[Dialogue]:
    """Read JSON Lines, skipping empty ones.

    Raises:
        InvalidInput: names the line, and the field that is missing or wrong.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number}: "
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InvalidInput(f"{where}record", line.strip(), f"is not JSON: {error}") from None
        yield _dialogue(record, where)


def _dialogue(record: object, where: str) -> Dialogue:
    if not isinstance(record, Mapping):
        raise InvalidInput(f"{where}dialogue", record, "must be a JSON object")
    questions = _list(record.get("questions", []), f"{where}questions")
    roles = _roles(questions, where)
    return Dialogue(
        id=_text(record, "id", where),
        turns=tuple(_turns(record, roles, where)),
        questions=tuple(
            _question(question, roles, f"{where}questions[{index}].")
            for index, question in enumerate(questions)
        ),
    )


def _roles(questions: Sequence[object], where: str) -> dict[str, Role]:
    """Who is the user: the speaker who asks the questions."""
    askers = [
        question.get("asked_by") or DEFAULT_ASKER
        for question in questions
        if isinstance(question, Mapping)
    ]
    asker = askers[0] if askers else DEFAULT_ASKER
    if asker not in ("A", "B"):
        raise InvalidInput(f"{where}questions[0].asked_by", asker, "must be A or B")
    for index, other in enumerate(askers):
        if other != asker:
            field = f"{where}questions[{index}].asked_by"
            raise InvalidInput(field, other, "must be the same in all questions of a dialogue")
    user, assistant = ("A", "B") if asker == "A" else ("B", "A")
    return {user: Role.USER, assistant: Role.ASSISTANT}


def _turns(record: Mapping[str, object], roles: Mapping[str, Role], where: str) -> Iterator[Turn]:
    sessions = _list(record.get("sessions"), f"{where}sessions")
    starts = _session_starts(record.get("session_dates"), len(sessions), where)
    for session_index, (said, start) in enumerate(zip(sessions, starts, strict=True)):
        session_field = f"{where}sessions[{session_index}]"
        for index, turn in enumerate(_list(said, session_field)):
            field = f"{session_field}[{index}]."
            if not isinstance(turn, Mapping):
                raise InvalidInput(field[:-1], turn, "must be a JSON object")
            text = _text(turn, "text", field)
            role = _role(turn.get("speaker"), roles, f"{field}speaker")
            if not text.strip():
                continue
            try:
                yield Turn(
                    session=str(session_index + 1),
                    role=role,
                    text=text,
                    time=start + index * BETWEEN_TURNS,
                    id=_turn_id(session_index + 1, index),
                )
            except InvalidInput as error:
                raise InvalidInput(f"{field}{error.field}", text, error.problem) from None


def _turn_id(session: int, place: int) -> str:
    return f"s{session}t{place + 1:02d}"


def _session_starts(dates: object, sessions: int, where: str) -> list[datetime]:
    if dates is None:
        return [FIRST_SESSION + index * BETWEEN_SESSIONS for index in range(sessions)]
    field = f"{where}session_dates"
    given = _list(dates, field)
    if len(given) != sessions:
        raise InvalidInput(field, len(given), f"must have one date for each of {sessions} sessions")
    return [_start(value, f"{field}[{index}]") for index, value in enumerate(given)]


def _start(value: object, field: str) -> datetime:
    """Read a date (its noon, so that no time zone moves it to another day) or a date and time."""
    if not isinstance(value, str):
        raise InvalidInput(field, value, "must be a string")
    text = WEEKDAY.sub(" ", value).strip()
    try:
        return datetime.combine(date.fromisoformat(text), NOON)
    except ValueError:
        pass
    for known in DATE_FORMATS:
        try:
            return datetime.strptime(text, known).replace(tzinfo=UTC)
        except ValueError:
            continue
    try:
        return parse_time(text)
    except InvalidInput:
        problem = "must be a date like 2026-03-02 or 2023/04/10 (Mon) 14:47"
        raise InvalidInput(field, value, problem) from None


def _question(question: object, roles: Mapping[str, Role], where: str) -> DialogueQuestion:
    if not isinstance(question, Mapping):
        raise InvalidInput(where[:-1], question, "must be a JSON object")
    evidence = question.get("evidence")
    found = evidence if isinstance(evidence, Mapping) else {}
    session, place = (_optional_number(found, name, where) for name in ("session", "turn"))
    speaker = found.get("speaker")
    about, asked_at = question.get("about"), question.get("question_date")
    return DialogueQuestion(
        text=_text(question, "question", where),
        answer=_optional_text(question, "answer", where),
        value=_optional_text(question, "value", where),
        evidence_session=session,
        about=None if about is None else _role(about, roles, f"{where}about"),
        outdated=_optional_text(question, "wrong_answer", where),
        kind=_optional_text(question, "category", where),
        speaker=None if speaker is None else _role(speaker, roles, f"{where}evidence.speaker"),
        asked_at=None if asked_at is None else _start(asked_at, f"{where}question_date"),
        evidence_turn=None if session is None or place is None else _turn_id(session, place),
    )


def _optional_number(evidence: Mapping[str, object], key: str, where: str) -> int | None:
    value = evidence.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise InvalidInput(f"{where}evidence.{key}", value, "must be a whole number")
    return value


def _role(speaker: object, roles: Mapping[str, Role], field: str) -> Role:
    if not isinstance(speaker, str) or speaker not in roles:
        raise InvalidInput(field, speaker, "must be A or B")
    return roles[speaker]


def _list(value: object, field: str) -> list[object]:
    if not isinstance(value, list):
        raise InvalidInput(field, value, "must be a list")
    return value


def _text(record: Mapping[str, object], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        problem = "must be a string" if key in record else "is missing"
        raise InvalidInput(f"{where}{key}", value, problem)
    return value


def _optional_text(record: Mapping[str, object], key: str, where: str) -> str | None:
    return None if record.get(key) is None else _text(record, key, where)
