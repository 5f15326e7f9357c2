"""Every query about memories: turns and users here, what is made of them in `versions`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    case,
    delete,
    insert,
    select,
    tuple_,
    update,
)

from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Head, PendingSession, StoredChunk
from memory_service.domain.turns import Role, Turn
from memory_service.errors import NotFound, StateConflict
from memory_service.storage.queries import (
    CURRENT,
    PENDING,
    TABLES,
    batches,
    is_user,
    now,
    total,
)
from memory_service.storage.recent import Recent
from memory_service.storage.tables import (
    AdapterRow,
    ChunkRow,
    SessionRow,
    StateRow,
    TenantRow,
    TurnRow,
    UserRow,
    VersionRow,
)
from memory_service.storage.versions import Versions


class Memories(Recent, Versions):
    """The queries of one transaction (`services.ports.Memories`)."""

    async def add_turns(self, memory_id: MemoryId, turns: Sequence[Turn]) -> list[bool]:
        """Store turns, creating tenant, user and sessions; True where new, False where known.

        Raises:
            StateConflict: an id is known with another text, role, time or session.
        """
        if not turns:
            return []
        user_id = await self._lock_or_create(memory_id)
        known = await self._turns_by_id(user_id, {turn.id for turn in turns})
        added: dict[str, Turn] = {}
        is_new: list[bool] = []
        for turn in turns:
            earlier = known.get(turn.id)
            if earlier is None:
                added[turn.id] = known[turn.id] = turn
            elif earlier != turn:
                raise _turn_conflict(earlier, turn)
            is_new.append(earlier is None)
        if added:
            await self._insert_turns(user_id, list(added.values()))
        return is_new

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
        query = _turns_where(owner).limit(limit)
        if after is not None:
            query = query.where(tuple_(TurnRow.time, TurnRow.turn_id) > after)
        return [_turn(*row) for row in await self._transaction.read(query)]

    async def pending_turn_ids(self, memory_id: MemoryId) -> set[str]:
        """Turns that the state does not hold yet.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        kept = await self._transaction.read(
            select(TurnRow.turn_id)
            .join(SessionRow, SessionRow.id == TurnRow.session_id)
            .where(SessionRow.user_id == user_id, PENDING)
        )
        chunks = await self._chunks(user_id, CURRENT, PENDING)
        return {row.turn_id for row in kept} - {id_ for chunk in chunks for id_ in chunk.turn_ids}

    async def pending_sessions(self, memory_id: MemoryId) -> list[PendingSession]:
        """Sessions to encode, oldest change first.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._find(memory_id)
        sessions = await self._transaction.read(
            select(SessionRow.name, SessionRow.revision)
            .where(SessionRow.user_id == user_id, PENDING)
            .order_by(SessionRow.changed_at, SessionRow.id)
        )
        turns: dict[str, list[Turn]] = defaultdict(list)
        for row in await self._transaction.read(
            _turns_where(TurnRow.user_id == user_id).where(PENDING)
        ):
            turns[row.name].append(_turn(*row))
        chunks: dict[str, list[StoredChunk]] = defaultdict(list)
        for chunk in await self._chunks(user_id, CURRENT, PENDING):
            chunks[chunk.session].append(chunk)
        return [
            PendingSession(name, revision, tuple(turns[name]), tuple(chunks[name]))
            for name, revision in sessions
        ]

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

    async def delete_user(self, memory_id: MemoryId) -> Mapping[str, int]:
        """Delete everything of a user; returns how many rows of each kind went.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._lock(memory_id)
        counts = {}
        for table in (AdapterRow, StateRow, ChunkRow, VersionRow, TurnRow, SessionRow):
            counts[table.__tablename__] = await self._transaction.write(
                delete(table).where(table.user_id == user_id)
            )
        await self._transaction.write(delete(UserRow).where(UserRow.id == user_id))
        self._transaction.erase_at_commit()
        return {
            kind: counts[kind]
            for kind in ("turns", "sessions", "chunks", "versions", "states", "adapters")
        }

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

    async def _turns_by_id(self, user_id: int, turn_ids: Iterable[str]) -> dict[str, Turn]:
        found = {}
        for batch in batches(turn_ids):
            query = _turns_where(TurnRow.user_id == user_id).where(TurnRow.turn_id.in_(batch))
            for row in await self._transaction.read(query):
                found[row.turn_id] = _turn(*row)
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


def _heads() -> Select[str, int, datetime, int, int]:
    of_user = SessionRow.user_id == UserRow.id
    return select(
        UserRow.name,
        UserRow.version,
        UserRow.created_at,
        total(SessionRow.turns).where(of_user).scalar_subquery(),
        total(SessionRow.turns - SessionRow.encoded_turns).where(of_user).scalar_subquery(),
    ).join(TenantRow, TenantRow.id == UserRow.tenant_id)


def _head(
    tenant: str, name: str, version: int, created_at: datetime, turns: int, pending: int
) -> Head:
    return Head(MemoryId(name, tenant), version, created_at, int(turns), int(pending))


def _turns_where(condition: ColumnElement[bool]) -> Select[str, str, str, datetime, str]:
    return (
        select(SessionRow.name, TurnRow.role, TurnRow.text, TurnRow.time, TurnRow.turn_id)
        .join(SessionRow, SessionRow.id == TurnRow.session_id)
        .where(condition)
        .order_by(TurnRow.time, TurnRow.turn_id)
    )


def _turn(session: str, role: str, text: str, time: datetime, turn_id: str) -> Turn:
    return Turn(session=session, role=Role(role), text=text, time=time, id=turn_id)


def _turn_conflict(earlier: Turn, turn: Turn) -> StateConflict:
    """Name what differs, not what it is: a message may reach other eyes than the text."""
    fields = ("session", "role", "text", "time")
    different = [name for name in fields if getattr(earlier, name) != getattr(turn, name)]
    return StateConflict(
        f"turn {turn.id}",
        f"is already known with another {' and '.join(different)}; use a new id",
    )
