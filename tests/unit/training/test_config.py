import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from memory_service.errors import ConfigurationError, NotFound
from memory_service.generator.config import SvdConfig
from memory_service.generator.generator import Generator
from memory_service.generator.injection import Injector
from memory_service.training.config import Phase, TrainingConfig, load_training_config
from tests.helpers.tiny_generator import tiny_config
from tests.helpers.tiny_training import PHASE, tiny_training

OPTIONAL = (
    "first_token_weight",
    "pool",
    "objectives",
    "drift_weight",
    "average_decay",
    "dialogues",
    "dialogue_share",
    "initial",
)

SHIPPED = sorted(
    Path(str(resources.files("memory_service.training"))).joinpath("configs").glob("*.json")
)


def content(**changes: object) -> dict[str, object]:
    return json.loads(tiny_training().to_json()) | changes


def phase(**changes: object) -> list[dict[str, object]]:
    return [content()["phases"][0] | changes]  # type: ignore[index]


# Reading


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    config = load_training_config(path)
    assert TrainingConfig.from_json(config.to_json()) == config
    assert config.phases[-1].until_step >= config.steps
    assert config.generator.encoding.dtype == "bfloat16"


def test_there_is_a_config_for_each_size():
    assert {path.stem: load_training_config(path).base_model for path in SHIPPED} == {
        "smollm2-135m": "smollm2-135m-instruct",
        "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.2",
    }


def test_mistral_has_the_shape_of_the_paper_and_fits_the_real_model():
    (path,) = [path for path in SHIPPED if path.stem == "mistral-7b-instruct"]
    config = load_training_config(path).generator
    assert config.readout == SvdConfig(rank=128)
    assert (config.key_width, config.value_width, config.alpha) == (1024, 1024, 64.0)
    assert config.modules == ("self_attn.o_proj",)
    with torch.device("meta"):  # shapes without memory; transformers' defaults are those of 7B
        Injector(MistralForCausalLM(MistralConfig()), Generator(config)).detach()
    assert len(config.layers) == MistralConfig().num_hidden_layers


@pytest.mark.parametrize(
    "config",
    [
        tiny_training(),
        tiny_training(generator=tiny_config(SvdConfig(rank=4))),
        tiny_training(dialogues=("msc.jsonl",), dialogue_share=0.5, initial="first.safetensors"),
        tiny_training(objectives={"questions": 0.5, "locality": 0.1}, drift_weight=2.0, pool=7),
    ],
)
def test_round_trip(config):
    assert TrainingConfig.from_json(config.to_json()) == config


def test_what_may_be_left_out():
    written = content()
    for name in OPTIONAL:
        del written[name]
    assert TrainingConfig.from_json(json.dumps(written)) == tiny_training()


# Errors


@pytest.mark.parametrize("text", ["", "{", "null", "5", '"text"', "[]", "[1]", "{}", "true"])
def test_text_that_is_no_config(text):
    with pytest.raises(ConfigurationError, match=r"^training config: cannot be read"):
        TrainingConfig.from_json(text)


@pytest.mark.parametrize("field", [name for name in content() if name not in OPTIONAL])
def test_missing_field_is_named(field):
    written = content()
    del written[field]
    with pytest.raises(ConfigurationError, match=field):
        TrainingConfig.from_json(json.dumps(written))


def test_unknown_field_is_named():
    with pytest.raises(ConfigurationError, match="learning_rte"):
        TrainingConfig.from_json(json.dumps(content(learning_rte=0.1)))


def test_missing_and_unknown_field_of_a_phase_are_named():
    for name in ("people", "facts"):
        phases = phase()
        del phases[0][name]
        with pytest.raises(ConfigurationError, match=name):
            TrainingConfig.from_json(json.dumps(content(phases=phases)))
    with pytest.raises(ConfigurationError, match="chater"):
        TrainingConfig.from_json(json.dumps(content(phases=phase(chater=[0, 1]))))


BAD = {
    "base_model": [None, 5],
    "seed": ["1", 1.5, None, True, -1],
    "steps": [0, -1, "6", 6.0],
    "warmup_steps": [-1, "2", 0.5],
    "learning_rate": [0, -0.1, "fast", None, True, float("nan"), float("inf")],
    "value_weight": [0, -1, "3", float("nan")],
    "first_token_weight": [0, -1, "2", None],
    "phases": [[], {}, "phases", None, [5], ["phase"], phase() + phase()],
    "dialogues": [5, "a", [5]],
    "pool": [0, "7", 1.5],
    "average_decay": [-0.1, 1, "0.9", None],
    "drift_weight": [-1, "1", None],
    "objectives": [5, {}, {"locality": 1.0}, {"questions": 0}, {"questions": 1, "riddles": 1}],
    "dialogue_share": [-0.1, 1.1, "half", None, float("nan")],
    "initial": [5],
    "generator": [None, 5, "x", [], {}, {"readout": {"kind": "RidgeConfig"}}],
}
BAD_IN_PHASE = {
    "until_step": [0, "3", 1.5, None, True],
    "people": [0, -1, "2", 2.5],
    "questions": [0, "2"],
    "kinds": [0, "3", 1.5, True],
    "objectives": [
        5,
        {},
        {"questions": 0},
        {"riddles": 1},
        {"completion": -1},
        {"completion": "1"},
    ],
    "facts": [3, None, [], [1], [1, 2, 3], [2, 1], [-1, 2], [1.5, 2], ["1", "2"], "12"],
    "sessions": [[0, 1], [2, 1], [1], 1, [1.0, 2]],
    "chatter": [0.5, [0.5], [0.5, 0.1], [-0.1, 0], ["0", "1"], [0, float("inf")]],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
def test_bad_value(field, value):
    with pytest.raises(ConfigurationError, match=r"training/configs|checkpoint"):
        TrainingConfig.from_json(json.dumps(content(**{field: value})))


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in BAD_IN_PHASE.items() for value in values],
)
def test_bad_value_in_a_phase(field, value):
    with pytest.raises(ConfigurationError, match="memory_service/training/configs"):
        TrainingConfig.from_json(json.dumps(content(phases=phase(**{field: value}))))


def test_bad_value_is_named():
    with pytest.raises(ConfigurationError, match=r"^training config: steps is '6' and must be"):
        TrainingConfig.from_json(json.dumps(content(steps="6")))


def test_missing_file(tmp_path):
    with pytest.raises(NotFound, match=r"none\.json"):
        load_training_config(tmp_path / "none.json")


def test_unreadable_file(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00{")
    for path in (tmp_path, tmp_path / "binary.json"):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            load_training_config(path)


# Phases


def test_a_phase_may_ask_other_things_than_the_run():
    recited = {"reconstruction": 1.0, "completion": 0.5}
    phases = (replace(PHASE, objectives=recited), replace(PHASE, until_step=6))
    config = tiny_training(phases=phases, objectives={"questions": 2.0})
    assert [config.objectives_at(step) for step in (0, 2, 3, 9)] == [
        *[recited] * 2,
        *[{"questions": 2.0}] * 2,
    ]
    assert TrainingConfig.from_json(config.to_json()) == config
    assert hash(phases[0]) == hash(PHASE)  # the same people, asked something else


def test_phase_of_a_step():
    first, second = tiny_training().phases
    config = tiny_training()
    assert [config.phase(step) for step in (0, 2, 3, 5)] == [first, first, second, second]
    assert config.phase(1000) == second


def test_phase_holds_what_it_was_given():
    assert Phase(**vars(PHASE)) == PHASE
