import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.domain.chunks import chunk_session
from memory_service.domain.messages import Message
from memory_service.domain.turns import Role
from memory_service.errors import InvalidInput, NotFound
from memory_service.generator.injection import Injector
from memory_service.inference.tokens import Tokens
from memory_service.training.data import (
    Batch,
    Collator,
    Rows,
    Span,
    dialogue_source,
    mixed,
    people_source,
    swap_pairs,
)
from memory_service.training.frozen import FrozenBase
from memory_service.training.losses import Answers, read_outs
from memory_service.training.people import Episode, Question, Split, make_episode
from tests.helpers.histories import turn
from tests.helpers.tiny_generator import tiny_generator
from tests.helpers.tiny_training import PHASE, small_base, tiny_training, write_dialogues

BASE = small_base()
TOKENS = Tokens(BASE)
CONFIG = tiny_training()
EOS = 2


def question(text: str, answer: str, value: str) -> Question:
    return Question(text, answer, value, "kind", Role.USER)


DOG = question("What is my dog called?", "Your dog is called Rex.", "Rex")
CITY = question("Where do I live?", "In São Paulo.", "São Paulo")
SHORT = question("In one word, my name?", "Ann", "Ann")
ANN = Episode((turn(0, "My dog is Rex."), turn(1, "I see.")), (DOG, CITY))
BOB = Episode((turn(0, "I am Ann. " * 12), turn(1, "So long!", session="b")), (SHORT,))


def batch(*episodes: Episode, questions: int = 2) -> Batch:
    return Collator(BASE, CONFIG).batch(episodes, questions, random.Random(0))


def packed(*episodes: Episode, questions: int = 2) -> Rows:
    return batch(*episodes, questions=questions).asked


def rows(made: Rows, person: int) -> list[slice]:
    """Where each question of a person lies: positions restart at it."""
    length = int(made.attends[person, 0].any(dim=-1).sum())
    starts = [i for i in range(length) if made.positions[person, i] == 0]
    return [slice(*bounds) for bounds in zip(starts, [*starts[1:], length], strict=True)]


def asked(made: Rows, person: int, row: slice) -> Question:
    """The question that a row is about, by its prompt."""
    ids = made.ids[person, row].tolist()
    everything = (DOG, CITY, SHORT)
    prompts = [TOKENS.prompt_ids([Message("user", one.text)]) for one in everything]
    (found,) = [
        one for one, prompt in zip(everything, prompts, strict=True) if ids[: len(prompt)] == prompt
    ]
    return found


# Questions packed into rows


def test_rows_are_prompt_and_answer_as_the_product_renders_them():
    made = packed(ANN, BOB)
    found = Counter()
    for person in range(2):
        for row in rows(made, person):
            one = asked(made, person, row)
            prompt = TOKENS.prompt_ids([Message("user", one.text)])
            assert made.ids[person, row].tolist() == prompt + list(TOKENS.ids(one.answer))
            found[person, one.text] += 1
    assert found == {(0, DOG.text): 1, (0, CITY.text): 1, (1, SHORT.text): 2}
    assert len(made.spans) == 4


def test_positions_restart_at_every_question():
    made = packed(ANN, BOB)
    for person in range(2):
        for row in rows(made, person):
            expected = torch.arange(row.stop - row.start)
            assert made.positions[person, row].equal(expected)


def test_question_attends_itself_backwards_and_nothing_else():
    made = packed(ANN, BOB)
    for person in range(2):
        expected = torch.zeros_like(made.attends[person, 0])
        for row in rows(made, person):
            size = row.stop - row.start
            expected[row, row] = torch.ones(size, size, dtype=torch.bool).tril()
        assert made.attends[person, 0].equal(expected)


def test_padding_is_attended_by_nobody_and_has_no_weight():
    made = packed(ANN, BOB)
    used = made.attends.any(dim=-1).squeeze(1)
    assert not used.all()
    assert not made.attends.any(dim=-2).squeeze(1)[~used].any()
    assert not made.weights[~used].any()
    assert not made.is_value[~used].any()
    assert made.ids.shape[1] % 16 == 0


def test_targets_are_the_answers_with_their_end():
    made = packed(ANN, BOB)
    for person in range(2):
        for row in rows(made, person):
            weighted = made.weights[person, row] > 0
            answer = list(TOKENS.ids(asked(made, person, row).answer))
            assert made.targets[person, row][weighted].tolist() == [*answer, EOS]
            # Each target is the next token of the row; the end follows the last one.
            where = weighted.nonzero().flatten()
            assert where.tolist() == list(range(where[0], row.stop - row.start))
            assert made.ids[person, row][where[1:]].tolist() == answer


