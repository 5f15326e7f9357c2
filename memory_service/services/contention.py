"""Several writers on one memory: whoever comes second reads again and retries."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from memory_service.domain.memory import MemoryId
from memory_service.errors import StateConflict

ATTEMPTS = 20
"""How often a writer retries when others write the same user first."""

FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 5.0
"""Pauses double up to here: longer than an encoding takes, so that some writer is alone at last."""

T = TypeVar("T")


async def retried(memory_id: MemoryId, work: Callable[[], Awaitable[T]]) -> T:
    """Run work again while others write first, after a random pause that grows.

    Raises:
        StateConflict: others kept writing first, twenty times over.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await work()
        except StateConflict:
            longest_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            await asyncio.sleep(random.uniform(0, longest_s))  # noqa: S311  # jitter, no secret
    raise StateConflict(memory_id.user, f"others wrote first {ATTEMPTS} times; try again")
