"""Inspect: look at what is stored, without a model and without changing anything."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import (
    Head,
    QuarantinedChunk,
    SessionHead,
    StoredAdapter,
    StoredChunk,
    StoredSizes,
    StoredState,
)
from memory_service.domain.search import parse_search
from memory_service.domain.turns import Turn
from memory_service.errors import NotFound
from memory_service.services.ports import OpenUnit, UnitOfWork

PAGE_TURNS = 500
"""Turns read from the database at once."""


@dataclass(frozen=True)
class KeptTurn:
    """A turn, and why the state may not hold it.

    It is not encoded yet, a rollback set it aside, or a chunk with it cannot be encoded.
    """

    turn: Turn
    is_pending: bool
    is_aside: bool
    is_quarantined: bool = False


@dataclass(frozen=True)
class Overview:
    """A user's memory in numbers."""

    head: Head
    sizes: StoredSizes


@dataclass(frozen=True)
class Inspection:
    """What a memory holds and what it does not; `state` and `adapter` are None before the first."""

    overview: Overview
    sessions: list[SessionHead]
    quarantined: list[QuarantinedChunk]
    adapter: StoredAdapter | None
    state: StoredState | None


@dataclass(frozen=True)
class Recipe:
    """An adapter and the chunks it was made from."""

    adapter: StoredAdapter
    chunks: list[StoredChunk]


@dataclass(frozen=True)
class HistoryEntry:
    """A version and how many turns it has that the one before had not, and the other way round.

    Turns that were forgotten since are in neither number.
    """

    adapter: StoredAdapter
    added: int
    removed: int


@dataclass(frozen=True)
class Difference:
    """Two versions, and the ids of the turns that only one of them was made from."""

    first: StoredAdapter
    second: StoredAdapter
    added: list[str]
    removed: list[str]


