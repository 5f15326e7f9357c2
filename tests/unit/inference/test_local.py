from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.errors import InvalidInput, NumericalError
from memory_service.inference import batch as batch_module
from memory_service.inference.batch import Batch, Row
from memory_service.inference.choosing import Choice
from memory_service.inference.local import LocalBackend
from memory_service.inference.tokens import stop_ids
from tests.helpers.tiny_generator import DOWN_PROJ, O_PROJ, random_readouts, tiny_config
from tests.helpers.tiny_inference import TinyInference, tiny_base, tiny_inference
from tests.helpers.tiny_model import tiny_llama, tiny_mistral, tiny_tokenizer

QUESTIONS = ["What is my dog called?", "Hi!", "Tell me again, please, where I said that I live."]
GREEDY = Sampling(max_new_tokens=24)


@pytest.fixture(scope="module", params=[tiny_llama, tiny_mistral], ids=["llama", "mistral"])
def tiny(request) -> TinyInference:
    config = tiny_config(modules=(O_PROJ, DOWN_PROJ))
    made = tiny_inference(config, tiny_base(request.param()))
    made.base.model.generation_config.eos_token_id = 2
    return made


PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
VOCABULARY = tiny_tokenizer().get_vocab()


def id_of_byte(byte: int) -> int:
    """The byte tokenizer's token: bytes stand in GPT-2's printable alphabet."""
    return VOCABULARY[chr(byte) if byte in PRINTABLE else chr(256 + OTHERS.index(byte))]


@pytest.fixture(scope="module")
def plain() -> TinyInference:
    return tiny_inference()


def say(content: bytes, backend: LocalBackend, then: Sequence[int] = (2,), sampling=GREEDY) -> list:
    """Stream from a model that says given bytes, one after another, whatever it is asked."""
    ids = iter([*(id_of_byte(byte) for byte in content), *then])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "choose", lambda *_: [next(ids)])
        return stream(backend, sampling=sampling)


def prompt(text: str) -> list[Message]:
    return [Message("user", text)]


def stream(backend: LocalBackend, text="Hi", readouts=None, sampling=GREEDY) -> list:
    return list(backend.stream(prompt(text), readouts, sampling))


def tokens_of(tiny: TinyInference, text: str, readouts=None, sampling=GREEDY) -> list[int]:
    ids = tiny.tokens.prompt_ids(prompt(text))
    row = Row(ids, readouts, sampling)
    batch = Batch(tiny.base, tiny.tokens, tiny.decoder, tiny.backend._empty)
    batch.step([row], [])
    while batch.rows:
        batch.step([], [])
    return row.said


def test_bytes_have_their_tokens():
    text = bytes(range(256))
    tokenizer = tiny_tokenizer()
    for char in ("a", " ", "\n", "é", "😀"):
        ids = tokenizer(char)["input_ids"]
        assert ids == [id_of_byte(byte) for byte in char.encode()]
    assert len({id_of_byte(byte) for byte in text}) == 256


# Greedy decoding


@pytest.mark.parametrize("text", QUESTIONS)
def test_greedy_tokens_are_those_of_transformers(tiny, text):
    ids = torch.tensor([tiny.tokens.prompt_ids(prompt(text))])
    made = tiny.base.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
    )
    expected = made[0, ids.shape[1] :].tolist()
    if expected[-1] == 2:
        expected.pop()
    assert tokens_of(tiny, text) == expected


@pytest.mark.parametrize("text", QUESTIONS)
def test_cached_steps_equal_reading_everything_anew_with_an_adapter(tiny, text):
    readouts = random_readouts(tiny.generator, 1)
    ids = tiny.tokens.prompt_ids(prompt(text))
    said: list[int] = []
    for _ in range(12):
        with tiny.injector.apply(readouts), torch.no_grad():
            logits = tiny.base.model(torch.tensor([ids + said])).logits[0, -1]
        token = int(logits.argmax())
        if token == 2:
            break
        said.append(token)
    assert tokens_of(tiny, text, readouts[0], Sampling(max_new_tokens=12)) == said


def test_adapter_changes_the_answer(tiny):
    strong = 5 * random_readouts(tiny.generator, 1)[0]
    assert tokens_of(tiny, QUESTIONS[0], strong) != tokens_of(tiny, QUESTIONS[0])


def test_no_adapter_is_the_empty_one(tiny):
    empty = tiny.encoder.read_out(tiny.encoder.empty_state())
    assert tokens_of(tiny, QUESTIONS[0], empty) == tokens_of(tiny, QUESTIONS[0])


def test_call_leaves_no_adapter_behind(tiny):
    before = tokens_of(tiny, QUESTIONS[0])
    items = tiny.backend.stream(
        prompt(QUESTIONS[0]), 5 * random_readouts(tiny.generator, 1)[0], GREEDY
    )
    next(items)
    items.close()
    assert tokens_of(tiny, QUESTIONS[0]) == before


