"""What is asked of a model and what comes back: messages, sampling, generation."""

import math
from dataclasses import dataclass

from memory_service.errors import InvalidInput


@dataclass(frozen=True)
class Message:
    """One message of a chat prompt: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How answers are generated; temperature 0 is greedy.

    Raises:
        InvalidInput: a number is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInput("max_new_tokens", self.max_new_tokens, "must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise InvalidInput("temperature", self.temperature, "must be 0 or a positive number")
        if not 0 < self.top_p <= 1:
            raise InvalidInput("top_p", self.top_p, "must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput("seed", self.seed, "must be from 0 to 2**63 - 1")


@dataclass(frozen=True)
class Generation:
    """A finished answer and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float
