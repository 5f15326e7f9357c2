import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.domain.search import Term, parse_search
from memory_service.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("dog", [Term(("dog",))]),
        (" My  dog ", [Term(("My",)), Term(("dog",))]),
        ('"golden retriever" dog', [Term(("golden", "retriever")), Term(("dog",))]),
        ('dog "golden retriever', [Term(("dog",)), Term(("golden", "retriever"))]),
        ("bisc*", [Term(("bisc",), is_beginning=True)]),
        ('"bisc*"', [Term(("bisc",))]),
        ("well-known", [Term(("well", "known"))]),
        ("ann@example.com", [Term(("ann", "example", "com"))]),
        ("don't -- OR dog's", [Term(("don", "t")), Term(("OR",)), Term(("dog", "s"))]),
        ("Käse 犬 — 7", [Term(("Käse",)), Term(("犬",)), Term(("7",))]),
    ],
)
def test_words_phrases_and_beginnings(text, terms):
    assert parse_search(text) == tuple(terms)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must hold a word"),
        ('"" * -', "must hold a word"),
        ("x" * 1001, "at most 1,000 characters"),
        ("a \udcff", "lone surrogate"),
    ],
)
def test_what_nothing_can_be_found_by_is_refused(text, problem):
    with pytest.raises(InvalidInput, match=problem):
        parse_search(text)


@given(st.text(max_size=50))
def test_no_word_holds_what_a_database_would_read_as_syntax(text):
    try:
        terms = parse_search(text)
    except InvalidInput:
        return
    words = [word for term in terms for word in term.words]
    assert words
    assert not [
        c for word in words for c in word if c.isspace() or (ord(c) < 128 and not c.isalnum())
    ]
