"""Exchange: one request of a chat API -> an answer with the memory, and both sides as turns.

messages -> (resent ones matched to stored turns) -> window -> answer -> turns -> encode queue
"""

import re
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.domain.records import Receipt, Removal
from memory_service.domain.resent import Laid, is_continued, lay_beside, next_turn
from memory_service.domain.turns import Role, Turn, check_name, new_turn
from memory_service.errors import InvalidInput, NotFound, StateConflict
from memory_service.services.append import Append
from memory_service.services.chat import Chat
from memory_service.services.encode_queue import EncodeQueue
from memory_service.services.ports import OpenUnit

LAST_TURNS = 200
"""Stored turns beside which sent messages are laid."""

SETTLE_S = 5.0
"""How long a request in a new session waits for what was said in the last one."""


class Mode(StrEnum):
    """What a request does with the memory."""

    READ_WRITE = "read_write"
    """Answer with it, and store both sides."""
    READ = "read"
    """Answer with it, store nothing."""
    OFF = "off"
    """Incognito: nothing read, nothing stored."""


@dataclass(frozen=True)
class Asked:
    """A request: what to answer, for whom and how."""

    messages: Sequence[Message]
    sampling: Sampling
    memory_id: MemoryId | None = None
    mode: Mode = Mode.READ_WRITE
    version: int | None = None
    session: str | None = None
    window_tokens: int | None = None
    """Prompt tokens for the last messages; None: as many as the service gives everybody."""


@dataclass(frozen=True)
class Begun:
    """An answer in the making. `pieces` ends with the `Generation`.

    `saved_tokens` is what the remembered history would have taken in the prompt beyond what is in
    it.
    """

    pieces: AsyncGenerator[str | Generation, None]
    mode: Mode
    version: int | None = None
    session: str | None = None
    cut_messages: int = 0
    saved_tokens: int = 0


@dataclass(frozen=True)
class _Talk:
    """The conversation of a request, as turns and as a prompt."""

    session: str
    laid: Laid
    conversation: Sequence[Message]
    is_new: bool


