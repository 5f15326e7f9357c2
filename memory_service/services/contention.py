"""Several writers on one memory: whoever comes second reads again and retries."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from memory_service.domain.memory import MemoryId
from memory_service.errors import StateConflict

ATTEMPTS = 20
"""How often a writer retries when others write the same user first."""

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
            await asyncio.sleep(random.uniform(0, 0.01 * 2 ** min(attempt, 6)))  # noqa: S311
    raise StateConflict(memory_id.user, f"others wrote first {ATTEMPTS} times; try again")