class Inspect:
    """Answers questions about what is stored."""

    def __init__(self, open_unit: OpenUnit) -> None:
        self._open_unit = open_unit

    async def users(self, tenant: str, *, after: str = "", limit: int = 100) -> list[Head]:
        """Users of a tenant by name, after the one named."""
        async with self._open_unit() as unit:
            return await unit.memories.heads(tenant, after=after, limit=limit)

    async def tenant_size(self, tenant: str) -> tuple[int, int]:
        """How many users a tenant has, and how many turns they have together."""
        users = turns = 0
        after = ""
        async with self._open_unit() as unit:
            while heads := await unit.memories.heads(tenant, after=after):
                users += len(heads)
                turns += sum(head.turns for head in heads)
                after = heads[-1].memory_id.user
        return users, turns

    async def user(self, memory_id: MemoryId) -> Overview:
        """One user's memory. Raises NotFound."""
        async with self._open_unit() as unit:
            return Overview(
                head=await unit.memories.head(memory_id),
                sizes=await unit.memories.sizes(memory_id),
            )

    async def memory(self, memory_id: MemoryId) -> Inspection:
        """All that is stored of one user but texts and old versions.

        Raises:
            NotFound: there is no such user.
            IncompatibleState: the stored bytes are damaged.
        """
        async with self._open_unit() as unit:
            memories = unit.memories
            overview = Overview(await memories.head(memory_id), await memories.sizes(memory_id))
            sessions: list[SessionHead] = []
            while page := await memories.session_heads(
                memory_id, after=sessions[-1].name if sessions else ""
            ):
                sessions += page
            newest = await memories.adapters(memory_id, limit=1)
            return Inspection(
                overview=overview,
                sessions=sessions,
                quarantined=await memories.quarantined(memory_id),
                adapter=newest[0] if newest else None,
                state=await memories.state(memory_id),
            )

    async def turns(
        self,
        memory_id: MemoryId,
        *,
        session: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> list[KeptTurn]:
        """The newest `limit` turns (default: all) in (time, id) order; `before` is such a pair.

        Raises:
            NotFound: there is no such user.
        """
        async with self._open_unit() as unit:
            if limit is None:
                kept = [turn async for turn in turn_pages(unit, memory_id, session)]
            else:
                kept = await unit.memories.latest_turns(
                    memory_id, session=session, before=before, limit=limit
                )
            return await _kept_turns(unit, memory_id, kept)

    async def turn(self, memory_id: MemoryId, turn_id: str) -> KeptTurn:
        """One turn. Raises NotFound."""
        async with self._open_unit() as unit:
            (kept,) = await _kept_turns(unit, memory_id, [await _turn(unit, memory_id, turn_id)])
        return kept

    async def search(
        self, memory_id: MemoryId, words: str, *, before: str | None = None, limit: int = 20
    ) -> list[KeptTurn]:
        """Kept turns that hold all words, newest first; the next page is `before` the last id.

        `words` may hold "phrases" and beginnings (`bisc*`).

        Raises:
            NotFound: there is no such user, or no turn `before`.
            InvalidInput: there is no word in `words`.
        """
        terms = parse_search(words)
        async with self._open_unit() as unit:
            order = None
            if before is not None:
                order = (await _turn(unit, memory_id, before)).order
            found = await unit.memories.search(memory_id, terms, before=order, limit=limit)
            return await _kept_turns(unit, memory_id, found)

    async def quarantined(self, memory_id: MemoryId) -> list[QuarantinedChunk]:
        """A user's chunks that cannot be encoded. Raises NotFound."""
        async with self._open_unit() as unit:
            return await unit.memories.quarantined(memory_id)

    async def turns_by_id(self, memory_id: MemoryId, ids: Iterable[str]) -> dict[str, Turn]:
        """Those turns of a user that are still kept. Raises NotFound."""
        async with self._open_unit() as unit:
            return await unit.memories.turns_by_id(memory_id, ids)

    async def sessions(
        self, memory_id: MemoryId, *, after: str = "", limit: int = 100
    ) -> list[SessionHead]:
        """A user's sessions by name, after the one named. Raises NotFound."""
        async with self._open_unit() as unit:
            return await unit.memories.session_heads(memory_id, after=after, limit=limit)

    async def adapters(
        self, memory_id: MemoryId, *, before: int | None = None, limit: int = 100
    ) -> list[StoredAdapter]:
        """Versions newest first, without their read-outs. Raises NotFound."""
        async with self._open_unit() as unit:
            return await unit.memories.adapters(memory_id, before=before, limit=limit)

    async def adapter(self, memory_id: MemoryId, version: int | None = None) -> Recipe:
        """One version (default: the newest) with its recipe.

        Raises:
            NotFound: no such user or version, or nothing was encoded yet.
            IncompatibleState: the stored bytes are damaged.
        """
        async with self._open_unit() as unit:
            adapter = await unit.memories.adapter(memory_id, version)
            return Recipe(adapter, await unit.memories.chunks(memory_id, adapter.version))

    async def history(
        self, memory_id: MemoryId, *, before: int | None = None, limit: int = 20
    ) -> list[HistoryEntry]:
        """Versions newest first, each with its change. Raises NotFound."""
        async with self._open_unit() as unit:
            made = await unit.memories.adapters(memory_id, before=before, limit=limit)
            entries = []
            held = await _turn_ids(unit, memory_id, made[0].version) if made else set()
            for adapter in made:
                earlier = await _turn_ids(unit, memory_id, adapter.version - 1)
                entries.append(HistoryEntry(adapter, len(held - earlier), len(earlier - held)))
                held = earlier
        return entries

    async def difference(self, memory_id: MemoryId, first: int, second: int) -> Difference:
        """What the second version was made from and the first was not, and the other way round.

        Raises:
            NotFound: no such user or version.
            IncompatibleState: the stored bytes are damaged.
        """
        async with self._open_unit() as unit:
            one = await unit.memories.adapter(memory_id, first)
            other = await unit.memories.adapter(memory_id, second)
            held = await _turn_ids(unit, memory_id, first)
            held_by_other = await _turn_ids(unit, memory_id, second)
        return Difference(one, other, sorted(held_by_other - held), sorted(held - held_by_other))


async def _kept_turns(
    unit: UnitOfWork, memory_id: MemoryId, turns: Iterable[Turn]
) -> list[KeptTurn]:
    pending = await unit.memories.pending_turn_ids(memory_id)
    aside = await unit.memories.turns_set_aside(memory_id)
    quarantined = {
        turn_id
        for chunk in await unit.memories.quarantined(memory_id)
        for turn_id in chunk.turn_ids
    }
    return [
        KeptTurn(turn, turn.id in pending, turn.id in aside, turn.id in quarantined)
        for turn in turns
    ]


async def _turn_ids(unit: UnitOfWork, memory_id: MemoryId, version: int) -> set[str]:
    """The turns that a version was made from; none before the first."""
    if version == 0:
        return set()
    recipe = await unit.memories.chunks(memory_id, version)
    return {turn_id for chunk in recipe for turn_id in chunk.turn_ids}


async def _turn(unit: UnitOfWork, memory_id: MemoryId, turn_id: str) -> Turn:
    found = await unit.memories.turns_by_id(memory_id, [turn_id])
    if turn_id not in found:
        raise NotFound("turn", turn_id, f"`memory turns list {memory_id.user}` tells ids")
    return found[turn_id]


async def turn_pages(
    unit: UnitOfWork, memory_id: MemoryId, session: str | None = None
) -> AsyncIterator[Turn]:
    """A user's turns in (time, id) order, read page by page. Raises NotFound."""
    after = None
    while True:
        page = await unit.memories.turns(memory_id, session=session, after=after, limit=PAGE_TURNS)
        for turn in page:
            yield turn
        if len(page) < PAGE_TURNS:
            return
        after = page[-1].order
