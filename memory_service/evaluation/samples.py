"""A sample: one person's turns, another person's as the control, and questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memory_service.domain.turns import Turn


@dataclass(frozen=True)
class Asked:
    """A question with its expected answer.

    `value` is the part that carries the fact, `outdated` an answer that is wrong, mostly because
    it was right before, `evidence` the id of the turn that tells it. `groups` are what a report
    breaks its means down by: "session" (of the evidence), "speaker", "type", and what else the task
    knows.
    """

    question: str
    answer: str
    value: str | None = None
    outdated: str | None = None
    evidence: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What every method is measured on.

    `swap_turns` are another person's: the same kinds of facts with other values where the task
    can provide it.
    """

    id: str
    turns: Sequence[Turn]
    swap_turns: Sequence[Turn]
    asked: Sequence[Asked]

    @property
    def words(self) -> int:
        """How long the history is."""
        return sum(len(turn.text.split()) for turn in self.turns)