# Batches


def alone(tiny: TinyInference, texts, readouts, sampling=GREEDY) -> list[str]:
    return [
        tiny.backend.answers([prompt(text)], [one], sampling)[0]
        for text, one in zip(texts, readouts, strict=True)
    ]


def test_batch_of_different_lengths_equals_each_alone(tiny):
    nobody = [None] * len(QUESTIONS)
    together = tiny.backend.answers([prompt(text) for text in QUESTIONS], nobody, GREEDY)
    assert together == alone(tiny, QUESTIONS, nobody)


def test_rows_of_different_users_equal_each_alone(tiny):
    ann, bob, eve = 3 * random_readouts(tiny.generator, 3)
    texts = [*QUESTIONS, QUESTIONS[0], QUESTIONS[0]]
    readouts = [ann, bob, None, eve, None]
    together = tiny.backend.answers([prompt(text) for text in texts], readouts, GREEDY)
    assert together == alone(tiny, texts, readouts)
    assert len(set(together)) == len(together)


def test_users_may_stand_in_any_row(tiny):
    ann, bob = 3 * random_readouts(tiny.generator, 2)
    asked = [prompt(QUESTIONS[0]), prompt(QUESTIONS[2])]
    straight = tiny.backend.answers(asked, [ann, bob], GREEDY)
    assert tiny.backend.answers(asked[::-1], [bob, ann], GREEDY) == straight[::-1]


def test_answer_is_what_the_stream_says(tiny):
    for text in QUESTIONS:
        *_, generation = stream(tiny.backend, text)
        assert alone(tiny, [text], [None]) == [generation.text]


# Streaming text


def check(pieces: list, text: str) -> Generation:
    *texts, generation = pieces
    assert isinstance(generation, Generation)
    assert all(isinstance(piece, str) and piece for piece in texts)
    assert "".join(texts) == generation.text == text
    return generation


def test_pieces_add_up_to_the_answer(tiny):
    for text in QUESTIONS:
        pieces = stream(tiny.backend, text)
        check(pieces, pieces[-1].text)


def test_letters_come_one_by_one(plain):
    pieces = say(b"Rex!", plain.backend)
    assert pieces[:-1] == ["R", "e", "x", "!"]
    assert check(pieces, "Rex!").completion_tokens == 4


@pytest.mark.parametrize("text", ["é", "a😀b", "日本語", "ñ😀", "👩‍👩‍👧"])
def test_characters_of_several_tokens_come_whole(plain, text):
    pieces = say(text.encode(), plain.backend)
    assert pieces[:-1] == list(text)
    assert check(pieces, text).completion_tokens == len(text.encode())


@settings(deadline=None)
@given(content=st.binary(max_size=30) | st.text(max_size=12).map(str.encode))
def test_any_bytes_come_through(plain, content):
    pieces = say(content, plain.backend, sampling=Sampling(max_new_tokens=99))
    check(pieces, content.decode(errors="replace").strip())


def test_character_that_is_never_finished_is_shown_at_the_end(plain):
    check(say("a😀".encode()[:-1], plain.backend), "a\N{REPLACEMENT CHARACTER}")


def test_spaces_at_both_ends_are_left_out(plain):
    check(say(b"\n  My dog \n", plain.backend), "My dog")


def test_answer_of_nothing(plain):
    assert check(say(b"", plain.backend), "").completion_tokens == 0


def test_generation_counts_and_times(tiny):
    *_, generation = stream(tiny.backend, QUESTIONS[0])
    assert generation.prompt_tokens == len(tiny.tokens.prompt_ids(prompt(QUESTIONS[0])))
    assert generation.prompt_tokens == tiny.backend.prompt_tokens(prompt(QUESTIONS[0]))
    assert generation.completion_tokens == len(tokens_of(tiny, QUESTIONS[0]))
    assert 0 < generation.first_token_s <= generation.total_s


# Where an answer ends


@pytest.mark.parametrize("configured", [2, [2], [40, 2], None])
def test_stop_tokens_of_tokenizer_and_model(configured):
    base = tiny_base()
    base.model.generation_config.eos_token_id = configured
    expected = {2, 40} if configured == [40, 2] else {2}
    assert stop_ids(base) == expected


def test_stop_token_ends_the_answer_and_is_not_part_of_it(plain):
    assert check(say(b"Rex", plain.backend), "Rex").completion_tokens == 3


@pytest.mark.parametrize("limit", [1, 3])
def test_limit_of_new_tokens(plain, monkeypatch, limit):
    monkeypatch.setattr(batch_module, "choose", lambda *_: [id_of_byte(ord("x"))])
    check(stream(plain.backend, sampling=Sampling(max_new_tokens=limit)), "x" * limit)