def test_value_mask_marks_the_value_exactly():
    made = packed(ANN, BOB)
    for person in range(2):
        for row in rows(made, person):
            marked = made.targets[person, row][made.is_value[person, row]].tolist()
            assert TOKENS.text(marked) == asked(made, person, row).value
    assert (made.weights[made.is_value] == CONFIG.value_weight).all()
    assert set(made.weights[~made.is_value].tolist()) == {0.0, 1.0}


def test_first_token_of_a_value_weighs_more():
    made = Collator(BASE, tiny_training(first_token_weight=2.0)).batch(
        [ANN, BOB], 2, random.Random(0)
    )
    for person in range(2):
        for row in rows(made.asked, person):
            weights = made.asked.weights[person, row]
            value = weights[made.asked.is_value[person, row]].tolist()
            assert len(value) > 1
            assert value == [2 * CONFIG.value_weight] + [CONFIG.value_weight] * (len(value) - 1)
            assert weights[~made.asked.is_value[person, row]].max() == 1


@given(seed=st.integers(0, 10_000), split=st.sampled_from(Split))
@settings(max_examples=20, deadline=None)
def test_value_mask_marks_the_value_of_any_synthetic_question(seed, split):
    episode = make_episode(random.Random(seed), split, facts=3, chatter=0.0)
    made = packed(episode, questions=3)
    marked = Counter(
        TOKENS.text(made.targets[0, row][made.is_value[0, row]].tolist()) for row in rows(made, 0)
    )
    assert marked == Counter(one.value for one in episode.questions)


def test_more_questions_than_the_person_has_are_asked_again():
    made = packed(BOB, questions=3)
    assert len(rows(made, 0)) == 3


# Chunks


def test_chunks_are_those_of_the_product_and_belong_to_their_person():
    for episode, chunks in zip((ANN, BOB), batch(ANN, BOB).chunks, strict=True):
        expected = []
        for session in dict.fromkeys(one.session for one in episode.turns):
            turns = [one for one in episode.turns if one.session == session]
            expected += [
                tuple(TOKENS.chunk_ids(chunk.texts))
                for chunk in chunk_session(turns, 96, lambda text: len(TOKENS.ids(text)))
            ]
        assert list(chunks) == expected


def test_begin_of_the_tokenizer_begins_every_chunk_and_counts():
    collator = Collator(BASE, CONFIG)
    collator._tokens.begin = (1,)
    (chunks,) = collator.batch([BOB], 1, random.Random(0)).chunks
    assert all(chunk[0] == 1 and len(chunk) <= 96 for chunk in chunks)


def test_tokens_are_counted_without_padding():
    made = batch(ANN, BOB)
    chunk_tokens = sum(len(chunk) for person in made.chunks for chunk in person)
    lengths = [row.stop - row.start for person in range(2) for row in rows(made.asked, person)]
    assert made.tokens == chunk_tokens + sum(lengths)
    assert sorted(span.length for span in made.asked.spans) == sorted(lengths)


# Packing changes no loss


def test_packed_loss_equals_every_question_alone(tmp_path):
    generator = tiny_generator(CONFIG.generator)
    injector = Injector(BASE.model, generator)
    frozen = FrozenBase(injector, tmp_path)
    try:
        made = batch(ANN, BOB)
        rows_of = made.asked
        readouts = 3 * read_outs(frozen, generator, made)
        total = weight = 0.0
        for person in range(2):
            for row in rows(rows_of, person):
                ids = rows_of.ids[person : person + 1, row]
                with injector.apply(readouts[person : person + 1]), torch.no_grad():
                    logits = BASE.model(ids).logits[0]
                nll = torch.nn.functional.cross_entropy(
                    logits, rows_of.targets[person, row], reduction="none"
                )
                total += float((nll * rows_of.weights[person, row]).sum())
                weight += float(rows_of.weights[person, row].sum())
        found = Answers(injector, frozen).loss(readouts, rows_of)
        assert float(found.loss) == pytest.approx(total / weight, abs=1e-4)
    finally:
        injector.detach()


# What is asked


def test_objectives_are_drawn_by_weight_and_the_rest_are_questions():
    weights = {"questions": 1.0, "recitation": 1.0, "abstention": 1.0}
    collator = Collator(BASE, tiny_training(objectives=weights))
    episode = make_episode(random.Random(0), Split.TRAIN, facts=3, chatter=0.0)
    made = collator.batch([episode], 60, random.Random(0)).asked
    prompts = Counter(prompt_of(made, span) for span in made.spans)
    kinds = Counter(
        "recitation" if "Complete" in prompt else "abstention" if prompt in untold(episode) else "q"
        for prompt in prompts.elements()
    )
    assert all(10 < kinds[kind] < 30 for kind in ("recitation", "abstention", "q"))


