from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from memory_service.domain.dialogues import dialogue_from_record
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message
from memory_service.domain.turns import Role
from memory_service.errors import InvalidInput
from memory_service.evaluation import answering
from memory_service.evaluation.answering import SAMPLING
from memory_service.evaluation.flops import ModelFlops
from memory_service.evaluation.methods import METHODS, memorise, own, swap, transcript_prompt
from memory_service.evaluation.report import compare, summarise
from memory_service.evaluation.runner import Result, run
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.tasks import recall
from memory_service.evaluation.tasks.dmr import dmr_samples
from memory_service.evaluation.tasks.longmemeval import longmemeval_samples
from memory_service.evaluation.tasks.membench import membench_samples
from memory_service.evaluation.tasks.recall import recall_grid, recall_samples
from memory_service.services.compute import Compute
from memory_service.services.remember import Remember
from memory_service.training.people import Split, split_of
from tests.helpers.fakes import FakeEncoder, FakeStore, sequential
from tests.helpers.histories import turn
from tests.helpers.tiny_generator import tiny_generator
from tests.helpers.tiny_inference import tiny_inference
from tests.helpers.tiny_model import tiny_llama

ENCODER = FakeEncoder()


def no_report(done: int, all_of: int) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Read:
    """What a fake reader knows of a prompt."""

    messages: Sequence[Message]
    readouts: Tensor | None
    prompt_tokens: int
    first_token_s: float = 0.25


class PerfectReader:
    """Knows whose adapter it is given, and answers that person's questions right.

    It also reads a history: whose turns stand in the prompt, that person is known.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._known = [
            (memorise(ENCODER, sample.turns), sample.turns[0].text, asked.question, asked.answer)
            for sample in samples
            for asked in sample.asked
        ]
        self.batches: list[int] = []
        self.room = 10**6

    def fits(self, messages, new_tokens) -> bool:
        return self._count(messages) <= self.room

    def read(self, messages, readouts, like=None) -> Read:
        assert like is None or like.readouts is readouts
        return Read(messages, readouts, self._count(messages))

    def answer(self, readings, sampling) -> list[Generation]:
        assert sampling == SAMPLING
        self.batches.append(len(readings))
        texts = [self._answer(one.messages, one.readouts) for one in readings]
        return [Generation(text, 1, 3, 0.1, 0.5) for text in texts]

    def log_likelihood(self, reading, answer) -> float:
        return -0.1 if self._answer(reading.messages, reading.readouts) == answer else -5.0

    def _count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    def _answer(self, prompt: Sequence[Message], readouts: Tensor | None) -> str:
        for known, first_turn, question, answer in self._known:
            remembers = readouts is not None and readouts.equal(known)
            reads = any(first_turn in message.content for message in prompt[:-1])
            if prompt[-1].content == question and (remembers or reads):
                return answer
        return "unknown"


class BlindReader(PerfectReader):
    """Has no memory and reads nothing."""

    def _answer(self, prompt: Sequence[Message], readouts: Tensor | None) -> str:
        return "unknown"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return recall_samples(4, facts=4, sessions=2, chatter=0.2, seed=3)


@pytest.fixture(scope="module")
def flops() -> ModelFlops:
    return ModelFlops(tiny_llama(), tiny_generator())


SCORED = [name for name in METHODS if name != "embedding"]  # needs weights that are large


@pytest.fixture
def ask(flops):
    """Run methods on samples and return all results."""

    def answers(samples, methods, reader, report=no_report, done=()) -> list[Result]:
        return list(run(samples, methods, ENCODER, reader, flops, report, done))

    return answers


def scores(results: list[Result], methods: Sequence[str] = SCORED) -> dict[str, tuple[float, ...]]:
    found = {}
    for method in methods:
        report = summarise(results, method, 1)
        assert report.value_recall is not None
        found[method] = (report.f1.mean, report.exact, report.value_recall.mean, report.rouge_l)
    return found


# Running


def test_perfect_memory_scores_1_and_nothing_else_does(samples, ask):
    found = scores(ask(samples, SCORED, PerfectReader(samples)))
    perfect, nothing = (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)
    assert found["own"] == found["history"] == found["own+bm25"] == perfect
    assert found["none"] == found["swap"] == nothing
    assert nothing < found["bm25"] <= perfect  # where it shows the turn that the fake knows


def test_perfect_memory_is_compared_as_such(samples, ask):
    comparison = compare(ask(samples, ["own", "swap"], PerfectReader(samples)), 1)
    assert comparison is not None
    assert comparison.f1_difference.mean == comparison.f1_difference.low == 1.0
    assert comparison.likelier.low == 1.0


def test_blind_model_scores_0_everywhere(samples, ask):
    results = ask(samples, SCORED, BlindReader(samples))
    assert set(scores(results).values()) == {(0.0, 0.0, 0.0, 0.0)}
    comparison = compare(results, 1)
    assert comparison is not None
    assert comparison.f1_difference.high == comparison.likelier.high == 0.0


def test_shuffled_golds_score_like_swap(samples, ask):
    """Where the expected answers are the next person's, knowing the person helps no more."""
    answers = [[one.answer for one in sample.asked] for sample in samples]
    shuffled = [
        replace(
            sample,
            asked=[
                replace(one, answer=answer, value=answer)
                for one, answer in zip(sample.asked, others, strict=False)
            ],
        )
        for sample, others in zip(samples, answers[1:] + answers[:1], strict=True)
    ]
    found = scores(ask(shuffled, ["own", "swap"], PerfectReader(samples)), ["own", "swap"])
    assert found["own"][1:3] == found["swap"][1:3] == (0.0, 0.0)


