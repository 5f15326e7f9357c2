"""Prompts read once: what goes on from them is what reading everything again gives."""

import pytest

from memory_service.domain.messages import Message, Sampling
from memory_service.errors import InvalidInput
from tests.helpers.tiny_generator import random_readouts
from tests.helpers.tiny_inference import TinyInference, tiny_inference

GREEDY = Sampling(max_new_tokens=12)
QUESTIONS = ("What is my dog called?", "Where do I live, if you please?", "Who?")
HISTORY = Message("system", "User: My dog is Rex. " * 30)  # several pieces
EXPECTED = ("Rex", "In Ghent, at the river", "x")


@pytest.fixture(scope="module")
def tiny() -> TinyInference:
    return tiny_inference()


def prompts(*before: Message) -> list[list[Message]]:
    return [[*before, Message("user", text)] for text in QUESTIONS]


@pytest.mark.parametrize("adapted", [False, True])
def test_answers_and_likelihoods_are_those_of_the_backend(tiny, adapted):
    readouts = random_readouts(tiny.generator, 1)[0] if adapted else None
    asked = prompts(HISTORY)
    readings = [tiny.reader.read(one, readouts) for one in asked]
    same = [readouts] * len(asked)
    assert [one.text for one in tiny.reader.answer(readings, GREEDY)] == tiny.backend.answers(
        asked, same, GREEDY
    )
    found = [tiny.reader.log_likelihood(*one) for one in zip(readings, EXPECTED, strict=True)]
    assert found == pytest.approx(tiny.backend.log_likelihoods(asked, EXPECTED, same), abs=1e-4)


@pytest.mark.parametrize("adapted", [False, True])
def test_keeping_the_history_changes_no_answer(tiny, adapted):
    readouts = random_readouts(tiny.generator, 1)[0] if adapted else None
    first, *_ = fresh = [tiny.reader.read(one, readouts) for one in prompts(HISTORY)]
    kept = [tiny.reader.read(one, readouts, first) for one in prompts(HISTORY)]
    assert all(one.kept_tokens > 500 for one in kept)
    assert [one.text for one in tiny.reader.answer(kept, GREEDY)] == [
        one.text for one in tiny.reader.answer(fresh, GREEDY)
    ]
    for one, other in zip(kept, fresh, strict=True):
        assert tiny.reader.log_likelihood(one, "Rex") == pytest.approx(
            tiny.reader.log_likelihood(other, "Rex"), abs=1e-4
        )


def test_a_reading_is_not_changed_by_going_on(tiny):
    (prompt,) = prompts(HISTORY)[:1]
    reading = tiny.reader.read(prompt, None)
    before = tiny.reader.log_likelihood(reading, "Rex")
    tiny.reader.answer([reading], GREEDY)
    tiny.reader.read(prompts()[1], None, reading)
    assert tiny.reader.log_likelihood(reading, "Rex") == before


def test_what_a_reading_costs(tiny):
    reading = tiny.reader.read(prompts()[0], None)
    assert reading.prompt_tokens == tiny.backend.prompt_tokens(prompts()[0])
    # keys and values, two layers, two heads of width 8, float32
    assert reading.kept_bytes == 2 * 2 * 2 * 8 * 4 * reading.prompt_tokens
    assert reading.first_token_s > 0


def test_what_cannot_be_read_is_named(tiny):
    long = [Message("user", "x" * 5000)]
    assert not tiny.reader.fits(long, 1)
    assert tiny.reader.fits(prompts()[0], 24)
    with pytest.raises(InvalidInput, match="context of 4096"):
        tiny.reader.read(long, None)
    readouts = random_readouts(tiny.generator, 1)[0]
    reading = tiny.reader.read(prompts()[0], None)
    with pytest.raises(InvalidInput, match="another adapter"):
        tiny.reader.read(prompts()[0], readouts, reading)
    with pytest.raises(InvalidInput, match="must have a token"):
        tiny.reader.log_likelihood(reading, "")
    full = tiny.reader.read([Message("user", "x" * 4000)], None)
    with pytest.raises(InvalidInput, match="no room"):
        tiny.reader.answer([full], Sampling(max_new_tokens=200))
