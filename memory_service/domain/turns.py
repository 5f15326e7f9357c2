"""A turn: one message of a conversation, checked once, at its birth."""

import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from datetime import UTC, datetime
from enum import StrEnum

from memory_service.errors import InvalidInput

MAX_TURN_BYTES = 1_000_000
"""Longest turn text in UTF-8 bytes: a long book chapter, not a disk image."""

MAX_NAME_CHARS = 200
"""Longest tenant, user, session or turn name in characters."""


FIELDS = frozenset({"role", "text", "session", "time", "id", "expires_at"})
"""Of a turn as a JSON object."""


class Role(StrEnum):
    """Who said a turn."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Turn:
    """One message of a session; turns of a session are ordered by (time, id).

    From `expires_at` on it is forgotten; None leaves that to its tenant's rule. The date is no part
    of what was said: the same turn with another date is the same turn.

    Raises:
        InvalidInput: a field is empty, too long, or not storable text; or it expires before it is
            said.
    """

    session: str
    role: Role
    text: str
    time: datetime
    id: str
    expires_at: datetime | None = field_of(default=None, compare=False)

    def __post_init__(self) -> None:
        check_name("session", self.session)
        check_name("id", self.id)
        _check_text(self.text)
        if self.time.tzinfo is None:
            raise InvalidInput("time", self.time, "needs a time zone; append Z for UTC")
        if self.expires_at is not None and self.expires_at <= self.time:
            at = self.expires_at.isoformat()
            raise InvalidInput("expires_at", at, "must be after the turn's time")

    @property
    def order(self) -> tuple[datetime, str]:
        """The sort key that makes chunks a pure function of the kept turns."""
        return (self.time, self.id)


def new_turn(
    text: str,
    *,
    role: str = Role.USER,
    session: str = "default",
    time: datetime | str | None = None,
    turn_id: str | None = None,
    expires_at: datetime | str | None = None,
) -> Turn:
    """Make a turn from what a caller gave, filling in the time (now) and a fresh id.

    Raises:
        InvalidInput: names the field and the value.
    """
    return Turn(
        session=session,
        role=parse_role(role),
        text=text,
        time=parse_time(time) if time is not None else datetime.now(UTC),
        id=turn_id if turn_id is not None else uuid.uuid4().hex,
        expires_at=None if expires_at is None else parse_time(expires_at, field="expires_at"),
    )


def turn_from_record(record: object) -> Turn:
    """Make a turn from one decoded JSON line.

    Its fields are `text`, `role`, `session`, `time`, `id` and `expires_at`; only the text is
    required.

    Raises:
        InvalidInput: the record is no object, or a field has the wrong type, is unknown or bad.
    """
    if not isinstance(record, Mapping):
        raise InvalidInput("turn", record, "must be a JSON object with at least a text")
    unknown = sorted(set(record) - FIELDS)
    if unknown:
        raise InvalidInput(unknown[0], record[unknown[0]], "is not a field of a turn")
    if "text" not in record:
        raise InvalidInput("text", None, "is missing")
    for field, value in record.items():
        if not isinstance(value, str):
            raise InvalidInput(field, value, "must be a string")
    return new_turn(
        record["text"],
        role=record.get("role", Role.USER),
        session=record.get("session", "default"),
        time=record.get("time"),
        turn_id=record.get("id"),
        expires_at=record.get("expires_at"),
    )


def parse_role(value: str) -> Role:
    """Read a role's name.

    Raises:
        InvalidInput: it is not one of the roles.
    """
    try:
        return Role(value)
    except ValueError:
        known = ", ".join(Role)
        raise InvalidInput("role", value, f"must be one of: {known}") from None


def parse_time(value: datetime | str, *, field: str = "time") -> datetime:
    """Read an ISO 8601 time as UTC; a time without a zone is taken as UTC.

    Raises:
        InvalidInput: it is not an ISO 8601 time.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidInput(
                field, value, "must be ISO 8601, like 2026-03-01T18:30:00Z"
            ) from None
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    try:
        return aware.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(field, value.isoformat(), "is outside the years 1 to 9999") from None


def check_name(field: str, value: str) -> str:
    """Return a tenant, user, session or turn name that can be stored and shown.

    Raises:
        InvalidInput: it is empty, too long, padded with spaces, or holds control characters.
    """
    if not value or value != value.strip():
        raise InvalidInput(field, value, "must not be empty or begin or end with spaces")
    if len(value) > MAX_NAME_CHARS:
        raise InvalidInput(field, value, f"must have at most {MAX_NAME_CHARS} characters")
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in value):
        raise InvalidInput(field, value, "must not hold control characters or lone surrogates")
    return value


def _check_text(text: str) -> None:
    if not text.strip():
        raise InvalidInput("text", text, "must not be empty or only spaces")
    if "\x00" in text:
        raise InvalidInput("text", text, "must not hold NUL characters; remove them")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(
            "text", text[error.start : error.end], "is not valid Unicode (a lone surrogate)"
        ) from None
    if size > MAX_TURN_BYTES:
        raise InvalidInput(
            "text", text, f"has {size:,} bytes, more than {MAX_TURN_BYTES:,}; split it into turns"
        )