def test_results_say_what_was_asked_and_what_it_cost(samples, ask, flops):
    methods = ["none", "own", "history", "last_k", "bm25"]
    results = ask(samples[:1], methods, PerfectReader(samples))
    asked = samples[0].asked
    assert [one.question for one in results] == len(methods) * [one.question for one in asked]
    by_method = {method: [one for one in results if one.method == method] for method in methods}
    said = [turn.text for turn in samples[0].turns]
    for method, found in by_method.items():
        for one, result in zip(asked, found, strict=True):
            assert (result.expected, result.value) == (one.answer, one.value)
            assert result.prompt[-1]["content"] == one.question
            shown = sum(text in result.prompt[0]["content"] for text in said)
            assert shown == {"history": len(said), "last_k": 8, "bm25": 8}.get(method, 0)
            assert result.groups["type"] == one.groups["type"]
            adapted = method == "own"
            assert result.flops == flops.answering(result.prompt_tokens, 3, adapted=adapted)
    none, own, history, last, bm25 = by_method.values()
    text_bytes = sum(len(text.encode()) for text in said)
    assert [rows[0].kept_bytes for rows in (none, own, history)] == [0, 2 * 4, text_bytes]
    assert last[0].kept_bytes < text_bytes < bm25[0].kept_bytes
    assert own[0].write_flops > 0 == history[0].write_flops


def test_only_the_first_question_of_a_person_is_timed(samples, ask):
    results = ask(samples[:1], ["own"], PerfectReader(samples))
    times = [(one.first_token_s, one.again_s, one.total_s) for one in results]
    first, others = times[0], times[1:]
    assert first[0] is not None and first[0] >= 0.25
    assert first[1] is None
    assert first[2] == pytest.approx(first[0] + 0.5)
    assert others
    assert all(one[0] is one[2] is None and one[1] >= 0.25 for one in others)


def test_progress_is_reported(samples, ask):
    steps = []
    ask(samples[:2], ["none", "own"], BlindReader(samples), lambda *step: steps.append(step))
    assert steps == [(number, 4) for number in range(1, 5)]


def test_what_is_done_is_not_asked_again(samples, ask):
    done = [(samples[0].id, "own"), (samples[1].id, "none")]
    results = ask(samples[:2], ["none", "own"], BlindReader(samples), done=done)
    assert {(one.sample, one.method) for one in results} == {
        (samples[0].id, "none"),
        (samples[1].id, "own"),
    }