def test_what_concerns_nobody_is_asked_apart():
    weights = {"questions": 1.0, "locality": 1.0, "chatter": 1.0}
    people = [
        make_episode(random.Random(seed), Split.TRAIN, facts=2, chatter=1.0) for seed in range(2)
    ]
    made = Collator(BASE, tiny_training(objectives=weights)).batch(people, 2, random.Random(0))
    assert made.unrelated is not None
    assert len(made.unrelated.spans) == 2
    assert len(made.asked.spans) == 4
    assert batch(ANN, BOB).unrelated is None


def prompts(made: Rows) -> list[str]:
    return [prompt_of(made, span) for span in made.spans]


def prompt_of(made: Rows, span: Span) -> str:
    text = TOKENS.text(made.ids[span.person, span.start : span.start + span.length].tolist())
    return text.removeprefix("user\n").partition("\nassistant\n")[0]


def untold(episode: Episode) -> set[str]:
    return {question.text for question in episode.untold}


# Where people come from


def test_people_are_those_of_the_steps_phase():
    make = people_source(CONFIG, Split.TRAIN)
    episodes = make(random.Random(0), 4, 3)
    assert len(episodes) == 3
    assert all(1 <= len(episode.questions) <= 2 for episode in episodes)
    assert make(random.Random(0), 4, 3) == episodes
    assert make(random.Random(1), 4, 3) != episodes


def test_people_are_met_again():
    make = people_source(tiny_training(pool=3), Split.TRAIN)
    met = [episode for seed in range(20) for episode in make(random.Random(seed), 0, 2)]
    assert len(set(met)) == 3
    fresh = people_source(tiny_training(pool=3), Split.TEST)
    assert len({one for seed in range(20) for one in fresh(random.Random(seed), 0, 2)}) == 40


def test_every_session_has_a_fact():
    phase = replace(PHASE, facts=(1, 1), sessions=(3, 3))
    make = people_source(tiny_training(phases=(phase,)), Split.TRAIN)
    (episode,) = make(random.Random(0), 0, 1)
    assert len(episode.questions) == 3


def test_phase_may_limit_the_kinds_of_facts():
    phase = replace(PHASE, facts=(1, 3), kinds=3)
    make = people_source(tiny_training(phases=(phase,)), Split.TRAIN)
    found = {
        one.kind
        for seed in range(3)
        for episode in make(random.Random(seed), 0, 10)
        for one in episode.questions
    }
    assert len(found) == 3


@pytest.mark.parametrize("seed", range(5))
def test_swap_pairs_share_kinds_but_no_values(seed):
    own, other = swap_pairs(CONFIG, random.Random(seed), 0)
    assert len(own) == len(other) == PHASE.people
    for mine, theirs in zip(own, other, strict=True):
        assert kinds(mine) == kinds(theirs)
        assert not values(mine) & values(theirs)


def test_swap_pairs_chatter_as_much_as_their_phase():
    phase = replace(PHASE, people=8, facts=(4, 4), chatter=(0.0, 0.0))
    own, other = swap_pairs(tiny_training(phases=(phase,)), random.Random(0), 0)
    said = [sum(len(episode.turns) for episode in people) for people in (own, other)]
    assert said[1] < 1.5 * said[0]
    phase = replace(phase, chatter=(3.0, 3.0))
    own, other = swap_pairs(tiny_training(phases=(phase,)), random.Random(0), 0)
    chatty = [sum(len(episode.turns) for episode in people) for people in (own, other)]
    assert chatty[0] > 2 * said[0] and chatty[1] > 2 * said[1]


def kinds(episode: Episode) -> Counter:
    return Counter((one.kind, one.about) for one in episode.questions)


def values(episode: Episode) -> set[str]:
    return {one.value.casefold() for one in episode.questions}


def test_dialogues_are_asked_about_their_facts(tmp_path):
    config = tiny_training(phases=(replace(PHASE, sessions=(1, 2)),))
    make = dialogue_source(config, [write_dialogues(tmp_path / "d.jsonl", 4)])
    assert len(make(random.Random(0), 0, 2)) == 2
    episodes = make(random.Random(0), 0, 6)
    assert len(episodes) == 4
    for episode in episodes:
        assert episode.questions
        assert all(one.value in one.answer for one in episode.questions)
        assert list(episode.turns) == sorted(episode.turns, key=lambda one: one.order)
        assert len({one.id for one in episode.turns}) == len(episode.turns)


