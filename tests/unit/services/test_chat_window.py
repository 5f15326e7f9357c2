"""Which of a session's last messages come into the prompt."""

import pytest

from memory_service.domain.messages import Message
from memory_service.services.chat import Chat
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
def chat() -> Chat:
    return Chat(Recall(FakeStore(), FakeEncoder()), FakeBackend())


@pytest.mark.parametrize(
    ("budget_tokens", "kept"),
    [(100, 5), (9, 5), (8, 3), (7, 3), (5, 3), (4, 1), (3, 1), (2, 1), (1, 1)],
)
def test_the_last_messages_that_fit_from_a_user_on(
    chat: Chat, budget_tokens: int, kept: int
) -> None:
    window = chat.window(SAID, budget_tokens)
    assert window.messages == SAID[-kept:]
    assert window.cut == len(SAID) - kept


def test_one_message_and_none(chat: Chat) -> None:
    assert chat.window(SAID[:1], 1).messages == SAID[:1]
    assert chat.window([], 1).messages == []


def test_the_system_message_is_never_cut(chat: Chat) -> None:
    system = Message("system", "be brief, please, and kind")
    window = chat.window([system, *SAID], 7)
    assert window.messages == [system, SAID[-1]]
    assert window.cut == 4
    assert chat.window([system, *SAID], 14).messages == [system, *SAID]
