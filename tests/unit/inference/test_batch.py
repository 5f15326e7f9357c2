"""Batched = alone: the tokens of an answer do not depend on its company."""

import sys
from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.domain.messages import Ending, Generation, Sampling
from memory_service.errors import ConfigurationError, NumericalError
from memory_service.inference import batch as batch_module
from memory_service.inference.batch import Batch, Row
from memory_service.inference.decoder import Decoder, ModuleDecoder
from tests.helpers.tiny_generator import DOWN_PROJ, O_PROJ, random_readouts, tiny_config
from tests.helpers.tiny_inference import TinyInference, tiny_base, tiny_inference
from tests.helpers.tiny_model import tiny_mistral

NEAR_TIE = 1e-4
"""Logits closer than this may change places with the shape of a product."""

TINY = tiny_inference(tiny_config(modules=(O_PROJ, DOWN_PROJ)))
ADAPTERS = list(3 * random_readouts(TINY.generator, 6))
DECODERS: list[Decoder] = [TINY.decoder, ModuleDecoder(TINY.base.model, TINY.injector)]


def new_batch(tiny: TinyInference = TINY, decoder: Decoder | None = None) -> Batch:
    empty = tiny.generator.read_out(tiny.generator.empty_state())
    return Batch(tiny.base, tiny.tokens, decoder or tiny.decoder, empty)


def row(prompt: list[int], adapter: torch.Tensor | None = None, **sampling) -> Row:
    return Row(prompt, adapter, Sampling(**{"max_new_tokens": 8, **sampling}))


@dataclass
class Ran:
    """What a batch said, row by row."""

    text: dict[Row, str] = field(default_factory=dict)
    ended: dict[Row, object] = field(default_factory=dict)

    def step(self, batch: Batch, joining=(), leaving=()) -> None:
        for one, item in batch.step(list(joining), list(leaving)):
            if isinstance(item, str):
                self.text[one] = self.text.get(one, "") + item
            else:
                assert one not in self.ended
                self.ended[one] = item

    def until_done(self, batch: Batch, rows) -> None:
        while any(one not in self.ended for one in rows):
            self.step(batch)


def run(*rows: Row, batch: Batch | None = None) -> Ran:
    batch = batch or new_batch()
    ran = Ran()
    ran.step(batch, rows)
    ran.until_done(batch, rows)
    return ran


def dense(one: Row, said: list[int], tiny: TinyInference = TINY) -> torch.Tensor:
    """Logits of the next token by reading everything anew, alone, without any cache."""
    readouts = one.readouts
    if readouts is None:
        readouts = torch.zeros_like(ADAPTERS[0])
    with tiny.injector.apply(readouts.unsqueeze(0)), torch.no_grad():
        return tiny.base.model(torch.tensor([one.prompt + said])).logits[0, -1]


def check_greedy(one: Row, tiny: TinyInference = TINY, *, is_cut: bool = False) -> None:
    """Every token said is the likeliest one, or as good as that; so is the end, unless cut off."""
    for index, token in enumerate(one.said):
        logits = dense(one, one.said[:index], tiny)
        assert logits.max() - logits[token] < NEAR_TIE, (index, token)
    if len(one.said) < one.sampling.max_new_tokens and not is_cut:
        logits = dense(one, one.said, tiny)
        ends = max(float(logits[token]) for token in (1, 2))
        assert logits.max() - ends < NEAR_TIE


ROWS = st.builds(
    row,
    prompt=st.lists(st.integers(3, 258), min_size=1, max_size=40),
    adapter=st.sampled_from([None, *ADAPTERS]),
    max_new_tokens=st.integers(1, 6),
)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda one: type(one).__name__)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_batched_is_alone_whoever_joins_and_leaves(decoder, data):
    arriving = data.draw(st.lists(st.lists(ROWS, max_size=4), min_size=1, max_size=6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "PIECE_TOKENS", data.draw(st.integers(1, 24)))
        batch, ran = new_batch(decoder=decoder), Ran()
        inside: list[Row] = []
        cancelled: set[Row] = set()
        for joining in arriving:
            inside = [one for one in inside if one not in ran.ended and one not in cancelled]
            leaving = data.draw(st.lists(st.sampled_from(inside), unique=True)) if inside else []
            cancelled |= set(leaving)
            ran.step(batch, joining, leaving)
            inside += joining
        everyone = [one for joining in arriving for one in joining]
        ran.until_done(batch, set(everyone) - cancelled)
    for one in everyone:
        check_greedy(one, is_cut=one in cancelled)
        if one not in cancelled:
            assert ran.text.get(one, "").strip() == ran.ended[one].text
    assert batch.decoding == batch.rows == 0
    assert not cancelled & set(ran.ended)


def test_tokens_are_those_of_transformers():
    rows = [row(list(range(3, 3 + length)), max_new_tokens=12) for length in (5, 90, 31)]
    run(*rows)
    for one in rows:
        ids = torch.tensor([one.prompt])
        made = TINY.base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=2,
        )
        expected = made[0, len(one.prompt) :].tolist()
        assert one.said == (expected[:-1] if expected[-1] == 2 else expected)


