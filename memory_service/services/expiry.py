"""Expiry: until when turns are kept, and which are over. Needs no model."""

from collections.abc import Collection
from datetime import UTC, datetime

from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput, NotFound
from memory_service.services.ports import OpenUnit

MOST_DAYS = 36_500


class Expiry:
    """Reads and changes dates; `ExpireTurns` forgets what is over."""

    def __init__(self, open_unit: OpenUnit) -> None:
        self._open_unit = open_unit

    async def rule(self, tenant: str) -> int | None:
        """How many days after it was said a tenant's turn is forgotten; None is never.

        Raises:
            NotFound: there is no such tenant.
        """
        async with self._open_unit() as unit:
            return await unit.memories.expiry_rule(tenant)

    async def change_rule(self, tenant: str, days: int | None) -> None:
        """Change the rule of a tenant, which may be new; it holds for turns kept before too.

        Raises:
            InvalidInput: not from 1 day to a hundred years.
        """
        if days is not None and not 1 <= days <= MOST_DAYS:
            raise InvalidInput("days", days, f"must be from 1 to {MOST_DAYS:,}, or none")
        async with self._open_unit() as unit:
            await unit.memories.set_expiry_rule(tenant, days)
            await unit.commit()

    async def keep(
        self, memory_id: MemoryId, turn_ids: Collection[str], until: datetime | None
    ) -> None:
        """Give turns a date from which on they are forgotten; None leaves it to the rule.

        Raises:
            InvalidInput: the date is not after the time of each turn.
            NotFound: there is no such user, or one of the turns is not kept; nothing was changed.
        """
        async with self._open_unit() as unit:
            kept = await unit.memories.turns_by_id(memory_id, turn_ids)
            for turn_id in sorted(turn_ids):
                if turn_id not in kept:
                    hint = f"`memory turns list {memory_id.user}` tells ids"
                    raise NotFound("turn", turn_id, hint)
                if until is not None and until <= kept[turn_id].time:
                    problem = f"must be after the time of turn {turn_id}"
                    raise InvalidInput("until", until.isoformat(), problem)
            await unit.memories.set_expiry(memory_id, dict.fromkeys(turn_ids, until))
            await unit.commit()

    async def due(self, at: datetime | None = None) -> list[MemoryId]:
        """Everybody with turns that are over now, of all tenants."""
        async with self._open_unit() as unit:
            return await unit.memories.memories_with_expired(at or datetime.now(UTC))

    async def expired(self, memory_id: MemoryId, at: datetime | None = None) -> set[str]:
        """The turns of one of them.

        Raises:
            NotFound: there is no such user.
        """
        async with self._open_unit() as unit:
            return await unit.memories.expired_turn_ids(memory_id, at or datetime.now(UTC))
