"""Queries about turns that are to be forgotten on a date."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, bindparam, or_, select, update

from memory_service.domain.memory import MemoryId
from memory_service.errors import NotFound
from memory_service.storage.queries import TABLES, Queries, is_user, now
from memory_service.storage.tables import TenantRow, TurnRow, UserRow


class Expiry(Queries):
    """A turn's own date comes before its tenant's rule, which counts from when it was said."""

    async def expiry_rule(self, tenant: str) -> int | None:
        """Days that a tenant's turns are kept; None is for good.

        Raises:
            NotFound: the tenant is unknown.
        """
        rows = await self._transaction.read(
            select(TenantRow.expire_after_days).where(TenantRow.name == tenant)
        )
        if not rows:
            raise NotFound("tenant", tenant)
        days: int | None = rows[0].expire_after_days
        return days

    async def set_expiry_rule(self, tenant: str, days: int | None) -> None:
        """Say how many days a tenant's turns are kept; the tenant may be new."""
        await self._transaction.insert_missing(
            TABLES["tenants"], {"name": tenant, "created_at": now()}
        )
        await self._transaction.write(
            update(TenantRow).where(TenantRow.name == tenant).values(expire_after_days=days)
        )

    async def set_expiry(self, memory_id: MemoryId, dates: Mapping[str, datetime | None]) -> None:
        """Give turns that are kept another date, or none; other ids are passed over.

        Raises:
            NotFound: the user is unknown.
        """
        user_id, _ = await self._lock(memory_id)
        if dates:
            table = TABLES["turns"]
            await self._transaction.write(
                update(table)
                .where(table.c.user_id == user_id, table.c.turn_id == bindparam("which"))
                .values(expires_at=bindparam("date")),
                [{"which": turn_id, "date": date} for turn_id, date in sorted(dates.items())],
            )

    async def memories_with_expired(self, at: datetime) -> list[MemoryId]:
        """Everybody with turns that are to be forgotten at a time, of all tenants."""
        found: set[MemoryId] = set()
        owners = select(UserRow.name, TenantRow.name).join(
            TenantRow, TenantRow.id == UserRow.tenant_id
        )
        dated = owners.where(
            UserRow.id.in_(select(TurnRow.user_id).where(TurnRow.expires_at <= at))
        )
        found |= {MemoryId(user, tenant) for user, tenant in await self._transaction.read(dated)}
        rules = select(TenantRow.name, TenantRow.expire_after_days)
        for tenant, days in await self._transaction.read(rules):
            if days is None:
                continue
            old = select(TurnRow.id).where(TurnRow.user_id == UserRow.id, _too_old(at, days))
            ruled = owners.where(TenantRow.name == tenant, old.exists())
            rows = await self._transaction.read(ruled)
            found |= {MemoryId(user, tenant) for user, tenant in rows}
        return sorted(found, key=lambda one: (one.tenant, one.user))

    async def expired_turn_ids(self, memory_id: MemoryId, at: datetime) -> set[str]:
        """A user's turns that are to be forgotten at a time.

        Raises:
            NotFound: the user is unknown.
        """
        rows = await self._transaction.read(
            select(UserRow.id, TenantRow.expire_after_days)
            .join(TenantRow, TenantRow.id == UserRow.tenant_id)
            .where(*is_user(memory_id))
        )
        if not rows:
            raise NotFound("user", memory_id.user)
        user_id, days = rows[0]
        over = TurnRow.expires_at <= at
        if days is not None:
            over = or_(over, _too_old(at, days))
        found = await self._transaction.read(
            select(TurnRow.turn_id).where(TurnRow.user_id == user_id, over)
        )
        return {turn_id for (turn_id,) in found}


def _too_old(at: datetime, days: int) -> ColumnElement[bool]:
    return and_(TurnRow.expires_at.is_(None), TurnRow.time <= at - timedelta(days=days))
