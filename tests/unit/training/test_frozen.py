import random
from dataclasses import replace

import pytest
import torch

from memory_service.errors import NumericalError
from memory_service.generator.config import Association
from memory_service.generator.hidden_states import hidden_states
from memory_service.generator.injection import Injector
from memory_service.training import frozen
from memory_service.training.data import Collator
from memory_service.training.frozen import FrozenBase, KeptTensors, split_decoder
from memory_service.training.people import Split, make_episode
from tests.helpers.tiny_generator import DOWN_PROJ, tiny_config, tiny_generator
from tests.helpers.tiny_model import tiny_llama
from tests.helpers.tiny_training import ENCODING, small_base, tiny_training

CHUNKS = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8, 9, 10, 11]]


def frozen_base(
    folder, association=Association.NEXT_TOKEN, layers=(1,), line_end=None
) -> FrozenBase:
    encoding = replace(ENCODING, association=association, line_end=line_end)
    config = tiny_config(modules=(DOWN_PROJ,), encoding=encoding, layers=layers)
    return FrozenBase(Injector(tiny_llama(), tiny_generator(config)), folder)


@pytest.mark.parametrize(
    ("association", "line_end"),
    [(Association.SAME_TOKEN, None), (Association.NEXT_TOKEN, None), (Association.NEXT_TOKEN, 8)],
)
def test_chunks_are_the_hidden_states_of_each_alone(tmp_path, association, line_end):
    base = frozen_base(tmp_path, association, layers=(0, 1), line_end=line_end)
    for _ in range(2):  # computed, then kept
        for found, ids in zip(base.chunks(CHUNKS), CHUNKS, strict=True):
            alone = hidden_states(base._injector, torch.tensor([ids]))[0]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


def test_a_text_met_again_costs_no_pass(tmp_path, monkeypatch):
    base = frozen_base(tmp_path)
    first = base.chunks(CHUNKS)
    monkeypatch.setattr(base, "_encode", lambda ids, mask: pytest.fail("computed again"))
    for one, again in zip(first, base.chunks(CHUNKS), strict=True):
        assert one.equal(again)


def test_one_text_twice_in_a_call_is_computed_once(tmp_path, monkeypatch):
    base = frozen_base(tmp_path)
    seen = []
    encode = base._encode
    monkeypatch.setattr(
        base, "_encode", lambda ids, mask: seen.append(len(ids)) or encode(ids, mask)
    )
    first, second = base.chunks([CHUNKS[0], CHUNKS[0]])
    assert seen == [1]
    assert first.equal(second)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_halves_joined_are_the_decoder(at):
    model = tiny_llama()
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    lower, upper = split_decoder(model.get_decoder(), at)
    with torch.no_grad():
        hidden = lower(input_ids=ids, use_cache=False).last_hidden_state
        found = upper(inputs_embeds=hidden, use_cache=False).last_hidden_state
        expected = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    assert found.equal(expected)
    assert len(model.get_decoder().layers) == 2


def test_rows_are_the_input_of_the_first_adapted_layer(tmp_path):
    base = frozen_base(tmp_path)
    episodes = [make_episode(random.Random(n), Split.TRAIN, facts=2) for n in range(2)]
    rows = Collator(small_base(), tiny_training()).batch(episodes, 2, random.Random(0)).asked
    hidden = base.rows(rows)
    for span in rows.spans:
        place = slice(span.start, span.start + span.length)
        with torch.no_grad():
            output = base._injector.model(
                rows.ids[span.person, place][None], output_hidden_states=True
            )
        torch.testing.assert_close(
            hidden[span.person, place], output.hidden_states[1][0], atol=1e-5, rtol=1e-5
        )


def test_numbers_that_are_none_are_not_kept(tmp_path):
    base = frozen_base(tmp_path)
    base._injector.model.get_input_embeddings().weight.data[5] = torch.nan
    with pytest.raises(NumericalError, match="hidden states"):
        base.chunks(CHUNKS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_tensors_come_back_as_they_were(tmp_path, dtype):
    kept = KeptTensors(tmp_path, 10_000)
    tensors = {str(n): torch.randn(n, 3).to(dtype) for n in range(1, 5)}
    for key, tensor in tensors.items():
        kept.put(key, tensor)
    assert kept.get("none") is None
    for key, tensor in tensors.items():
        found = kept.get(key)
        assert found is not None and found.equal(tensor) and found.dtype == dtype
    assert not list(tmp_path.iterdir())  # the file has no name: a killed run leaves nothing


def test_beyond_the_limit_nothing_more_is_kept(tmp_path, monkeypatch):
    kept = KeptTensors(tmp_path, 40)
    kept.put("a", torch.ones(8))
    kept.put("b", torch.ones(8))
    assert kept.get("a") is not None
    assert kept.get("b") is None
    monkeypatch.setattr(frozen, "KEPT_BYTES", 0)
    base = frozen_base(tmp_path)
    first = base.chunks(CHUNKS)
    assert all(one.equal(again) for one, again in zip(first, base.chunks(CHUNKS), strict=True))


def test_a_full_disk_stops_the_keeping_and_not_the_run(tmp_path, monkeypatch):
    kept = KeptTensors(tmp_path, 1000)
    kept.put("a", torch.ones(8))

    class Full:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, content):
            raise OSError(28, "No space left on device")

    file = kept._file
    monkeypatch.setattr(kept, "_file", Full())
    kept.put("b", torch.ones(8))
    assert kept.get("b") is None
    assert kept.get("a").equal(torch.ones(8))