def test_prompt_that_just_fits_and_one_that_does_not():
    tiny = tiny_inference()
    room = tiny.base.model.config.max_position_embeddings - tiny.backend.prompt_tokens(prompt(""))
    sampling = Sampling(max_new_tokens=3)
    assert isinstance(stream(tiny.backend, "x" * (room - 3), sampling=sampling)[-1], Generation)
    with pytest.raises(InvalidInput, match=r"3 new tokens .* context of 4096.*4094 tokens"):
        stream(tiny.backend, "x" * (room - 2), sampling=sampling)
    with pytest.raises(InvalidInput, match="context of 4096"):
        tiny.backend.answers([prompt("Hi"), prompt("x" * room)], [None, None], sampling)
    with pytest.raises(InvalidInput, match="context of 4096"):
        tiny.backend.log_likelihoods([prompt("x" * room)], ["Rex"], [None])


# Sampling


def sampled(tiny: TinyInference, **options) -> list[int]:
    return tokens_of(tiny, QUESTIONS[0], sampling=Sampling(max_new_tokens=20, **options))


def test_seed_decides(tiny):
    first = sampled(tiny, temperature=1.5, seed=7)
    torch.manual_seed(123)
    assert sampled(tiny, temperature=1.5, seed=7) == first
    assert len({tuple(sampled(tiny, temperature=1.5, seed=seed)) for seed in range(5)}) > 1


def test_sampling_leaves_the_global_random_numbers_alone(tiny):
    before = torch.random.get_rng_state()
    sampled(tiny, temperature=1.0, seed=3)
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(
    "options", [{"temperature": 1e-6}, {"temperature": 1e-320}, {"temperature": 9, "top_p": 1e-9}]
)
def test_cold_or_narrow_sampling_is_greedy(tiny, options):
    assert sampled(tiny, **options) == sampled(tiny)


def draw(logits: list[float], count: int = 4000, **options) -> list[float]:
    """Shares of the tokens over many draws."""
    choice = Choice(Sampling(**options), [])
    chosen = torch.tensor([choice.token(torch.tensor(logits)) for _ in range(count)])
    return (torch.bincount(chosen, minlength=len(logits)) / count).tolist()


PROBABILITIES = [0.1, 0.5, 0.3, 0.1]
LOGITS = torch.tensor(PROBABILITIES).log().tolist()


def test_sampling_follows_the_probabilities():
    assert draw(LOGITS, temperature=1.0) == pytest.approx(PROBABILITIES, abs=0.04)


def test_temperature_sharpens():
    squares = [share**2 / 0.36 for share in PROBABILITIES]
    assert draw(LOGITS, temperature=0.5) == pytest.approx(squares, abs=0.04)


@pytest.mark.parametrize(
    ("top_p", "shares"),
    [
        (0.4, [0, 1, 0, 0]),
        (0.6, [0, 5 / 8, 3 / 8, 0]),
        (0.79, [0, 5 / 8, 3 / 8, 0]),
        (1.0, PROBABILITIES),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, shares):
    assert draw(LOGITS, temperature=1.0, top_p=top_p) == pytest.approx(shares, abs=0.04)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers(plain, monkeypatch, bad):
    monkeypatch.setattr(plain.decoder, "logits", lambda ids, *_: torch.full((len(ids), 259), bad))
    with pytest.raises(NumericalError, match="logits"):
        stream(plain.backend)


def test_adapter_that_is_no_number(tiny):
    with pytest.raises(NumericalError, match="adapter"):
        stream(tiny.backend, readouts=torch.full_like(tiny.backend._empty, float("nan")))


# Likelihood of an answer


def by_hand(tiny: TinyInference, text: str, answer: str, readouts) -> float:
    """From the logits of one unpadded pass over prompt and answer."""
    start, end = tiny.tokens.prompt_ids(prompt(text)), list(tiny.tokens.ids(answer))
    readouts = tiny.backend._empty if readouts is None else readouts
    with tiny.injector.apply(readouts.unsqueeze(0)), torch.no_grad():
        logits = tiny.base.model(torch.tensor([start + end])).logits[0].double()
    logs = logits.log_softmax(-1)
    total = sum(logs[len(start) + number - 1, token].item() for number, token in enumerate(end))
    return total / len(end)


def test_log_likelihoods_are_those_of_the_logits(tiny):
    ann, bob = random_readouts(tiny.generator, 2)
    answers = ["Rex", "Your dog is called Rex.", "日本"]
    readouts = [ann, None, bob]
    found = tiny.backend.log_likelihoods([prompt(text) for text in QUESTIONS], answers, readouts)
    expected = [by_hand(tiny, *row) for row in zip(QUESTIONS, answers, readouts, strict=True)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(found)) == 3
