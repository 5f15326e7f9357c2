"""Window: what of a conversation comes into the prompt. The rest is the adapter's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory_service.domain.messages import Message

CountTokens = Callable[[Sequence[Message]], int]


@dataclass(frozen=True)
class Window:
    """The messages of a prompt, and how many before them were left out."""

    messages: Sequence[Message]
    cut: int


def last_that_fit(
    messages: Sequence[Message], budget_tokens: int, count_tokens: CountTokens
) -> Window:
    """The system messages, never cut, and the last others that fit, from a user's message on.

    At least the newest message is kept. What falls out is not lost: the adapter holds it.
    """
    system = [message for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    starts = [n for n, message in enumerate(others[:-1]) if message.role == "user"]
    # Fewer messages are fewer tokens, so the first start that fits is found by halving.
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if count_tokens([*system, *others[starts[middle] :]]) <= budget_tokens:
            high = middle
        else:
            low = middle + 1
    start = starts[low] if low < len(starts) else max(0, len(others) - 1)
    return Window([*system, *others[start:]], start)