def test_dialogues_without_facts_are_passed_over(tmp_path):
    path = write_dialogues(tmp_path / "d.jsonl", 1)
    silent = write_dialogues(tmp_path / "silent.jsonl", 4, facts=False)
    path.write_text(path.read_text() + silent.read_text())
    make = dialogue_source(CONFIG, [path])
    for seed in range(5):
        assert [bool(one.questions) for one in make(random.Random(seed), 0, 2)] == [True]
    with pytest.raises(InvalidInput, match=r"^dialogues: hold nothing to ask for questions"):
        dialogue_source(CONFIG, [silent])(random.Random(0), 0, 2)


def test_dialogues_without_facts_can_be_recited(tmp_path):
    recited = {"reconstruction": 0.5, "completion": 0.5}
    phases = (replace(PHASE, objectives=recited), replace(PHASE, until_step=6))
    config = tiny_training(phases=phases)
    make = dialogue_source(config, [write_dialogues(tmp_path / "d.jsonl", 3, facts=False)])
    episodes = make(random.Random(0), 0, 3)
    assert [one.questions for one in episodes] == [()] * 3
    made = Collator(BASE, config).batch(episodes, 4, random.Random(0), weights=recited).asked
    assert len(made.spans) == 12
    assert not made.is_value.any()
    assert all(
        "What exactly did" in prompt or prompt.startswith("Hello") for prompt in prompts(made)
    )
    with pytest.raises(InvalidInput, match="questions"):
        make(random.Random(0), PHASE.until_step, 3)


def test_what_finds_nothing_to_ask_leaves_it_to_the_others():
    episode = make_episode(random.Random(0), Split.TRAIN, facts=3, chatter=0.0)
    collator = Collator(BASE, CONFIG)
    for weights in ({"completion": 1.0}, {"completion": 9.0, "questions": 1.0}):
        made = collator.batch([episode], 3, random.Random(0), weights=weights).asked
        assert {*prompts(made)} <= {question.text for question in episode.questions}
    made = collator.batch(
        [episode], 3, random.Random(0), weights={"completion": 9.0, "reconstruction": 1.0}
    ).asked
    assert all("What exactly did" in prompt for prompt in prompts(made))


def test_missing_dialogues(tmp_path):
    with pytest.raises(NotFound):
        dialogue_source(CONFIG, [tmp_path / "none.jsonl"])


@pytest.mark.parametrize(("share", "expected"), [(0.0, {"a"}), (1.0, {"b"}), (0.5, {"a", "b"})])
def test_sources_are_mixed_by_their_share(share, expected):
    make = mixed(
        [(lambda rng, step, n: ["a"] * n, 1 - share), (lambda rng, step, n: ["b"] * n, share)]
    )
    rng = random.Random(0)
    drawn = [make(rng, step, 4) for step in range(50)]
    assert {one for people in drawn for one in people} == expected
    assert all(len(people) == 4 for people in drawn)
    assert Counter(one for people in drawn for one in people)["b"] == pytest.approx(
        200 * share, abs=25
    )


def test_nobody_is_made_and_then_dropped():
    made = Counter()

    def source(name):
        def make(rng, step, count):
            made[name] += count
            return [name] * count

        return make

    make = mixed([(source("a"), 0.5), (source("b"), 0.5)])
    people = [one for step in range(20) for one in make(random.Random(step), step, 6)]
    assert Counter(people) == made


def test_dialogues_come_with_the_questions_written_about_them(tmp_path):
    said = [
        [{"speaker": "A", "text": f"Session {number}."}, {"speaker": "B", "text": "Yes."}]
        for number in range(4)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"id": "test_0", "split": "test", "sessions": said}) + "\n")
    config = tiny_training(phases=(replace(PHASE, sessions=(2, 2)),))
    make = dialogue_source(config, [path])
    for seed in range(10):
        (episode,) = make(random.Random(seed), 0, 1)
        sessions = {
            int(turn.text.split()[1][0]) for turn in episode.turns if "Session" in turn.text
        }
        assert len(sessions) == 2
        assert all(one.kind == "written" and one.value in one.answer for one in episode.questions)
        assert all(turn.session == f"s{max(sessions) + 1}" for turn in episode.upcoming)
    days = {turn.time for seed in range(10) for turn in make(random.Random(seed), 0, 1)[0].turns}
    assert len(days) == 8  # the same dates whichever sessions are taken: chunks recur
