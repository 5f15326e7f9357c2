import json
from dataclasses import fields, replace

import pytest
import torch

from memory_service.errors import ConfigurationError
from memory_service.generator.config import (
    Encoding,
    EncodingConfig,
    GeneratorConfig,
    RidgeConfig,
    SvdConfig,
)

CONFIG = GeneratorConfig(
    d_model=32,
    layers=(1, 4),
    modules=("self_attn.o_proj", "mlp.down_proj"),
    d_in=(32, 64),
    d_out=(32, 32),
    key_width=8,
    value_width=6,
    alpha=12.0,
    readout=RidgeConfig(),
)

FINE = EncodingConfig(grid_exponent=-24)

VARIANTS = [
    CONFIG,
    replace(CONFIG, readout=SvdConfig(rank=5, tolerance=1e-4), encoding=FINE),
    replace(
        CONFIG,
        encoding=EncodingConfig(
            encoding=Encoding.SEQUENTIAL,
            chunk_tokens=17,
            dtype="float32",
            threads=3,
            grid_exponent=-32,
        ),
    ),
]


def changed(**change: object) -> str:
    """CONFIG as JSON with fields changed, or left out where the value is None."""
    content = json.loads(CONFIG.to_json()) | change
    return json.dumps({key: value for key, value in content.items() if value is not None})


@pytest.mark.parametrize("config", VARIANTS)
def test_json_round_trip(config: GeneratorConfig) -> None:
    read = GeneratorConfig.from_json(config.to_json())
    assert read == config
    assert type(read.readout) is type(config.readout)
    assert read.encoding.encoding is config.encoding.encoding
    assert read.to_json() == config.to_json()
    assert hash(read) == hash(config)


def test_json_differs_where_a_field_differs() -> None:
    assert len({config.to_json() for config in VARIANTS}) == len(VARIANTS)


def test_json_does_not_depend_on_the_order_of_its_keys() -> None:
    content = json.loads(CONFIG.to_json())
    shuffled = json.dumps(dict(reversed(content.items())))
    assert GeneratorConfig.from_json(shuffled) == CONFIG


def test_it_has_at_most_ten_fields() -> None:
    assert len(fields(GeneratorConfig)) <= 10


def test_sites_are_layer_by_layer() -> None:
    assert CONFIG.sites == [
        (1, "self_attn.o_proj"),
        (1, "mlp.down_proj"),
        (4, "self_attn.o_proj"),
        (4, "mlp.down_proj"),
    ]
    assert CONFIG.site_layers == [1, 1, 4, 4]


def test_scale_and_dtype() -> None:
    assert CONFIG.scale == 2.0
    assert CONFIG.dtype == torch.bfloat16
    assert VARIANTS[2].dtype == torch.float32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        "[]",
        "{}",
        '"text"',
        changed(d_model=None),
        changed(layers=None),
        changed(readout=None),
        changed(encoding=None),
        changed(unknown=1),
        changed(layers=7),
        changed(readout={"kind": "NoReadOut"}),
        changed(readout={"rank": 3}),
        changed(readout={"kind": "SvdConfig"}),
        changed(readout={"kind": "RidgeConfig", "rank": 3}),
        changed(readout=[]),
        changed(encoding={"encoding": "parallel"}),
        changed(encoding={"chunk_tokens": 5}),
        changed(encoding={"encoding": "independent", "threads": 1, "colour": 2}),
    ],
)
def test_json_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigurationError, match="generator config: cannot be read"):
        GeneratorConfig.from_json(text)


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"readout": SvdConfig(rank=0)}, "readout.rank"),
        ({"readout": SvdConfig(rank=7)}, "readout.rank"),
        ({"readout": SvdConfig(rank=5)}, "encoding.grid_exponent"),
        ({"encoding": EncodingConfig(dtype="float16")}, "encoding.dtype"),
        ({"modules": ()}, "modules"),
        ({"modules": ("mlp.down_proj",)}, "modules"),
        ({"d_in": (32,)}, "modules"),
        ({"d_out": (32, 32, 32)}, "modules"),
        ({"encoding": EncodingConfig(line_end=9)}, "encoding.line_end"),
        ({"layers": ()}, "layers"),
        ({"layers": (1, 1)}, "layers"),
        ({"layers": (-1, 1)}, "layers"),
    ],
)
def test_values_out_of_range(change: dict[str, object], setting: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        replace(CONFIG, **change)
    assert caught.value.setting == setting


def test_values_out_of_range_in_json_keep_their_own_error() -> None:
    text = changed(readout={"kind": "SvdConfig", "rank": 9, "tolerance": 1e-6})
    with pytest.raises(ConfigurationError, match=r"readout\.rank: 9 is not between 1 and"):
        GeneratorConfig.from_json(text)
