"""Messages that clients send again and again become one turn each."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from memory_service.domain.messages import Message
from memory_service.domain.resent import is_continued, lay_beside, next_turn
from memory_service.domain.turns import Turn

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def messages(*texts: str) -> list[Message]:
    """User and assistant in turn, the user first."""
    return [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


class Session:
    """A session as a server keeps it."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.now = NOW

    def ask(self, sent: list[Message], answer: str | None) -> list[str]:
        """Store what is new of a request, and the answer; the texts that were new."""
        self.now += timedelta(seconds=10)
        laid = lay_beside(self.turns, sent, "chat", self.now)
        new = list(laid.new)
        if answer is not None:
            new.append(next_turn(laid.turns[-1], "assistant", answer, "chat", self.now))
        known = {turn.id for turn in self.turns}
        self.turns = sorted(
            [*self.turns, *(turn for turn in new if turn.id not in known)],
            key=lambda turn: turn.order,
        )
        return [turn.text for turn in laid.new]

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.turns]


@given(st.lists(st.sampled_from(["yes", "no", "why?", "Rex"]), min_size=1, max_size=8))
def test_a_conversation_sent_whole_every_time_is_stored_once(said):
    session, sent = Session(), []
    for number, text in enumerate(said):
        sent.append(Message("user", text))
        session.ask(sent, f"answer {number}")
        sent.append(Message("assistant", f"answer {number}"))
    assert session.texts == [message.content for message in sent]


@given(st.lists(st.sampled_from(["yes", "no", "ok"]), min_size=1, max_size=6), st.integers(2, 5))
def test_a_client_that_sends_only_its_last_messages(said, width):
    session, sent = Session(), []
    for text in said:
        sent.append(Message("user", text))
        session.ask(sent[-width:], f"{text} {len(sent)}")
        sent.append(Message("assistant", f"{text} {len(sent)}"))
    assert session.texts == [message.content for message in sent]


def test_a_client_that_sends_one_message_a_time():
    session = Session()
    for number in range(3):
        session.ask(messages("yes"), f"answer {number}")
    assert session.texts == ["yes", "answer 0", "answer 1", "answer 2"]  # "answer me once more"
    session.ask(messages("no"), "Well.")
    session.ask(messages("yes"), "So?")
    assert session.texts[4:] == ["no", "Well.", "yes", "So?"]


def test_a_question_asked_again_is_stored_once_with_both_answers():
    session = Session()
    session.ask(messages("Hi"), "Hello!")
    assert session.ask(messages("Hi"), "Good day!") == []
    session.ask(messages("Hi", "Good day!", "How are you?"), "Well.")
    assert session.ask(messages("Hi", "Good day!", "How are you?"), "Fine.") == []
    assert session.texts == ["Hi", "Hello!", "Good day!", "How are you?", "Well.", "Fine."]


def test_a_retry_of_what_nobody_answered():
    session = Session()
    session.ask(messages("Hi"), "Hello!")
    session.ask(messages("Hi", "Hello!", "Where do I live?"), None)
    assert session.ask(messages("Where do I live?"), "In Rome.") == []
    assert session.texts == ["Hi", "Hello!", "Where do I live?", "In Rome."]


def test_the_same_words_again_are_a_new_message():
    session = Session()
    session.ask(messages("yes"), "Really?")
    assert session.ask(messages("yes", "Really?", "yes"), "Good.") == ["yes"]


def test_an_edited_message_is_new_and_the_first_words_stay():
    session = Session()
    session.ask(messages("Hi"), "Hello!")
    session.ask(messages("Hi", "Hello!", "I like tea"), "Nice.")
    assert session.ask(messages("Hi", "Hello!", "I like coffee"), "Fine.") == ["I like coffee"]


def test_an_answer_that_was_never_stored_is_stored_in_its_place():
    session = Session()
    session.ask(messages("Hi"), None)  # the client left in the middle of the answer
    new = session.ask(messages("Hi", "Hel", "Go on"), "lo!")
    assert new == ["Hel", "Go on"]
    assert session.texts == ["Hi", "Hel", "Go on", "lo!"]


def test_history_from_elsewhere_is_taken_over_in_order():
    session = Session()
    assert session.ask(messages("a", "b", "c"), "d") == ["a", "b", "c"]
    assert session.texts == ["a", "b", "c", "d"]


def test_two_requests_at_the_same_time_make_the_same_turns():
    stored: list[Turn] = []
    first = lay_beside(stored, messages("Hi"), "chat", NOW)
    second = lay_beside(stored, messages("Hi"), "chat", NOW + timedelta(seconds=1))
    assert [turn.id for turn in first.new] == [turn.id for turn in second.new]


def test_ids_differ_between_sessions():
    one = lay_beside([], messages("Hi"), "monday", NOW)
    other = lay_beside([], messages("Hi"), "tuesday", NOW)
    assert one.new[0].id != other.new[0].id


def test_whether_a_conversation_goes_on():
    session = Session()
    session.ask(messages("Hi"), "Hello!")
    assert is_continued(session.turns, messages("Hi"))
    assert is_continued(session.turns, messages("Hi", "Hello!", "And?"))
    assert not is_continued(session.turns, messages("Good morning"))
    assert not is_continued(session.turns, messages("Hi", "What?", "And?"))
    session.ask(messages("Hi", "Hello!", "And?"), "So.")
    assert is_continued(session.turns, messages("And?", "So.", "Then?"))
    assert not is_continued(session.turns, messages("Hi"))
    assert not is_continued([], messages("Hi"))
