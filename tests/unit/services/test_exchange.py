"""Requests of a chat API: what is answered with, and what becomes of both sides."""

import asyncio
import re
from contextlib import aclosing

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.errors import InvalidInput, NotFound, StateConflict
from memory_service.services.append import Append
from memory_service.services.chat import Chat
from memory_service.services.compute import Compute
from memory_service.services.encode_queue import EncodeQueue
from memory_service.services.exchange import Asked, Begun, Exchange, Mode
from memory_service.services.forget import Forget
from memory_service.services.recall import Recall
from memory_service.services.remember import Remember
from tests.helpers.fakes import FakeBackend, FakeEncoder, FakeStore
from tests.helpers.histories import turn

ANN, BOB = MemoryId("ann"), MemoryId("bob")
ANSWER = "Your dog is called Rex."


def messages(*texts: str) -> list[Message]:
    return [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


class Setup:
    def __init__(self) -> None:
        self.store, self.encoder, self.backend = FakeStore(), FakeEncoder(), FakeBackend(ANSWER)
        self.compute = Compute()
        self.remember = Remember(self.store, self.encoder, self.compute)
        self.queue = EncodeQueue(self.store, self.remember)
        self.exchange = Exchange(
            self.store,
            Append(self.store),
            Chat(Recall(self.store, self.encoder), self.backend),
            self.queue,
            window_tokens=12,
            auxiliary=re.compile("^### Task"),
        )

    async def ask(self, *texts: str, memory_id: MemoryId | None = ANN, **options) -> Begun:
        asked = Asked(messages(*texts), Sampling(), memory_id, **options)
        async with self.exchange.begin(asked) as begun:
            async for piece in begun.pieces:
                if isinstance(piece, Generation):
                    self.stored_before_the_end = self.texts(memory_id)
        return begun

    def texts(self, memory_id: MemoryId | None = ANN) -> list[str]:
        user = self.store.users.get(memory_id)
        turns = sorted(user.turns.values(), key=lambda one: one.order) if user else []
        return [one.text for one in turns]

    @property
    def prompt(self) -> list[str]:
        return [message.content for message in self.backend.asked[-1][0]]

    @property
    def version(self) -> int | None:
        applied = self.backend.asked[-1][1]
        return None if applied is None else applied.version


@pytest.fixture
async def setup():
    made = Setup()
    await made.queue.start()
    yield made
    await made.queue.stop()
    made.compute.close()


async def test_both_sides_are_durable_before_the_answer_ends(setup):
    begun = await setup.ask("What is my dog called?")
    assert setup.stored_before_the_end == ["What is my dog called?", ANSWER]
    assert begun.session is not None


async def test_the_first_request_of_a_user_has_no_adapter_and_the_next_one_has(setup):
    begun = await setup.ask("Hi")
    assert (begun.version, setup.version) == (None, None)
    assert await setup.queue.settled(ANN, 5)
    begun = await setup.ask("Hi", ANSWER, "And my cat?")
    assert (begun.version, setup.version) == (1, 1)


async def test_a_conversation_sent_whole_is_stored_once(setup):
    await setup.ask("Hi")
    await setup.ask("Hi", ANSWER, "And?")
    await setup.ask("Hi", ANSWER, "And?", ANSWER, "Well?")
    assert setup.texts() == ["Hi", ANSWER, "And?", ANSWER, "Well?", ANSWER]
    assert len({one.session for one in setup.store.users[ANN].turns.values()}) == 1


async def test_another_conversation_is_another_session(setup):
    first = await setup.ask("Hi")
    second = await setup.ask("Good morning")
    assert first.session != second.session


async def test_a_new_session_waits_for_what_was_said_in_the_last_one(setup):
    await setup.ask("My dog is called Rex.", session="monday")
    begun = await setup.ask("What is my dog called?", session="tuesday")
    assert begun.version == 1


async def test_a_named_session_remembers_what_the_client_does_not_send(setup):
    await setup.ask("one two", session="monday")
    await setup.ask("three", session="monday")
    assert setup.prompt == ["one two", ANSWER, "three"]
    await setup.ask("four", session="tuesday")
    assert setup.prompt == ["four"]


async def test_the_window_cuts_and_says_so(setup):
    begun = await setup.ask("one two three four five six", "six seven", "eight nine ten", "a", "b")
    assert setup.prompt == ["eight nine ten", "a", "b"]
    assert begun.cut_messages == 2
    assert setup.texts()[0] == "one two three four five six"


async def test_the_prompt_tokens_that_were_saved_are_told(setup):
    await setup.remember.append(ANN, [turn(number) for number in range(8)])
    begun = await setup.ask("Hi there")
    whole = sum(chunk.tokens for chunk in setup.store.users[ANN].chunks)
    assert begun.saved_tokens >= whole - 60  # the open chunk may have grown since
    assert (await setup.ask("Hi", memory_id=BOB)).saved_tokens == 0


@pytest.mark.parametrize("mode", [Mode.READ, Mode.OFF])
async def test_modes_that_store_nothing(setup, mode):
    await setup.remember.append(ANN, [turn(0)])
    before = setup.texts()
    begun = await setup.ask("Hi", mode=mode)
    assert setup.texts() == before
    assert begun.version == (1 if mode is Mode.READ else None)
    assert setup.version == begun.version


async def test_off_keeps_nothing_of_a_new_user(setup):
    await setup.ask("Hi", mode=Mode.OFF)
    assert ANN not in setup.store.users


async def test_no_user_no_memory(setup):
    begun = await setup.ask("Hi", memory_id=None)
    assert (begun.version, begun.session) == (None, None)
    assert setup.store.users == {}


async def test_requests_of_the_front_end_itself_are_off(setup):
    await setup.remember.append(ANN, [turn(0)])
    begun = await setup.ask("### Task: give this chat a title")
    assert begun.mode is Mode.OFF
    assert setup.version is None
    assert len(setup.texts()) == 1


async def test_an_older_version(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.remember.append(ANN, [turn(1)])
    assert (await setup.ask("Hi", version=1)).version == 1
    with pytest.raises(NotFound):
        await setup.ask("Hi", memory_id=BOB, version=3)
    assert BOB not in setup.store.users


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ([], "must not be empty"),
        ([Message("user", "Hi"), Message("assistant", "Hello")], "must end with a message of"),
        ([Message("user", "  ")], "text"),
        ([Message("user", "a\x00b")], "NUL"),
    ],
)
async def test_what_cannot_be_answered_is_refused_before_anything(setup, said, problem):
    with pytest.raises(InvalidInput, match=problem):
        async with setup.exchange.begin(Asked(said, Sampling(), ANN)):
            pass
    assert setup.backend.asked == []
    assert setup.store.users == {}