def test_mistral_too():
    tiny = tiny_inference(tiny_config(modules=(O_PROJ, DOWN_PROJ)), tiny_base(tiny_mistral()))
    rows = [row(list(range(3, 3 + length)), ADAPTERS[length % 6]) for length in (5, 20, 31)]
    run(*rows, batch=new_batch(tiny))
    for one in rows:
        check_greedy(one, tiny)


def test_sliding_windows_are_refused():
    base = tiny_base(tiny_mistral())
    base.model.config.sliding_window = 16
    tiny = tiny_inference(tiny_config(), base)
    with pytest.raises(ConfigurationError, match="sliding window"):
        new_batch(tiny)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_row_sees_the_adapter_of_another():
    """10,000 random batches: every row says what it says alone.

    Some neighbours' adapters are a thousand times as strong, so that a trace would show.
    """
    random = Random(0)
    prompts = [[random.randrange(3, 259) for _ in range(random.randrange(1, 9))] for _ in range(4)]
    adapters = [None, *ADAPTERS, *(1000 * one for one in ADAPTERS[:2])]
    kinds = [(prompt, adapter) for prompt in prompts for adapter in adapters]
    alone = []
    for prompt, adapter in kinds:
        one = row(prompt, adapter, max_new_tokens=40)
        run(one)
        alone.append(one.said)
    batch = new_batch()
    inside: dict[Row, int] = {}
    checked = ties = 0
    for _ in range(10_000):
        leaving = [one for one in inside if random.random() < 0.1]
        joining = []
        while len(inside) + len(joining) - len(leaving) < random.randrange(1, 6):
            which = random.randrange(len(kinds))
            joining.append(row(*kinds[which], max_new_tokens=40))
            inside[joining[-1]] = which
        over = [one for one, item in batch.step(joining, leaving) if isinstance(item, Generation)]
        for one in {*leaving, *over}:
            which = inside.pop(one)
            same = one.said == alone[which][: len(one.said)]
            if not same:
                check_greedy(one, is_cut=one in leaving)  # a near-tie
                ties += 1
            checked += 1
    told = f"10,000 batches, {checked:,} answers as alone, {ties} of them after a near-tie"
    sys.stdout.write(f"\n{told}\n")
    assert checked > 3_000


def test_long_prompts_are_read_in_pieces_while_others_get_their_tokens(monkeypatch):
    monkeypatch.setattr(batch_module, "PIECE_TOKENS", 16)
    batch, ran = new_batch(), Ran()
    short, long = row([5, 6], max_new_tokens=40), row([7] * 100, max_new_tokens=2)
    ran.step(batch, [short])
    ran.step(batch, [long])
    while not long.said:
        before = len(short.said)
        ran.step(batch)
        assert len(short.said) == before + 1 or short in ran.ended
    ran.until_done(batch, [short, long])
    check_greedy(short)
    check_greedy(long)


def test_a_long_prompt_does_not_hold_up_a_short_one_that_comes_later(monkeypatch):
    monkeypatch.setattr(batch_module, "PIECE_TOKENS", 16)
    batch, ran = new_batch(), Ran()
    long, short = row([7] * 400), row([5, 6], max_new_tokens=3)
    ran.step(batch, [long])
    ran.step(batch, [short])
    ran.until_done(batch, [short])
    assert long.unread > 300


def test_a_broken_adapter_fails_alone():
    good, bad = row([5, 6], ADAPTERS[0]), row([5, 6], ADAPTERS[1] * float("nan"))
    ran = run(good, bad)
    assert isinstance(ran.ended[bad], NumericalError)
    check_greedy(good)


def test_logits_that_overflow_fail_alone():
    good, bad = row([5, 6], ADAPTERS[0]), row([5, 6], ADAPTERS[1] * 3e37)
    batch = new_batch()
    ran = run(good, bad, batch=batch)
    assert isinstance(ran.ended[bad], NumericalError)
    check_greedy(good)
    again = row([8, 9, 10], ADAPTERS[2])  # in the place that held NaN
    run(again, batch=batch)
    check_greedy(again)


def test_an_answer_ends_by_length_or_by_itself(monkeypatch):
    one = row([5, 6], max_new_tokens=3)
    assert run(one).ended[one].ending is Ending.LENGTH
    batch = new_batch()
    monkeypatch.setattr(batch, "_stop_ids", frozenset([one.said[1]]))
    other = row([5, 6], max_new_tokens=3)
    made = run(other, batch=batch).ended[other]
    assert (made.ending, made.completion_tokens) == (Ending.STOP, 1)


def test_usage_counts_prompt_and_answer():
    one = row([5, 6, 7], max_new_tokens=3)
    made = run(one).ended[one]
    assert (made.prompt_tokens, made.completion_tokens) == (3, 3)
    assert 0 < made.first_token_s <= made.total_s


def test_nothing_stays_applied_after_a_step():
    hot = row([5, 6], 100 * ADAPTERS[0])
    batch = new_batch()
    plain = TINY.base.model(torch.tensor([[5, 6]])).logits
    batch.step([hot], [])
    assert TINY.base.model(torch.tensor([[5, 6]])).logits.equal(plain)


def test_a_cleared_batch_begins_anew():
    batch = new_batch()
    batch.step([row([5, 6], ADAPTERS[0]), row([7] * 300)], [])
    batch.clear()
    assert batch.decoding == 0
    one = row([8, 9], ADAPTERS[1])
    run(one, batch=batch)
    check_greedy(one)
