"""Means of the four ways, and what a history's keys and values take."""

from types import SimpleNamespace

from memory_service.domain.dialogues import DialogueQuestion
from memory_service.evaluation.methods import METHODS
from memory_service.evaluation.side_by_side import (
    LABELS,
    Judged,
    Row,
    kv_cache_bytes,
    summarise,
)

QUESTION = DialogueQuestion("Who?", "Rex.", "Rex", None, None)


def judged(holds: bool | None, tokens: int, first_token_s: float) -> Judged:
    return Judged("text", tokens, first_token_s, holds, None if holds is None else 0.5)


def test_means_are_over_the_answers_that_can_be_judged() -> None:
    rows = [
        Row(QUESTION, {method: judged(True, 10, 0.1) for method in LABELS}),
        Row(QUESTION, {method: judged(False, 30, 0.3) for method in LABELS}),
        Row(QUESTION, {method: judged(None, 20, 0.2) for method in LABELS}),
    ]
    none, own, _, history = summarise(rows, {"none": 0, "own": 1, "swap": 2, "history": 3})
    assert [none.method, own.method, history.method] == ["none", "own", "history"]
    assert (own.holding, own.judged, own.mean_f1, own.kept_bytes) == (1, 2, 0.5, 1)
    assert own.mean_prompt_tokens == 20
    assert abs((own.mean_first_token_s or 0) - 0.2) < 1e-9


def test_nothing_to_average_is_told_as_nothing() -> None:
    rows = [Row(QUESTION, {method: judged(None, 1, 0.1) for method in LABELS})]
    for one in summarise(rows, dict.fromkeys(LABELS, 0)):
        assert (one.judged, one.mean_f1) == (0, None)


def test_the_methods_are_the_runners() -> None:
    assert set(LABELS) <= set(METHODS)


def test_keys_and_values_of_a_history() -> None:
    config = SimpleNamespace(
        num_hidden_layers=30, num_key_value_heads=3, num_attention_heads=9, hidden_size=576
    )
    # 2 (keys, values) x 30 layers x 3 heads x 64 numbers x 2 bytes
    assert kv_cache_bytes(config, 2, 1000) == 2 * 30 * 3 * 64 * 2 * 1000
    config.head_dim = 128
    assert kv_cache_bytes(config, 2, 1000) == 2 * 30 * 3 * 128 * 2 * 1000
