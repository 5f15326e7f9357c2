"""What is asked of a model and what comes back: messages, sampling, generation.

Tensors are named in annotations only: nothing here imports torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

MOST_STOPS = 16
"""Stop strings of one request."""

LONGEST_STOP_CHARS = 256
"""What may be a stop string is held back from a stream until it is known not to be one."""


@dataclass(frozen=True)
class Message:
    """One message of a chat prompt: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How answers are generated; temperature 0 is greedy.

    Of the tokens that are left after each of `top_k` (0: all), `top_p` and `min_p` (share of the
    likeliest one's probability), one is drawn. Tokens seen in prompt or answer are made less likely
    by `repetition_penalty` first. An answer ends before the first of the `stop` strings.

    Raises:
        InvalidInput: a number is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInput("max_new_tokens", self.max_new_tokens, "must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise InvalidInput("temperature", self.temperature, "must be 0 or a positive number")
        if not 0 < self.top_p <= 1:
            raise InvalidInput("top_p", self.top_p, "must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput("seed", self.seed, "must be from 0 to 2**63 - 1")
        if self.top_k < 0:
            raise InvalidInput("top_k", self.top_k, "must be 0 (all tokens) or a positive number")
        if not 0 <= self.min_p <= 1:
            raise InvalidInput("min_p", self.min_p, "must be from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise InvalidInput("repetition_penalty", self.repetition_penalty, "must be positive")
        self._check_stops()

    def _check_stops(self) -> None:
        if len(self.stop) > MOST_STOPS:
            raise InvalidInput("stop", len(self.stop), f"must be at most {MOST_STOPS} strings")
        for text in self.stop:
            if not 0 < len(text) <= LONGEST_STOP_CHARS:
                raise InvalidInput("stop", text, f"must have 1 to {LONGEST_STOP_CHARS} characters")


@dataclass(frozen=True)
class AppliedAdapter:
    """The adapter of one answer: whose it is, which version, and what is applied."""

    memory_id: MemoryId
    version: int
    readouts: Tensor  # [layer key value]


class Ending(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model, or a stop string, ended it."""
    LENGTH = "length"
    """It has as many tokens as were allowed."""


@dataclass(frozen=True)
class Generation:
    """A finished answer and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float
    ending: Ending = Ending.STOP
