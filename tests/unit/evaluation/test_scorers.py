import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.evaluation.scorers import exact_match, normalise, token_f1, value_recall

words = st.text(st.sampled_from("ab the.,! é日'-")) | st.text()


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Eiffel-Tower!", "eiffeltower"),  # punctuation goes without leaving a space
        ("a an the", ""),
        ("An apple, a day.", "apple day"),
        ("theatre and another", "theatre and another"),  # articles are whole words
        ("It's THE end", "its end"),
        ("  two\n lines\t", "two lines"),
        ("the-best", "thebest"),  # punctuation first, so this holds no article
        ("São Paulo", "são paulo"),
        ("!?", ""),
    ],
)
def test_normalisation_is_squads(text, normalised):
    assert normalise(text) == normalised


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        # given 2 tokens, wanted 2, common 2
        ("The black cat.", "black cat", 1.0),
        # given {black, cat}, wanted {black, dog}: precision = recall = 1/2
        ("black cat", "black dog", 1 / 2),
        # given {your, dog, is, called, rex}, wanted {rex}: precision 1/5, recall 1
        ("Your dog is called Rex.", "Rex", 2 * (1 / 5) * 1 / (1 / 5 + 1)),
        # repeated words count as often as both have them: common 2, precision 2/3, recall 1
        ("no no no", "no no", 2 * (2 / 3) / (2 / 3 + 1)),
        ("cat", "dog", 0.0),
        ("", "dog", 0.0),
        ("the", "dog", 0.0),
        ("dog", "", 0.0),
        ("", "", 1.0),
        ("the", "a!", 1.0),
    ],
)
def test_token_f1(answer, expected, f1):
    assert token_f1(answer, expected) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [("The Cat!", "cat", 1.0), ("cat", "cats", 0.0), ("", "", 1.0), ("black cat", "cat", 0.0)],
)
def test_exact_match(answer, expected, score):
    assert exact_match(answer, expected) == score


@pytest.mark.parametrize(
    ("answer", "value", "score"),
    [
        ("Your dog is called Rex.", "Rex", 1.0),
        ("rex", "Rex!", 1.0),
        ("It is Rexford.", "Rex", 0.0),  # whole words only
        ("You live in New York City.", "New York", 1.0),
        ("New Jersey, York", "New York", 0.0),
        ("You were at the Louvre", "a Louvre", 1.0),
        ("", "Rex", 0.0),
        ("anything", "the", 0.0),  # a value of nothing is in no answer
        ("", "!", 0.0),
    ],
)
def test_value_recall(answer, value, score):
    assert value_recall(answer, value) == score


@given(words, words)
def test_f1_is_symmetric_and_between_0_and_1(one, other):
    assert token_f1(one, other) == pytest.approx(token_f1(other, one))
    assert 0 <= token_f1(one, other) <= 1


@given(words, words)
def test_scores_agree_with_each_other(answer, expected):
    exact = exact_match(answer, expected)
    assert exact in (0.0, 1.0)
    assert exact == exact_match(expected, answer)
    if exact:
        assert token_f1(answer, expected) == 1.0
    if value_recall(answer, expected):
        assert token_f1(answer, expected) > 0


@given(words)
def test_an_answer_is_its_own_best(text):
    assert token_f1(text, text) == exact_match(text, text) == 1.0
    assert value_recall(text, text) == float(normalise(text) != "")


@given(words)
def test_normal_form_is_lower_case_words_and_single_spaces(text):
    found = normalise(text)
    assert found == found.lower() == " ".join(found.split())
    assert not set(found.split()) & {"a", "an", "the"}
    assert not set(found) & set(string.punctuation)
