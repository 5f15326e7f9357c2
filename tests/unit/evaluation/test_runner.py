import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from memory_service.domain.dialogues import dialogue_from_record
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Message
from memory_service.domain.turns import Role
from memory_service.errors import InvalidInput
from memory_service.evaluation import runner
from memory_service.evaluation.methods import METHODS, memorise, own, swap, transcript_prompt
from memory_service.evaluation.report import compare, summarise
from memory_service.evaluation.runner import SAMPLING, run, write_results
from memory_service.evaluation.samples import Asked, Sample
from memory_service.evaluation.tasks import recall
from memory_service.evaluation.tasks.dmr import dmr_samples
from memory_service.evaluation.tasks.recall import recall_samples
from memory_service.services.compute import Compute
from memory_service.services.remember import Remember
from memory_service.training.people import Split, split_of
from tests.helpers.fakes import FakeEncoder, FakeStore, sequential
from tests.helpers.histories import turn
from tests.helpers.tiny_inference import tiny_inference

ENCODER = FakeEncoder()


def no_report(done: int, all_of: int) -> None:
    pass


class PerfectBackend:
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

    def prompt_tokens(self, prompt: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in prompt)

    def answers(self, prompts, readouts, sampling) -> list[str]:
        assert sampling == SAMPLING
        self.batches.append(len(prompts))
        return [self._answer(*row) for row in zip(prompts, readouts, strict=True)]

    def log_likelihoods(self, prompts, answers, readouts) -> list[float]:
        return [
            -0.1 if self._answer(prompt, readout) == answer else -5.0
            for prompt, answer, readout in zip(prompts, answers, readouts, strict=True)
        ]

    def _answer(self, prompt: Sequence[Message], readouts: Tensor | None) -> str:
        for known, first_turn, question, answer in self._known:
            remembers = readouts is not None and readouts.equal(known)
            reads = any(first_turn in message.content for message in prompt[:-1])
            if prompt[-1].content == question and (remembers or reads):
                return answer
        return "unknown"


class BlindBackend(PerfectBackend):
    """Has no memory and reads nothing."""

    def _answer(self, prompt: Sequence[Message], readouts: Tensor | None) -> str:
        return "unknown"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return recall_samples(4, facts=4, sessions=2, chatter=0.2, seed=3)


def scores(samples: list[Sample], backend: PerfectBackend) -> dict[str, tuple[float, ...]]:
    results = list(run(samples, list(METHODS), ENCODER, backend, no_report))
    found = {}
    for method in METHODS:
        report = summarise(results, method, 1)
        assert report.questions == sum(len(sample.asked) for sample in samples)
        assert report.value_recall is not None
        found[method] = (report.f1.mean, report.exact, report.value_recall.mean)
    return found


# Running


def test_perfect_memory_scores_1_and_nothing_else_does(samples):
    found = scores(samples, PerfectBackend(samples))
    assert found["own"] == found["history"] == (1.0, 1.0, 1.0)
    assert found["none"] == found["swap"] == (0.0, 0.0, 0.0)


def test_perfect_memory_is_compared_as_such(samples):
    results = list(run(samples, ["own", "swap"], ENCODER, PerfectBackend(samples), no_report))
    comparison = compare(results, 1)
    assert comparison is not None
    assert comparison.f1_difference.mean == comparison.f1_difference.low == 1.0
    assert comparison.likelier.low == 1.0


def test_blind_model_scores_0_everywhere(samples):
    assert set(scores(samples, BlindBackend(samples)).values()) == {(0.0, 0.0, 0.0)}
    results = list(run(samples, ["own", "swap"], ENCODER, BlindBackend(samples), no_report))
    comparison = compare(results, 1)
    assert comparison is not None
    assert comparison.f1_difference.high == comparison.likelier.high == 0.0


def test_results_say_what_was_asked_and_what_it_cost(samples):
    backend = PerfectBackend(samples)
    results = list(run(samples[:1], ["none", "own", "history"], ENCODER, backend, no_report))
    asked = samples[0].asked
    assert [one.question for one in results] == 3 * [one.question for one in asked]
    for number, result in enumerate(results):
        one = asked[number % len(asked)]
        assert (result.sample, result.expected, result.value) == (
            samples[0].id,
            one.answer,
            one.value,
        )
        assert result.write_s >= 0
    tokens = [result.prompt_tokens for result in results]
    few, many = tokens[: 2 * len(asked)], tokens[2 * len(asked) :]
    assert few == 2 * [len(one.question.split()) for one in asked]
    said = sum(len(turn.text.split()) for turn in samples[0].turns)
    assert min(many) > said


def test_progress_is_reported(samples):
    steps = []
    results = run(
        samples[:2],
        ["none", "own"],
        ENCODER,
        BlindBackend(samples),
        lambda *step: steps.append(step),
    )
    assert steps == []
    assert list(results)
    assert steps == [(number, 4) for number in range(1, 5)]


def test_long_prompts_are_asked_in_smaller_batches(samples, monkeypatch):
    backend = PerfectBackend(samples)
    list(run(samples[:1], ["own"], ENCODER, backend, no_report))
    assert backend.batches == [len(samples[0].asked)]
    monkeypatch.setattr(runner, "BATCH_PROMPT_TOKENS", 1)
    backend.batches.clear()
    results = list(run(samples[:1], ["own"], ENCODER, backend, no_report))
    assert backend.batches == [1] * len(samples[0].asked)
    assert all(result.exact for result in results)


def test_sample_without_questions_has_no_results(samples):
    silent = replace(samples[0], asked=[])
    assert list(run([silent], list(METHODS), ENCODER, BlindBackend(samples), no_report)) == []


def test_question_without_a_value_has_no_value_recall(samples):
    asked = [replace(one, value=None) for one in samples[0].asked]
    bare = replace(samples[0], asked=asked)
    results = list(run([bare], ["own"], ENCODER, PerfectBackend([bare]), no_report))
    assert [result.value_recall for result in results] == [None] * len(asked)
    assert all(result.exact for result in results)


def test_results_are_written_as_they_come(samples, tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    written = []

    def results():
        for result in run(samples[:1], ["own"], ENCODER, PerfectBackend(samples), no_report):
            yield result
            written.append(len(path.read_text().splitlines()))

    kept = write_results(results(), path)
    assert written == list(range(1, len(kept) + 1))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        asdict(result) for result in kept
    ]


def test_tiny_model_runs_the_whole_way(samples):
    tiny = tiny_inference()
    results = list(run(samples[:1], list(METHODS), tiny.encoder, tiny.backend, no_report))
    assert len(results) == len(METHODS) * len(samples[0].asked)
    assert all(0 <= result.f1 <= 1 and result.log_likelihood < 0 for result in results)
    by_method = {
        method: [result.log_likelihood for result in results if result.method == method]
        for method in METHODS
    }
    assert by_method["own"] != by_method["none"] != by_method["swap"]


# Methods


def test_own_and_swap_differ_in_the_adapter_only(samples):
    mine, other = own(samples[0], ENCODER), swap(samples[0], ENCODER)
    assert mine.prompts == other.prompts
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
