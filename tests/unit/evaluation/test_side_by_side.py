"""Means of the four ways, and what a history's keys and values take."""

from types import SimpleNamespace

from memory_service.domain.dialogues import DialogueQuestion
from memory_service.evaluation.side_by_side import Answered, Row, Way, kv_cache_bytes, summarise

QUESTION = DialogueQuestion("Who?", "Rex.", "Rex", None, None)


def answered(holds: bool | None, tokens: int, first_token_s: float) -> Answered:
    return Answered("text", tokens, first_token_s, holds, None if holds is None else 0.5)


def test_means_are_over_the_answers_there_are() -> None:
    rows = [
        Row(QUESTION, {way: answered(True, 10, 0.1) for way in Way} | {Way.HISTORY: None}),
        Row(QUESTION, {way: answered(False, 30, 0.3) for way in Way}),
        Row(QUESTION, {way: answered(None, 20, 0.2) for way in Way} | {Way.HISTORY: None}),
    ]
    kept = {Way.NONE: 0, Way.OWN: 1, Way.SWAP: 2, Way.HISTORY: 3}
    none, own, swap, history = summarise(rows, kept)
    assert [one.way for one in (none, own, swap, history)] == list(Way)
    assert (own.holding, own.judged, own.mean_f1, own.kept_bytes) == (1, 2, 0.5, 1)
    assert own.mean_prompt_tokens == 20
    assert abs((own.mean_first_token_s or 0) - 0.2) < 1e-9
    assert (history.holding, history.judged, history.mean_prompt_tokens) == (0, 1, 30)


def test_nothing_to_average_is_told_as_nothing() -> None:
    rows = [Row(QUESTION, dict.fromkeys(Way))]
    for one in summarise(rows, dict.fromkeys(Way, 0)):
        assert (one.judged, one.mean_f1, one.mean_prompt_tokens) == (0, None, None)


def test_keys_and_values_of_a_history() -> None:
    config = SimpleNamespace(
        num_hidden_layers=30, num_key_value_heads=3, num_attention_heads=9, hidden_size=576
    )
    # 2 (keys, values) x 30 layers x 3 heads x 64 numbers x 2 bytes
    assert kv_cache_bytes(config, 2, 1000) == 2 * 30 * 3 * 64 * 2 * 1000
    config.head_dim = 128
    assert kv_cache_bytes(config, 2, 1000) == 2 * 30 * 3 * 128 * 2 * 1000
