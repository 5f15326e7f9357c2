"""Forget: delete what is stored of a user."""

from collections.abc import Mapping

from memory_service.domain.memory import MemoryId
from memory_service.services.ports import OpenUnit


class Forget:
    """Deletes memories."""

    def __init__(self, open_unit: OpenUnit) -> None:
        self._open_unit = open_unit

    async def user(self, memory_id: MemoryId) -> Mapping[str, int]:
        """Delete a user's turns, state and adapters; how many rows of each went.

        Raises:
            NotFound: there is no such user.
        """
        async with self._open_unit() as unit:
            deleted = await unit.memories.delete_user(memory_id)
            await unit.commit()
        return deleted
