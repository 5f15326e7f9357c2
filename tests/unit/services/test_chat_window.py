"""Which of a session's last messages come into the prompt."""

from collections.abc import Iterator

import pytest

from memory_service.domain.messages import Message
from memory_service.services.chat import Chat
from memory_service.services.compute import Compute
from memory_service.services.recall import Recall
from tests.helpers.fakes import FakeBackend, FakeEncoder, FakeStore

SAID = [
    Message("user", "one two"),
    Message("assistant", "three four"),
    Message("user", "five six"),
    Message("assistant", "seven"),
    Message("user", "eight nine"),
]


@pytest.fixture
def chat() -> Iterator[Chat]:
    compute = Compute()
    yield Chat(Recall(FakeStore(), FakeEncoder()), FakeBackend(), compute)
    compute.close()


@pytest.mark.parametrize(
    ("budget_tokens", "kept"),
    [(100, 5), (9, 5), (8, 3), (7, 3), (5, 3), (4, 1), (3, 1), (2, 1), (1, 1)],
)
async def test_the_last_messages_that_fit_from_a_user_on(
    chat: Chat, budget_tokens: int, kept: int
) -> None:
    assert await chat.window(SAID, budget_tokens) == SAID[-kept:]


async def test_one_message_and_none(chat: Chat) -> None:
    assert await chat.window(SAID[:1], 1) == SAID[:1]
    assert await chat.window([], 1) == []
