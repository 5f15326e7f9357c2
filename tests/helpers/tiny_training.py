"""A training run on the tiny model that takes a blink."""

import json
from dataclasses import replace
from pathlib import Path

from memory_service.generator.config import EncodingConfig
from memory_service.inference.base_models import BaseModel
from memory_service.training.config import Phase, TrainingConfig
from tests.helpers.tiny_generator import tiny_config
from tests.helpers.tiny_inference import tiny_base
from tests.helpers.tiny_model import tiny_llama

PHASE = Phase(
    until_step=3, people=2, questions=2, facts=(1, 2), sessions=(1, 1), chatter=(0.0, 0.0)
)
ENCODING = EncodingConfig(chunk_tokens=96, dtype="float32", threads=1, grid_exponent=-20)


def tiny_training(**changes: object) -> TrainingConfig:
    """Six steps in two phases."""
    config = TrainingConfig(
        base_model="tiny",
        generator=tiny_config(encoding=ENCODING),
        seed=1,
        steps=6,
        warmup_steps=2,
        learning_rate=0.01,
        value_weight=3.0,
        phases=(PHASE, replace(PHASE, until_step=6, questions=3, chatter=(0.0, 0.5))),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def small_base() -> BaseModel:
    """The tiny model with room for all questions about a person in one row."""
    return tiny_base(tiny_llama())


def write_dialogues(path: Path, count: int = 3, *, facts: bool = True, split: str = "test") -> Path:
    """An annotated dialogue file."""
    known = ["I own a Jeep.", "I live in Ohio.", "I work as a nurse.", "My sister lives in Spain."]
    lines = []
    for number in range(count):
        fact = known[number % len(known)]
        said = [
            {"speaker": "A", "text": "Hello, how are you?"},
            {"speaker": "B", "text": fact, **({"fact": fact} if facts else {})},
        ]
        lines.append(json.dumps({"id": number, "split": split, "sessions": [said, said]}))
    path.write_text("\n".join(lines) + "\n")
    return path
