"""Every query about memories: turns and users here, the others in `versions` and `erasure`."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    case,
    func,
    insert,
    select,
    tuple_,
    update,
)

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import (
    Arrival,
    Head,
    PendingSession,
    QuarantinedChunk,
    StoredChunk,
)
from memory_service.domain.tombstones import Tombstones
from memory_service.domain.turns import Turn
from memory_service.errors import NotFound, StateConflict
from memory_service.storage.erasure import Erasure
from memory_service.storage.expiry import Expiry
from memory_service.storage.queries import (
    ACTIVE,
    CURRENT,
    PENDING,
    TABLES,
    as_turn,
    batches,
    is_user,
    now,
    total,
    turns_where,
)
from memory_service.storage.quotas import bytes_of
from memory_service.storage.recent import Recent
from memory_service.storage.search import Search
from memory_service.storage.tables import (
    SessionRow,
    TenantRow,
    TurnRow,
    UserRow,
)
from memory_service.storage.versions import Versions


class Memories(Recent, Search, Versions, Erasure, Expiry):
    """The queries of one transaction (`services.ports.Memories`)."""

    async def add_turns(self, memory_id: MemoryId, turns: Sequence[Turn]) -> list[Arrival]:
        """Store turns, creating tenant, user and sessions; what became of each.

        Raises:
            StateConflict: an id is known with another text, role, time or session.
            QuotaExceeded: the tenant would keep more than it may.
        """
        if not turns:
            return []
        user_id = await self._lock_or_create(memory_id)
        ids = {turn.id for turn in turns}
        known = await self._turns_by_id(user_id, ids)
        forgotten = await self._forgotten(user_id, ids - set(known))
        added: dict[str, Turn] = {}
        arrivals: list[Arrival] = []
        for turn in turns:
            earlier = known.get(turn.id)
            if turn.id in forgotten:
                arrivals.append(Arrival.FORGOTTEN)
            elif earlier is None:
                added[turn.id] = known[turn.id] = turn
                arrivals.append(Arrival.NEW)
            elif earlier == turn:
                arrivals.append(Arrival.KNOWN)
            else:
                raise _turn_conflict(earlier, turn)
        if added:
            new = list(added.values())
            await self._insert_turns(user_id, new)
            await self._keep_count(user_id, len(new), bytes_of(new))
            await self._require_quota(memory_id.tenant, "turns", "text_bytes")
        return arrivals

    async def bury(self, memory_id: MemoryId, tombstones: Tombstones) -> None:
        """Take over another memory's tombstones, creating tenant and user.

        Turns that they stand for must have been erased before.
        """
        user_id = await self._lock_or_create(memory_id)
        known = await self._tombstones(user_id)
        missing = [
            {"user_id": user_id, "key": key, "hash": hash_}
            for key, hashes in tombstones.items()
            for hash_ in sorted(hashes - known.get(key, set()))
        ]
        if missing:
            await self._transaction.write(insert(TABLES["tombstones"]), missing)

    async def turns(
        self,
        memory_id: MemoryId,
        *,
        session: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> list[Turn]:
        """A user's turns in (time, id) order.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        owner = TurnRow.user_id == user_id
        if session is not None:
            found = await self._sessions(user_id, [session])
            if session not in found:
                return []
            owner = TurnRow.session_id == found[session][0]
        query = turns_where(owner).limit(limit)
        if after is not None:
            query = query.where(tuple_(TurnRow.time, TurnRow.turn_id) > after)
        return [as_turn(*row) for row in await self._transaction.read(query)]

    async def turns_by_id(self, memory_id: MemoryId, turn_ids: Iterable[str]) -> dict[str, Turn]:
        """Those of the turns that are kept.

        Raises:
            NotFound: the user is unknown.
        """
        return await self._turns_by_id((await self._find(memory_id))[0], set(turn_ids))

    async def pending_turn_ids(self, memory_id: MemoryId) -> set[str]:
        """Turns that the state does not hold yet.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        kept = await self._transaction.read(
            select(TurnRow.turn_id)
            .join(SessionRow, SessionRow.id == TurnRow.session_id)
            .where(SessionRow.user_id == user_id, PENDING, ACTIVE)
        )
        encoded = await self._chunks(user_id, CURRENT, PENDING)
        failed = await self._quarantined(SessionRow.user_id == user_id, PENDING)
        done = [*(one.turn_ids for one in encoded), *(one.turn_ids for one in failed)]
        return {row.turn_id for row in kept}.difference(*done)

    async def pending_sessions(self, memory_id: MemoryId) -> list[PendingSession]:
        """Sessions to encode, oldest change first.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        return await self._sessions_where(SessionRow.user_id == user_id, PENDING)

    async def sessions_of(
        self, memory_id: MemoryId, turn_ids: Collection[str]
    ) -> list[PendingSession]:
        """The sessions that those of the turns belong to which are kept, pending or not.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        found: set[int] = set()
        for batch in batches(sorted(set(turn_ids))):
            rows = await self._transaction.read(
                select(TurnRow.session_id)
                .where(TurnRow.user_id == user_id, TurnRow.turn_id.in_(batch))
                .distinct()
            )
            found |= {row.session_id for row in rows}
        return [
            session
            for batch in batches(sorted(found))
            for session in await self._sessions_where(
                SessionRow.user_id == user_id, SessionRow.id.in_(batch)
            )
        ]

    async def turns_set_aside(self, memory_id: MemoryId) -> set[str]:
        """Kept turns that are no part of the memory since a rollback.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        rows = await self._transaction.read(
            select(TurnRow.turn_id).where(TurnRow.user_id == user_id, TurnRow.is_aside)
        )
        return {row.turn_id for row in rows}

    async def set_aside(
        self, memory_id: MemoryId, *, aside: Collection[str], back: Collection[str]
    ) -> None:
        """Take kept turns out of the memory, and put others back into it.

        The state must follow in the same transaction, by `write_version` or `mark_all_pending`.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._lock(memory_id)
        for turn_ids, is_aside in ((aside, True), (back, False)):
            for batch in batches(sorted(turn_ids)):
                await self._transaction.write(
                    update(TurnRow)
                    .where(TurnRow.user_id == user_id, TurnRow.turn_id.in_(batch))
                    .values(is_aside=is_aside)
                )
        active = (
            select(func.count())
            .where(TurnRow.session_id == SessionRow.id, ACTIVE)
            .scalar_subquery()
        )
        await self._transaction.write(
            update(SessionRow).where(SessionRow.user_id == user_id).values(turns=active)
        )

    async def head(self, memory_id: MemoryId) -> Head:
        """Where a user's memory stands.

        Raises:
            NotFound: the user is unknown.
        """
        rows = await self._transaction.read(_heads().where(*is_user(memory_id)))
        if not rows:
            raise NotFound("user", memory_id.user)
        return _head(memory_id.tenant, *rows[0])

    async def heads(self, tenant: str, *, after: str = "", limit: int = 100) -> list[Head]:
        """Users of a tenant by name, after the one named (keyset page)."""
        rows = await self._transaction.read(
            _heads()
            .where(TenantRow.name == tenant, UserRow.name > after)
            .order_by(UserRow.name)
            .limit(limit)
        )
        return [_head(tenant, *row) for row in rows]

    async def _sessions_where(self, *conditions: ColumnElement[bool]) -> list[PendingSession]:
        """Sessions with their turns and current chunks, oldest change first."""
        sessions = await self._transaction.read(
            select(SessionRow.user_id, SessionRow.name, SessionRow.revision)
            .where(*conditions)
            .order_by(SessionRow.changed_at, SessionRow.id)
        )
        turns: dict[str, list[Turn]] = defaultdict(list)
        chunks: dict[str, list[StoredChunk]] = defaultdict(list)
        quarantined: dict[str, list[QuarantinedChunk]] = defaultdict(list)
        if sessions:
            for row in await self._transaction.read(turns_where(*conditions, ACTIVE)):
                turns[row.name].append(as_turn(*row))
            for chunk in await self._chunks(sessions[0].user_id, CURRENT, *conditions):
                chunks[chunk.session].append(chunk)
            for failed in await self._quarantined(*conditions):
                quarantined[failed.session].append(failed)
        return [
            PendingSession(
                name,
                revision,
                tuple(turns[name]),
                tuple(chunks[name]),
                quarantined=tuple(quarantined[name]),
            )
            for _, name, revision in sessions
        ]

    async def _lock_or_create(self, memory_id: MemoryId) -> int:
        """Begin to write to a user that may be new; two processes may do this at once."""
        for _ in range(3):  # again only where the user is deleted in between
            try:
                return (await self._lock(memory_id))[0]
            except NotFound:
                await self._create(memory_id)
        return (await self._lock(memory_id))[0]

    async def _create(self, memory_id: MemoryId) -> None:
        await self._transaction.insert_missing(
            TABLES["tenants"], {"name": memory_id.tenant, "created_at": now()}
        )
        tenant = select(TenantRow.id).where(TenantRow.name == memory_id.tenant).scalar_subquery()
        await self._transaction.insert_missing(
            TABLES["users"],
            {"tenant_id": tenant, "name": memory_id.user, "version": 0, "created_at": now()},
        )
        await self._require_quota(memory_id.tenant, "users")

    async def _turns_by_id(self, user_id: int, turn_ids: Iterable[str]) -> dict[str, Turn]:
        found = {}
        for batch in batches(turn_ids):
            query = turns_where(TurnRow.user_id == user_id).where(TurnRow.turn_id.in_(batch))
            for row in await self._transaction.read(query):
                found[row.turn_id] = as_turn(*row)
        return found

    async def _insert_turns(self, user_id: int, turns: Sequence[Turn]) -> None:
        counts: dict[str, int] = defaultdict(int)
        for turn in turns:
            counts[turn.session] += 1
        sessions = await self._sessions(user_id, counts)
        missing = [name for name in counts if name not in sessions]
        if missing:
            start = int(now().timestamp() * 1e6)
            empty = {
                "user_id": user_id,
                "revision": start,
                "encoded_revision": start,
                "floor_revision": start,
                "turns": 0,
                "encoded_turns": 0,
                "quarantined_turns": 0,
                "changed_at": now(),
            }
            await self._transaction.write(
                insert(TABLES["sessions"]), [{**empty, "name": name} for name in missing]
            )
            sessions |= await self._sessions(user_id, missing)
        await self._transaction.write(
            insert(TABLES["turns"]),
            [
                {
                    "user_id": user_id,
                    "turn_id": turn.id,
                    "session_id": sessions[turn.session][0],
                    "role": turn.role.value,
                    "text": turn.text,
                    "time": turn.time,
                    "expires_at": turn.expires_at,
                }
                for turn in turns
            ],
        )
        table = TABLES["sessions"]
        await self._transaction.write(
            update(table)
            .where(table.c.id == bindparam("session_id"))
            .values(
                turns=table.c.turns + bindparam("count"),
                revision=table.c.revision + 1,
                changed_at=case((PENDING, table.c.changed_at), else_=now()),
            ),
            [{"session_id": sessions[name][0], "count": counts[name]} for name in counts],
        )


def _heads() -> Select[str, int, datetime, int, int, int]:
    of_user = SessionRow.user_id == UserRow.id
    return select(
        UserRow.name,
        UserRow.version,
        UserRow.created_at,
        total(SessionRow.turns).where(of_user).scalar_subquery(),
        total(SessionRow.turns - SessionRow.encoded_turns - SessionRow.quarantined_turns)
        .where(of_user)
        .scalar_subquery(),
        total(SessionRow.quarantined_turns).where(of_user).scalar_subquery(),
    ).join(TenantRow, TenantRow.id == UserRow.tenant_id)


def _head(tenant: str, name: str, version: int, created_at: datetime, *counts: int) -> Head:
    return Head(MemoryId(name, tenant), version, created_at, *(int(count) for count in counts))


def _turn_conflict(earlier: Turn, turn: Turn) -> StateConflict:
    """Name what differs, not what it is: a message may reach other eyes than the text."""
    fields = ("session", "role", "text", "time")
    different = [name for name in fields if getattr(earlier, name) != getattr(turn, name)]
    return StateConflict(
        f"turn {turn.id}",
        f"is already known with another {' and '.join(different)}; use a new id",
    )
