"""What a training run is: one JSON file, kept beside its checkpoints."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_service.errors import ConfigurationError, NotFound
from memory_service.generator.config import GeneratorConfig


@dataclass(frozen=True)
class Phase:
    """What a step holds until `until_step`: people, questions about each, and their ranges."""

    until_step: int
    people: int
    questions: int
    facts: tuple[int, int]
    sessions: tuple[int, int]
    chatter: tuple[float, float]


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. Widths of `generator` must fit the base model.

    `dialogues` names an annotated Multi-Session-Chat file (shared/data's `msc_test.jsonl` format)
    and `dialogue_share` the share of steps that use it; without one, all people are synthetic.
    """

    base_model: str
    generator: GeneratorConfig
    seed: int
    steps: int
    warmup_steps: int
    learning_rate: float
    value_weight: float
    phases: tuple[Phase, ...]
    dialogues: str | None = None
    dialogue_share: float = 0.0
    initial: str | None = None

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to; the last one never ends."""
        return next((phase for phase in self.phases if step < phase.until_step), self.phases[-1])

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
                Phase(
                    until_step=phase["until_step"],
                    people=phase["people"],
                    questions=phase["questions"],
                    facts=tuple(phase["facts"]),
                    sessions=tuple(phase["sessions"]),
                    chatter=tuple(phase["chatter"]),
                )
                for phase in content.pop("phases")
            )
            if not phases:
                raise ValueError("phases is empty")
            return cls(generator=generator, phases=phases, **content)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                "training config",
                f"cannot be read ({type(error).__name__}: {error})",
                "compare it with memory_service/training/configs",
            ) from error


def load_training_config(path: Path) -> TrainingConfig:
    """Read a training config file.

    Raises:
        NotFound: there is no such file.
        ConfigurationError: it is not a training config.
    """
    try:
        return TrainingConfig.from_json(path.read_text())
    except FileNotFoundError:
        raise NotFound("training config", str(path)) from None
