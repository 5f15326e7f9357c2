import json
import math
import sys

import pytest

from memory_service.errors import ConfigurationError, InvalidInput
from memory_service.evaluation.flops import ModelFlops
from memory_service.evaluation.report import perplexity_ratio, prefer_right
from memory_service.evaluation.runner import run
from memory_service.evaluation.samples import Asked
from memory_service.evaluation.tasks import locality
from memory_service.evaluation.tasks.locality import Drift, locality_samples, measure_drift
from memory_service.evaluation.tasks.recall import recall_samples
from tests.helpers.tiny_inference import tiny_inference

EXCHANGES = [Asked(f"How is number {n}?", f"Number {n} is doing fine.") for n in range(8)]
PEOPLE = recall_samples(3, facts=2, sessions=1, chatter=0.0, seed=0)


def silent(done: int, total: int) -> None:
    pass


def test_everyone_is_asked_what_does_not_concern_them():
    samples = locality_samples(PEOPLE, EXCHANGES, 4, seed=1)
    assert [one.turns for one in samples] == [one.turns for one in PEOPLE]
    assert all(
        len(one.asked) == 4 and all(asked in EXCHANGES for asked in one.asked) for one in samples
    )
    assert samples == locality_samples(PEOPLE, EXCHANGES, 4, seed=1)
    assert samples != locality_samples(PEOPLE, EXCHANGES, 4, seed=2)
    with pytest.raises(InvalidInput, match="must be at least 9"):
        locality_samples(PEOPLE, EXCHANGES, 9, seed=1)


def test_drift_is_that_of_the_replies_tokens():
    tiny = tiny_inference()
    (sample,) = locality_samples(PEOPLE[:1], EXCHANGES, 3, seed=0)
    (drift,) = measure_drift([sample], tiny.encoder, tiny.backend, silent)
    replies = [one.answer for one in sample.asked]
    assert drift.tokens == sum(len(reply.encode()) for reply in replies)
    assert drift.on_nats != drift.off_nats
    assert math.exp(drift.off_nats / drift.tokens) > 50  # a random model of 259 tokens


def test_an_adapter_of_nothing_changes_nothing():
    tiny = tiny_inference()
    for b in tiny.generator.b:
        b.zero_()
    samples = locality_samples(PEOPLE, EXCHANGES, 3, seed=0)
    drifts = list(measure_drift(samples, tiny.encoder, tiny.backend, silent))
    assert perplexity_ratio(drifts, 0).mean == pytest.approx(1.0)


def test_ratio_weighs_people_by_their_tokens():
    drifts = [Drift("a", 100, 200.0, 190.0), Drift("b", 300, 600.0, 600.0)]
    ratio = perplexity_ratio(drifts, 0)
    assert ratio.mean == pytest.approx(math.exp(10 / 400))
    assert ratio.low == pytest.approx(1.0)
    assert ratio.high == pytest.approx(math.exp(0.1))
    with pytest.raises(InvalidInput):
        perplexity_ratio([], 0)


def test_exchanges_are_neighbouring_messages(tmp_path, monkeypatch):
    package = tmp_path / "made_up_chats"
    package.mkdir()
    (package / "__init__.py").touch()
    said = [["Hello.", "How are you?"], ["I am fine today."], ["Ok."], ["word " * 80]]
    messages = [[{"text": text} for text in turn] for turn in said]
    (package / "dataset.json").write_text(json.dumps({"x": {"messages": messages}}))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(locality, "DATASET", "made_up_chats")
    assert locality.read_exchanges() == [Asked("Hello. How are you?", "I am fine today.")]
    sys.modules.pop("made_up_chats", None)


def test_missing_dataset_says_what_to_install(monkeypatch):
    monkeypatch.setattr(locality, "DATASET", "no_such_package")
    with pytest.raises(ConfigurationError, match=r"memory-service\[eval\]"):
        locality.read_exchanges()


def test_right_over_outdated_is_counted_where_an_outdated_answer_is_known():
    tiny = tiny_inference()
    (person, *_) = PEOPLE
    asked = [Asked("Where do I live?", "In Rome.", None, "In Rome."), Asked("And now?", "In Oslo.")]
    sample = type(person)(person.id, person.turns, person.swap_turns, asked)
    flops = ModelFlops(tiny.base.model, tiny.generator)
    results = list(run([sample], ["own", "none"], tiny.encoder, tiny.reader, flops, silent))
    same, without = results[:2]
    assert same.outdated_log_likelihood == pytest.approx(same.log_likelihood)
    assert without.outdated_log_likelihood is None
    preference = prefer_right(results, "own", 0)
    assert preference is not None and preference.right.mean == 0.0
    assert prefer_right([without], "own", 0) is None