def test_batch_size_changes_no_score(samples, ask, monkeypatch):
    reader = PerfectReader(samples)
    together = ask(samples, ["own", "history"], reader)
    assert max(reader.batches) == len(samples[0].asked) - 1
    reader.batches.clear()
    monkeypatch.setattr(answering, "BATCH_PROMPT_TOKENS", 1)
    alone = ask(samples, ["own", "history"], reader)
    assert set(reader.batches) == {1}
    assert [(one.answer, one.log_likelihood) for one in alone] == [
        (one.answer, one.log_likelihood) for one in together
    ]


def test_history_that_is_too_long_loses_its_oldest_turns(samples, ask):
    reader = PerfectReader(samples)
    (whole, *_) = ask(samples[:1], ["history"], reader)
    reader.room = whole.prompt_tokens - 1
    (cut, *_) = ask(samples[:1], ["history"], reader)
    first, second = sorted(samples[0].turns, key=lambda one: one.order)[:2]
    assert first.text not in cut.prompt[0]["content"]
    assert second.text in cut.prompt[0]["content"]


def test_history_that_is_too_long_leaves_room_for_a_long_expected_answer(samples):
    tiny = tiny_inference()
    flops = ModelFlops(tiny.base.model, tiny.generator)
    said = [turn(number, f"It was number {number}.") for number in range(300)]
    asked = [Asked("Which?", "It was all of the numbers, " + "one after another, " * 10)]
    sample = replace(samples[0], turns=said, asked=asked)
    (result,) = run([sample], ["history"], tiny.encoder, tiny.reader, flops, no_report)
    assert 3500 < result.prompt_tokens <= 4096 - len(asked[0].answer)


def test_sample_without_questions_has_no_results(samples, ask):
    silent = replace(samples[0], asked=[])
    assert ask([silent], SCORED, BlindReader(samples)) == []


def test_question_without_a_value_has_no_value_recall(samples, ask):
    asked = [replace(one, value=None) for one in samples[0].asked]
    bare = replace(samples[0], asked=asked)
    results = ask([bare], ["own"], PerfectReader([bare]))
    assert [result.value_recall for result in results] == [None] * len(asked)
    assert all(result.exact for result in results)


def test_tiny_model_runs_the_whole_way(samples):
    tiny = tiny_inference()
    flops = ModelFlops(tiny.base.model, tiny.generator)
    results = list(run(samples[:1], SCORED, tiny.encoder, tiny.reader, flops, no_report))
    assert len(results) == len(SCORED) * len(samples[0].asked)
    assert all(0 <= result.f1 <= 1 and result.log_likelihood < 0 for result in results)
    assert all(result.prompt_tokens > 0 < result.flops for result in results)
    by_method = {
        method: [result.log_likelihood for result in results if result.method == method]
        for method in SCORED
    }
    assert by_method["own"] != by_method["none"] != by_method["swap"]
    assert by_method["bm25"] != by_method["own+bm25"]


# Methods


def test_own_and_swap_differ_in_the_adapter_only(samples):
    mine, other = own(samples[0], ENCODER), swap(samples[0], ENCODER)
    assert mine.prompt("Who?", lambda _: True) == other.prompt("Who?", lambda _: True)
    assert not mine.readouts.equal(other.readouts)
    assert other.readouts.equal(memorise(ENCODER, samples[0].swap_turns))


def test_history_is_a_transcript_in_order():
    turns = [turn(1, "I see."), turn(0, "My dog is Rex.")]
    system, asked = transcript_prompt(turns, "What is my dog called?")
    assert system.role == "system"
    assert system.content.endswith("User: My dog is Rex.\nAssistant: I see.")
    assert asked == Message("user", "What is my dog called?")