class Exchange:
    """Answers requests; where they may write, both sides are durable before the answer's end."""

    def __init__(  # one parameter per part that it joins
        self,
        open_unit: OpenUnit,
        append: Append,
        chat: Chat,
        queue: EncodeQueue,
        window_tokens: int,
        auxiliary: re.Pattern[str],
    ) -> None:
        self._open_unit = open_unit
        self._append = append
        self._chat = chat
        self._queue = queue
        self._window_tokens = window_tokens
        self._auxiliary = auxiliary
        self._forgotten: dict[MemoryId, int] = defaultdict(int)

    @asynccontextmanager
    async def begin(self, asked: Asked) -> AsyncIterator[Begun]:
        """Answer a request; leaving the block early ends the answer.

        Raises:
            InvalidInput: the messages cannot be answered or stored.
            NotFound: the version does not exist or is no longer kept.
            IncompatibleState: the memory was made by another generator or base model.
            BackendError: the database or the backend cannot do it now.
        """
        _check(asked.messages)
        mode, memory_id = self._mode(asked), asked.memory_id
        if memory_id is None or mode is Mode.OFF:
            async with self._answering(asked, None, asked.messages) as begun:
                yield begun
            return
        talk = await self._talk(memory_id, asked)
        await self._settle(memory_id, talk)
        version = asked.version or await self._newest(memory_id)
        uses = memory_id if version else None
        async with self._answering(asked, uses, talk.conversation, version) as begun:
            if mode is Mode.READ:
                yield begun
                return
            try:
                yield Begun(
                    pieces=self._storing(memory_id, talk, begun.pieces),
                    mode=mode,
                    version=begun.version,
                    session=talk.session,
                    cut_messages=begun.cut_messages,
                    saved_tokens=begun.saved_tokens,
                )
            finally:
                await self._queue.add(memory_id)

    def forgotten(self, memory_id: MemoryId) -> None:
        """A memory was deleted: no further token of it, and nothing comes back."""
        self._forgotten[memory_id] += 1
        self._chat.withdraw(memory_id)

    async def taken_back(self, memory_id: MemoryId, receipt: Receipt) -> None:
        """Turns were forgotten: no further token of them; what was not made anew yet will be."""
        self.forgotten(memory_id)
        if receipt.removal is Removal.WITHDRAWN:
            await self._queue.add(memory_id)

    @asynccontextmanager
    async def _answering(
        self,
        asked: Asked,
        memory_id: MemoryId | None,
        conversation: Sequence[Message],
        version: int | None = None,
    ) -> AsyncIterator[Begun]:
        budget = asked.window_tokens or self._window_tokens
        window = self._chat.window(conversation, budget)
        async with self._chat.answering(
            memory_id, window.messages, asked.sampling, version
        ) as answering:
            saved = 0
            if memory_id is not None and answering.version is not None:
                async with self._open_unit() as unit:
                    whole = await unit.memories.recipe_tokens(memory_id, answering.version)
                said = [message for message in window.messages if message.role != "system"]
                saved = max(0, whole - self._chat.prompt_tokens(said))
            yield Begun(
                pieces=answering.pieces,
                mode=self._mode(asked),
                version=answering.version,
                session=asked.session,
                cut_messages=window.cut,
                saved_tokens=saved,
            )

    async def _storing(
        self, memory_id: MemoryId, talk: _Talk, pieces: AsyncGenerator[str | Generation, None]
    ) -> AsyncGenerator[str | Generation, None]:
        """Store what was asked once the backend has taken it, and the answer before its end."""
        epoch = self._forgotten[memory_id]
        is_stored = False
        async for piece in pieces:
            if self._forgotten[memory_id] != epoch:
                raise StateConflict(
                    f"memory of user {memory_id.user}", "was forgotten while it answered"
                )
            if not is_stored:
                await self._store(memory_id, talk.laid.new)
                is_stored = True
            if isinstance(piece, Generation):
                answer = piece.text.replace("\x00", "").strip()
                if answer:
                    now = datetime.now(UTC)
                    asked = talk.laid.turns[-1]
                    said = next_turn(asked, Role.ASSISTANT, answer, talk.session, now)
                    await self._store(memory_id, [said])
            yield piece

    async def _store(self, memory_id: MemoryId, turns: Sequence[Turn]) -> None:
        await self._append.turns(memory_id, turns, undated={turn.id for turn in turns})

    def _mode(self, asked: Asked) -> Mode:
        """What was asked for; requests that a front end makes for itself are none of a person's."""
        is_auxiliary = self._auxiliary.search(asked.messages[-1].content) is not None
        return Mode.OFF if is_auxiliary else asked.mode

    async def _talk(self, memory_id: MemoryId, asked: Asked) -> _Talk:
        said = [message for message in asked.messages if message.role != "system"]
        for message in said:  # refuses what cannot be stored before anything is generated
            new_turn(message.content, role=message.role)
        session, stored = await self._session(memory_id, asked.session, said)
        laid = lay_beside(stored, said, session, datetime.now(UTC))
        conversation = list(asked.messages)
        if asked.session is not None:  # who names a session may send its last words only
            known = {turn.id: index for index, turn in enumerate(stored)}
            first = next((known[turn.id] for turn in laid.turns if turn.id in known), len(stored))
            system = [message for message in asked.messages if message.role == "system"]
            earlier = [Message(turn.role.value, turn.text) for turn in stored[:first]]
            conversation = [*system, *earlier, *said]
        return _Talk(session, laid, conversation, is_new=not stored)

    async def _session(
        self, memory_id: MemoryId, name: str | None, said: Sequence[Message]
    ) -> tuple[str, list[Turn]]:
        """The session that the messages belong to, and its last turns.

        Where none is named it is recognised by what was said in it last, or a new one.
        """
        if name is not None:
            check_name("session", name)
            return name, await self._latest(memory_id, name)
        latest = await self._latest(memory_id, None)
        for session in dict.fromkeys(turn.session for turn in reversed(latest)):
            turns = [turn for turn in latest if turn.session == session]
            if is_continued(turns, said):
                return session, turns
        return f"chat {datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}", []

    async def _latest(self, memory_id: MemoryId, session: str | None) -> list[Turn]:
        async with self._open_unit() as unit:
            try:
                return await unit.memories.latest_turns(
                    memory_id, session=session, limit=LAST_TURNS
                )
            except NotFound:
                return []

    async def _settle(self, memory_id: MemoryId, talk: _Talk) -> None:
        """In a new session, wait for the last one to be encoded: the window does not show it."""
        if talk.is_new:
            await self._queue.settled(memory_id, SETTLE_S)

    async def _newest(self, memory_id: MemoryId) -> int:
        async with self._open_unit() as unit:
            try:
                return (await unit.memories.head(memory_id)).version
            except NotFound:
                return 0


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidInput("messages", messages, "must not be empty")
    if messages[-1].role != Role.USER:
        raise InvalidInput("messages", messages[-1].role, "must end with a message of the user")
