"""What a training run is: one JSON file, kept beside its checkpoints."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memory_service.errors import ConfigurationError, NotFound
from memory_service.generator.config import GeneratorConfig

_REMEDY = "compare it with memory_service/training/configs"
KNOWN_OBJECTIVES = (
    "questions",
    "recitation",
    "reconstruction",
    "completion",
    "abstention",
    "update",
    "locality",
    "chatter",
)
"""Their functions are in `objectives.py`."""

_SPANS = ("facts", "sessions", "chatter")


@dataclass(frozen=True)
class Phase:
    """What a step holds until `until_step`, and the ranges from which people are drawn.

    A step asks `people * questions` questions, also where its source gives fewer people. `kinds`
    limits synthetic people to that many kinds of facts: fewer are learnt sooner. `objectives`,
    where given, take the place of the run's: one may first recite conversations and go on with
    them, and answer questions afterwards.
    """

    until_step: int
    people: int
    questions: int
    facts: tuple[int, int]
    sessions: tuple[int, int]
    chatter: tuple[float, float]
    kinds: int | None = None
    # People are drawn by the rest of a phase: what they are asked does not change who they are.
    objectives: Mapping[str, float] | None = field(default=None, hash=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("until_step", "people", "questions", "kinds"):
            value = getattr(self, name)
            if name == "kinds" and value is None:
                continue
            _require(_is_whole(value) and value >= 1, name, value, "a whole number above 0")
        for name, lowest in (("facts", 0), ("sessions", 1)):
            span = getattr(self, name)
            _require(
                _is_span(span, lowest) and all(_is_whole(bound) for bound in span),
                name,
                span,
                f"two whole numbers from {lowest} on, the lower one first",
            )
        _require(
            _is_span(self.chatter, 0), "chatter", self.chatter, "two numbers, the lower one first"
        )
        asked = self.objectives
        _require(
            asked is None or (_are_weights(asked) and any(asked.values())),
            "objectives",
            asked,
            f"weights from 0 of {', '.join(KNOWN_OBJECTIVES)}, not all of them 0",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. Widths of `generator` must fit the base model.

    An answer's token weighs 1 in the loss, one that carries a fact `value_weight`, and the first of
    those `first_token_weight` times that: what follows it is easier (docs/decisions/0011).
    `objectives` weighs what is asked (`training/objectives.py`); `drift_weight` is the weight, in
    the loss, of changing what has nothing to do with the person. With an `average_decay` above 0, a
    running mean of the weights (`training/average.py`) is measured and exported. `pool` is how many
    synthetic people a phase has: one who is met again costs no pass of the base model. `dialogues`
    names files of real ones and `dialogue_share` the share of people taken from them.
    """

    base_model: str
    generator: GeneratorConfig
    seed: int
    steps: int
    warmup_steps: int
    learning_rate: float
    value_weight: float
    phases: tuple[Phase, ...]
    first_token_weight: float = 1.0
    pool: int = 1000
    objectives: Mapping[str, float] = field(default_factory=lambda: {"questions": 1.0})
    drift_weight: float = 0.0
    average_decay: float = 0.0
    dialogues: tuple[str, ...] = ()
    dialogue_share: float = 0.0
    initial: str | None = None

    def __post_init__(self) -> None:
        for name in ("base_model", "initial"):
            value = getattr(self, name)
            is_text = isinstance(value, str) or (value is None and name != "base_model")
            _require(is_text, name, value, "a string")
        paths = self.dialogues
        _require(
            isinstance(paths, tuple) and all(isinstance(path, str) for path in paths),
            "dialogues",
            paths,
            "a list of file names",
        )
        for name, lowest in (("seed", 0), ("steps", 1), ("warmup_steps", 0), ("pool", 1)):
            value = getattr(self, name)
            _require(
                _is_whole(value) and value >= lowest, name, value, f"a whole number from {lowest}"
            )
        for name in ("learning_rate", "value_weight", "first_token_weight"):
            value = getattr(self, name)
            _require(_is_number(value) and value > 0, name, value, "a number above 0")
        drift = self.drift_weight
        _require(_is_number(drift) and drift >= 0, "drift_weight", drift, "a number from 0")
        _require(
            _are_weights(self.objectives) and self.objectives.get("questions", 0) > 0,
            "objectives",
            self.objectives,
            f"weights from 0 of {', '.join(KNOWN_OBJECTIVES)}; questions above 0",
        )
        share = self.dialogue_share
        _require(_is_number(share) and 0 <= share <= 1, "dialogue_share", share, "from 0 to 1")
        decay = self.average_decay
        _require(
            _is_number(decay) and 0 <= decay < 1, "average_decay", decay, "from 0 to less than 1"
        )
        ends = [phase.until_step for phase in self.phases]
        _require(bool(ends) and ends == sorted(set(ends)), "phases", ends, "one or more, in order")

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to; the last one never ends."""
        return next((phase for phase in self.phases if step < phase.until_step), self.phases[-1])

    def objectives_at(self, step: int) -> Mapping[str, float]:
        """The weights of what a step asks: its phase's, or the run's."""
        return self.phase(step).objectives or self.objectives

    def to_json(self) -> str:
        """Serialise; `from_json` reads it back."""
        content = asdict(self)
        content["generator"] = json.loads(self.generator.to_json())
        return json.dumps(content, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "TrainingConfig":
        """Read a training config.

        Raises:
            ConfigurationError: a field is missing, unknown or of the wrong type.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            generator = GeneratorConfig.from_json(json.dumps(content.pop("generator")))
            phases = tuple(
                Phase(**{**phase, **{span: tuple(phase[span]) for span in _SPANS}})
                for phase in content.pop("phases")
            )
            if isinstance(content.get("dialogues"), list):
                content["dialogues"] = tuple(content["dialogues"])
            return cls(generator=generator, phases=phases, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                "training config", f"cannot be read ({type(error).__name__}: {error})", _REMEDY
            ) from error


def load_training_config(path: Path) -> TrainingConfig:
    """Read a training config file.

    Raises:
        NotFound: there is no such file.
        ConfigurationError: it is not a training config.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound("training config", str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            "training config", f"{path} cannot be read ({error})", _REMEDY
        ) from error
    return TrainingConfig.from_json(text)


def _require(is_good: bool, field: str, value: object, wanted: str) -> None:
    if not is_good:
        raise ConfigurationError(
            "training config", f"{field} is {value!r} and must be {wanted}", _REMEDY
        )


def _are_weights(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        name in KNOWN_OBJECTIVES and _is_number(weight) and weight >= 0
        for name, weight in value.items()
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_span(span: tuple[object, ...], lowest: int) -> bool:
    """Two numbers, the lower one first and not below `lowest`."""
    match span:
        case (int() | float() as low, int() | float() as high):
            return _is_number(low) and _is_number(high) and lowest <= low <= high
    return False
