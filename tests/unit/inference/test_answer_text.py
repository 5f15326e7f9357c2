"""The text of an answer, piece by piece: nothing that would have to be taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.inference.answer_text import AnswerText
from tests.helpers.tiny_inference import tiny_inference

TOKENS = tiny_inference().tokens


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], AnswerText]:
    """One token a byte: every character and every stop string crosses token borders."""
    answer = AnswerText(TOKENS.text, stop)
    given_away = []
    for token in TOKENS.ids(text):
        given_away.append(answer.add(token))
        if answer.is_stopped:
            break
    given_away.append(answer.finish())
    return given_away, answer


@given(st.text(max_size=30))
def test_pieces_are_the_text_without_spaces_around(text):
    given_away, answer = pieces(text)
    whole = TOKENS.text(TOKENS.ids(text))
    assert "".join(given_away) == answer.text == whole.strip()


@given(st.text("ab ", max_size=30), st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_stop_string_that_is_complete_first(text, stop):
    given_away, answer = pieces(text, tuple(stop))
    said = text.lstrip()
    ends = [(said.find(one) + len(one), said.find(one)) for one in stop if one in said]
    expected = said[: min(ends)[1]] if ends else said
    assert "".join(given_away) == answer.text == expected.rstrip()
    assert answer.is_stopped == bool(ends)


def test_what_may_be_a_stop_string_is_held_back():
    answer = AnswerText(TOKENS.text, ("END",))
    given_away = [answer.add(token) for token in TOKENS.ids("an EN")]
    assert "".join(given_away) == "an"
    assert [answer.add(token) for token in TOKENS.ids("x")] == [" ENx"]


def test_a_character_of_several_tokens_comes_whole():
    given_away, _ = pieces("é😀")
    assert [piece for piece in given_away if piece] == ["é", "😀"]


def test_half_a_character_at_the_end_is_shown_as_such():
    answer = AnswerText(TOKENS.text, ())
    assert answer.add(TOKENS.ids("é")[0]) == ""
    assert answer.finish() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("text", ["", "   ", "\n\n"])
def test_an_answer_may_be_empty(text):
    given_away, answer = pieces(text)
    assert not any(given_away)
    assert answer.text == ""