@pytest.mark.parametrize(
    "encoder", [FakeEncoder(), sequential()], ids=["independent", "sequential"]
)
async def test_memorising_is_what_remembering_stores(encoder, samples):
    compute, store = Compute(), FakeStore()
    try:
        await Remember(store, encoder, compute).append(MemoryId("ann"), samples[0].turns)
    finally:
        compute.close()
    stored = store.users[MemoryId("ann")].adapters[1].readouts
    assert stored.equal(memorise(encoder, samples[0].turns))
    shuffled = sorted(samples[0].turns, key=lambda one: one.text)
    assert stored.equal(memorise(encoder, shuffled))


def test_memorising_nothing():
    assert memorise(ENCODER, []).equal(ENCODER.read_out(torch.zeros(1, 2, 3, dtype=torch.int64)))


# Recall


@pytest.mark.parametrize("sessions", [1, 3])
def test_swap_has_the_same_kinds_of_facts_and_other_values(sessions):
    for sample in recall_samples(5, facts=6, sessions=sessions, chatter=0.0, seed=1):
        said = " ".join(one.text for one in sample.turns).casefold()
        others = " ".join(one.text for one in sample.swap_turns).casefold()
        assert len(sample.asked) >= 6
        for asked in sample.asked:
            assert asked.value is not None
            assert asked.value in asked.answer
            assert asked.value.casefold() in said
        assert sum(one.value.casefold() not in others for one in sample.asked if one.value) >= 5
        assert {one.session for one in sample.turns} == {one.session for one in sample.swap_turns}


def test_swap_asks_about_the_same_kinds(monkeypatch):
    pairs = []
    twin = recall.twin

    def watched(rng, split, episode, **options):
        other = twin(rng, split, episode, **options)
        pairs.append((episode, other))
        return other

    monkeypatch.setattr(recall, "twin", watched)
    recall_samples(5, facts=6, sessions=2, chatter=0.0, seed=1)
    assert len(pairs) == 5
    for mine, other in pairs:
        assert Counter((one.kind, one.about) for one in mine.questions) == Counter(
            (one.kind, one.about) for one in other.questions
        )
        values = [{one.value.casefold() for one in who.questions} for who in (mine, other)]
        assert not values[0] & values[1]


def test_swap_chatters_as_much():
    quiet = recall_samples(6, facts=6, sessions=1, chatter=0.0, seed=1)
    chatty = recall_samples(6, facts=6, sessions=1, chatter=3.0, seed=1)
    turns = [
        [sum(len(said) for said in side) for side in zip(*pairs, strict=True)]
        for pairs in (
            [(sample.turns, sample.swap_turns) for sample in samples] for samples in (quiet, chatty)
        )
    ]
    (quiet_own, quiet_swap), (chatty_own, chatty_swap) = turns
    assert quiet_swap < 1.4 * quiet_own
    assert chatty_own > 2 * quiet_own
    assert chatty_swap > 2 * quiet_swap


def test_values_were_held_out_of_training(samples):
    for sample in samples:
        assert all(split_of(one.value or "") is Split.TEST for one in sample.asked)


def test_people_are_a_function_of_seed_and_number():
    few = recall_samples(2, facts=3, sessions=1, chatter=0.5, seed=1)
    more = recall_samples(4, facts=3, sessions=1, chatter=0.5, seed=1)
    assert more[:2] == few
    assert recall_samples(2, facts=3, sessions=1, chatter=0.5, seed=2) != few


@pytest.mark.parametrize(
    "wrong", [{"people": 0}, {"facts": 0}, {"facts": 10_000}, {"sessions": 0}, {"chatter": -1.0}]
)
def test_recall_out_of_range(wrong):
    options = {"people": 1, "facts": 2, "sessions": 1, "chatter": 0.0, "seed": 1} | wrong
    people = options.pop("people")
    with pytest.raises(InvalidInput):
        recall_samples(people, **options)


# Deep Memory Retrieval


def dialogue(name: str, *answers: str | None):
    return dialogue_from_record(
        {
            "id": name,
            "sessions": [[{"speaker": "B", "text": f"I am {name}."}]],
            "questions": [
                {"question": f"q{number}", "answer": answer, "value": answer}
                for number, answer in enumerate(answers)
            ],
        }
    )


