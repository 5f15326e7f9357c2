"""Forget, without a model: find what is meant, delete a user, withdraw an adapter at once.

`forget_turns` is the way that keeps the adapter; it needs the model.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Erased, Receipt, Removal
from memory_service.domain.search import parse_search
from memory_service.domain.turns import Turn
from memory_service.errors import InvalidInput, NotFound
from memory_service.services.contention import retried
from memory_service.services.inspect import turn_pages
from memory_service.services.ports import OpenUnit

USERS_AT_ONCE = 50
"""Users of a tenant that are deleted in one transaction."""

Report = Callable[[int], None]
"""Called with users deleted so far."""


@dataclass(frozen=True)
class Selection:
    """Which turns are meant: those that every given part is true of; `until` is not included.

    `matching` is what `Inspect.search` finds turns by.

    Raises:
        InvalidInput: nothing is given, the times leave no room, or there is no word to match.
    """

    turn_ids: frozenset[str] = frozenset()
    session: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    matching: str | None = None

    def __post_init__(self) -> None:
        if self.matching is not None:
            parse_search(self.matching)
        elif not any((self.turn_ids, self.session, self.since, self.until)):
            raise InvalidInput("turns", "", "say which: ids, a session, times, or words")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise InvalidInput("until", self.until.isoformat(), "must be after since")

    def holds(self, turn: Turn) -> bool:
        """Whether the turn is one of those meant, as far as a turn alone tells: not by words."""
        return (
            (not self.turn_ids or turn.id in self.turn_ids)
            and (self.session is None or turn.session == self.session)
            and (self.since is None or turn.time >= self.since)
            and (self.until is None or turn.time < self.until)
        )


class Forget:
    """Deletes memories, whole or in part."""

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

    async def tenant(self, tenant: str, report: Report | None = None) -> Mapping[str, int]:
        """Delete a tenant: its keys, then all its users; how many rows of each kind went.

        Users go some at a time, so that other tenants' writers do not wait for all of them. Where
        this is interrupted, calling it again deletes the rest.

        Raises:
            NotFound: there is no such tenant.
        """
        deleted: Counter[str] = Counter()
        async with self._open_unit() as unit:
            keys = await unit.keys.delete_all(tenant)
            await unit.commit()
        users = 0
        while True:
            async with self._open_unit() as unit:
                heads = await unit.memories.heads(tenant, limit=USERS_AT_ONCE)
                for head in heads:
                    deleted.update(await unit.memories.delete_user(head.memory_id))
                if not heads:
                    await unit.memories.delete_tenant(tenant)
                await unit.commit()
            if not heads:
                return {"users": users, "keys": keys, **deleted}
            users += len(heads)
            if report is not None:
                report(users)

    async def find(self, memory_id: MemoryId, selection: Selection) -> list[Turn]:
        """The kept turns that a selection means, in (time, id) order.

        Raises:
            NotFound: there is no such user, or an id is not kept or not meant by the rest.
        """
        async with self._open_unit() as unit:
            if selection.matching is not None:
                matching = await unit.memories.search(memory_id, parse_search(selection.matching))
                found = [turn for turn in reversed(matching) if selection.holds(turn)]
            else:
                pages = turn_pages(unit, memory_id, selection.session)
                found = [turn async for turn in pages if selection.holds(turn)]
        missing = selection.turn_ids - {turn.id for turn in found}
        if missing:
            raise NotFound("turn", min(missing), f"`memory turns list {memory_id.user}` tells ids")
        return found

    async def withdraw(
        self, memory_id: MemoryId, turn_ids: Collection[str], reason: str
    ) -> Receipt:
        """Forget turns and with them, at once, the adapters that hold them and the state.

        What else was said stays and waits to be encoded again.

        Raises:
            NotFound: there is no such user, or none of the turns is kept.
        """
        erased = await retried(memory_id, lambda: self._withdraw(memory_id, turn_ids))
        return Receipt(erased, Removal.WITHDRAWN, reason, version=None, state_digest=None)

    async def _withdraw(self, memory_id: MemoryId, turn_ids: Collection[str]) -> Erased:
        async with self._open_unit() as unit:
            await unit.memories.mark_all_pending(memory_id)
            erased = await unit.memories.erase_turns(memory_id, turn_ids)
            await unit.commit()
        return erased
