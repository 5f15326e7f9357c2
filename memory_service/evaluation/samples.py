"""A sample: one person's turns, another person's as the control, and questions."""

from collections.abc import Sequence
from dataclasses import dataclass

from memory_service.domain.turns import Turn


@dataclass(frozen=True)
class Asked:
    """A question with its expected answer.

    `value` is the part that carries the fact, `outdated` an answer that was right before.
    """

    question: str
    answer: str
    value: str | None = None
    outdated: str | None = None


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