def test_swap_is_the_next_dialogue_with_questions():
    made = dmr_samples([dialogue("a", "1"), dialogue("b"), dialogue("c", "2", None)], None)
    assert [sample.id for sample in made] == ["a", "c"]
    assert [sample.swap_turns[0].text for sample in made] == ["I am c.", "I am a."]
    assert made[1].asked == [Asked("q0", "2", "2")]
    assert made[1].words == 3
    assert made[0].turns[0].role is Role.USER


def test_limit_of_dialogues():
    dialogues = [dialogue(name, "1") for name in "abc"]
    (only,) = dmr_samples(dialogues, 1)
    assert only.swap_turns[0].text == "I am b."


@pytest.mark.parametrize(
    "dialogues", [[], [dialogue("a", "1")], [dialogue("a", "1"), dialogue("b")]]
)
def test_too_few_dialogues(dialogues):
    with pytest.raises(InvalidInput, match="at least two"):
        dmr_samples(dialogues, None)


def test_answers_are_greedy():
    assert SAMPLING.temperature == 0


def test_further_sessions_follow_and_are_not_asked_about():
    plain = recall_samples(2, facts=3, sessions=1, chatter=0.2, seed=5)
    longer = recall_samples(2, facts=3, sessions=1, chatter=0.2, seed=5, further=6)
    for before, after in zip(plain, longer, strict=True):
        assert list(after.turns)[: len(before.turns)] == list(before.turns)
        assert after.asked == before.asked
        later = list(after.turns)[len(before.turns) :]
        assert len({turn.session for turn in later}) == 6
        assert min(turn.time for turn in later) > max(turn.time for turn in before.turns)
        assert len({turn.id for turn in after.turns}) == len(after.turns)
        assert list(after.swap_turns)[-len(later) :] == later


# Tasks


def recorded(name: str, **question: object):
    asked = {"question": "Where?", "answer": "Ghent", "asked_by": "A", **question}
    said = [{"speaker": "A", "text": "I moved to Ghent."}]
    return dialogue_from_record({"id": name, "sessions": [said], "questions": [asked]})


def test_groups_of_a_real_question():
    evidence = {"session": 1, "speaker": "B", "turn": 3}
    made = dmr_samples([recorded("a", evidence=evidence), recorded("b")], None)
    assert made[0].asked[0].groups == {"session": "1", "speaker": "assistant"}
    assert made[1].asked[0].groups == {}


def test_updates_know_what_is_outdated():
    wrong = {"wrong_answer": "Bruges", "category": "contradiction_update"}
    made = membench_samples([recorded("a", **wrong), recorded("b", **wrong)], None)
    (asked,) = made[0].asked
    assert (asked.outdated, asked.groups) == ("Bruges", {"type": "contradiction_update"})
    with pytest.raises(InvalidInput, match="wrong_answer"):
        membench_samples([recorded("a"), recorded("b")], None)


def test_long_memories_are_asked_on_their_day_and_spread_over_the_types():
    dated = {"question_date": "2023/04/10 (Mon) 23:07"}
    kinds = ["single"] * 4 + ["multi"] * 4
    rows = [recorded(f"q{n}", category=kind, **dated) for n, kind in enumerate(kinds)]
    rows.append(recorded("q8_abs", category="multi", **dated))
    made = longmemeval_samples(rows, 3)
    assert [one.id for one in made] == ["q0", "q3", "q6"]
    (asked,) = made[0].asked
    assert asked.question == "Today is 10 April 2023. Where?"
    last = longmemeval_samples(rows, None)[-1]
    assert last.asked[0].groups["type"] == "abstention"


def test_grid_has_people_of_every_combination():
    grid = recall_grid(2, facts=[2, 4], sessions=[1, 2], distances=[0, 3], chatter=0.0, seed=1)
    assert len({one.id for one in grid}) == len(grid) == 2 * 8
    for one in grid:
        groups = {
            name: int(one.asked[0].groups[name]) for name in ("facts", "sessions", "distance")
        }
        assert len(one.asked) >= groups["facts"]
        assert len({said.session for said in one.turns}) == groups["sessions"] + groups["distance"]