async def test_what_the_backend_refuses_is_not_stored(setup, monkeypatch):
    async def refuse(*_):
        raise InvalidInput("messages", "9000 tokens", "do not fit")
        yield

    monkeypatch.setattr(setup.backend, "stream", refuse)
    with pytest.raises(InvalidInput):
        await setup.ask("Hi")
    assert setup.store.users == {}


async def test_a_client_that_leaves_keeps_what_it_asked(setup):
    asked = Asked(messages("Hi"), Sampling(), ANN)
    async with setup.exchange.begin(asked) as begun, aclosing(begun.pieces) as pieces:
        await anext(pieces)
    assert setup.texts() == ["Hi"]
    assert setup.backend.closed == 1
    await setup.ask("Hi", "Your", "Go on")  # as the client saw it
    assert setup.texts() == ["Hi", "Your", "Go on", ANSWER]


async def test_a_forgotten_memory_says_nothing_more_and_does_not_come_back(setup):
    await setup.remember.append(ANN, [turn(0)])
    asked = Asked(messages("Hi"), Sampling(), ANN)
    async with setup.exchange.begin(asked) as begun, aclosing(begun.pieces) as pieces:
        await anext(pieces)
        await Forget(setup.store).user(ANN)
        setup.exchange.forgotten(ANN)
        with pytest.raises(StateConflict, match="forgotten"):
            await anext(pieces)
    assert setup.backend.withdrawn == [ANN]
    await asyncio.sleep(0.05)
    assert ANN not in setup.store.users


async def test_what_an_earlier_process_left_is_encoded(setup):
    await Append(setup.store).turns(BOB, [turn(0)])
    queue = EncodeQueue(setup.store, setup.remember)
    await queue.start()
    assert queue.depth == 1
    assert await queue.settled(BOB, 5)
    assert setup.store.users[BOB].version == 1
    await queue.stop()


async def test_one_users_failure_does_not_end_the_queue(setup):
    def fail(chunk):
        if "bad" in chunk.text:
            raise RuntimeError("out of memory")

    setup.encoder.interrupt = fail
    await Append(setup.store).turns(ANN, [turn(0, "bad")])
    await Append(setup.store).turns(BOB, [turn(1, "good")])
    await setup.queue.add(ANN)
    await setup.queue.add(BOB)
    assert await setup.queue.settled(BOB, 5)
    assert setup.store.users[BOB].version == 1


async def test_settling_does_not_take_for_ever(setup):
    await setup.queue.stop()
    await setup.queue.add(ANN)
    assert not await setup.queue.settled(ANN, 0.01)
