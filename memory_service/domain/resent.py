"""Which messages of a conversation are turns already.

Clients of a chat API send the whole conversation with every request, without ids. Sent messages are
laid beside the session's stored turns, in order; what finds no partner is new. Ids are made from
what comes before, so the same request twice, even at the same time, makes the same turns.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import SequenceMatcher

from memory_service.domain.messages import Message
from memory_service.domain.turns import Role, Turn, new_turn

STEP = timedelta(microseconds=1)
"""Distance in time of messages that come together: enough to keep their order."""


@dataclass(frozen=True)
class Laid:
    """A conversation's messages as turns; `new` are those that were not stored yet."""

    turns: Sequence[Turn]
    new: Sequence[Turn]


def lay_beside(
    stored: Sequence[Turn], messages: Sequence[Message], session: str, now: datetime
) -> Laid:
    """Match sent messages (no system ones) to the last stored turns of the session."""
    partners = _partners(stored, messages)
    turns: list[Turn] = []
    new: list[Turn] = []
    before = _before_first(stored, partners)
    for index, message in enumerate(messages):
        partner = partners[index]
        if partner is not None:
            turn = stored[partner]
        else:
            following = _next_known(stored, partners, index)
            time = now if following is None else following.time - len(messages) * STEP
            turn = next_turn(before, message.role, message.content, session, time)
            new.append(turn)
        turns.append(turn)
        before = turn
    return Laid(turns, new)


def next_turn(before: Turn | None, role: str, text: str, session: str, time: datetime) -> Turn:
    """The turn that follows another one: same predecessor, role and text, same id.

    Its time is the given one, or later where that of the one before demands it.
    """
    if before is not None:
        time = max(time, before.time + STEP)
    content = json.dumps([session, before.id if before is not None else "", role, text.strip()])
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return new_turn(text, role=role, session=session, time=time, turn_id=digest[:32])


def is_continued(stored: Sequence[Turn], messages: Sequence[Message]) -> bool:
    """Whether the messages go on with what the turns hold, or ask its only question again."""
    said = [message for message in messages if message.role == Role.ASSISTANT]
    if not said:
        asked = [turn for turn in stored if turn.role == Role.USER]
        return len(asked) == 1 and [_key_of(asked[0])] == [_key(one) for one in messages]
    last = max(n for n, message in enumerate(messages) if message.role == Role.ASSISTANT)
    if last == 0 or not stored:
        return False
    exchange = (_key(messages[last - 1]), _key(messages[last]))
    known = zip(map(_key_of, stored), map(_key_of, stored[1:]), strict=False)
    # A client that left in the middle of an answer knows a part of it that was never stored.
    return exchange in known or _key_of(stored[-1]) == exchange[0]


def _partners(stored: Sequence[Turn], messages: Sequence[Message]) -> list[int | None]:
    """For every message the stored turn that it is, or None."""
    partners: list[int | None] = [None] * len(messages)
    known, sent = [_key_of(turn) for turn in stored], [_key(message) for message in messages]
    for block in SequenceMatcher(None, sent, known, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            partners[block.a + offset] = block.b + offset
    if messages and not _is_asked_again(stored, partners):
        partners[-1] = None
    return partners


def _is_asked_again(stored: Sequence[Turn], partners: Sequence[int | None]) -> bool:
    """Whether the last message is the session's last question again, not the same words once more.

    It is where nobody answered yet, where the messages before it were sent again too, or where it
    is all that was ever asked.
    """
    last = partners[-1]
    if last is None:
        return True
    if any(turn.role == Role.USER for turn in stored[last + 1 :]):
        return False
    is_only_question = len(partners) == 1 and last == 0
    is_after_known = len(partners) > 1 and partners[-2] is not None
    return last == len(stored) - 1 or is_only_question or is_after_known


def _next_known(stored: Sequence[Turn], partners: Sequence[int | None], index: int) -> Turn | None:
    """The first stored turn among the messages that come later."""
    later = (partner for partner in partners[index + 1 :] if partner is not None)
    found = next(later, None)
    return None if found is None else stored[found]


def _before_first(stored: Sequence[Turn], partners: Sequence[int | None]) -> Turn | None:
    """The turn that the first message follows."""
    first = next((partner for partner in partners if partner is not None), None)
    if first is None:
        return stored[-1] if stored else None
    return stored[first - 1] if first > 0 else None


def _key(message: Message) -> tuple[str, str]:
    return (message.role, message.content.strip())


def _key_of(turn: Turn) -> tuple[str, str]:
    return (turn.role.value, turn.text.strip())
