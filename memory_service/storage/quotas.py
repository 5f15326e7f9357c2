"""Queries about what tenants keep and may keep."""

from collections.abc import Sequence

from sqlalchemy import Select, func, select, update

from memory_service.domain.quotas import Quota, Usage
from memory_service.domain.turns import Turn
from memory_service.errors import NotFound
from memory_service.storage.queries import TABLES, Queries, now
from memory_service.storage.tables import TenantRow, UserRow


class Quotas(Queries):
    """Usage is a sum over users, counted where their turns change: nobody waits for a counter."""

    async def quota(self, tenant: str) -> tuple[Quota, Usage]:
        """What a tenant may keep and what it keeps.

        Raises:
            NotFound: the tenant is unknown.
        """
        rows = await self._transaction.read(_limits(tenant))
        if not rows:
            raise NotFound("tenant", tenant)
        return Quota(*rows[0]), await self._usage(tenant)

    async def set_quota(self, tenant: str, quota: Quota) -> None:
        """Limit what a tenant may keep, from its next turn on; the tenant may be new."""
        await self._transaction.insert_missing(
            TABLES["tenants"], {"name": tenant, "created_at": now()}
        )
        await self._transaction.write(
            update(TenantRow)
            .where(TenantRow.name == tenant)
            .values(max_users=quota.users, max_turns=quota.turns, max_text_bytes=quota.text_bytes)
        )

    async def _keep_count(self, user_id: int, turns: int, text_bytes: int) -> None:
        """Note that so many more are kept, or fewer."""
        await self._transaction.write(
            update(UserRow)
            .where(UserRow.id == user_id)
            .values(
                kept_turns=UserRow.kept_turns + turns, kept_bytes=UserRow.kept_bytes + text_bytes
            )
        )

    async def _require_quota(self, tenant: str, *parts: str) -> None:
        """Refuse a change that was just written, where it is too much; it is rolled back then.

        Only tenants with a quota pay for it: their writers take turns.

        Raises:
            QuotaExceeded: the tenant would keep more than it may.
        """
        limits = _limits(tenant)
        quota = Quota(*(await self._transaction.read(limits))[0])
        if not quota.is_unlimited:
            await self._transaction.lock(limits.with_for_update(of=TenantRow, key_share=True))
            quota.require(tenant, await self._usage(tenant), *parts)

    async def _usage(self, tenant: str) -> Usage:
        rows = await self._transaction.read(
            select(
                func.count(),
                func.coalesce(func.sum(UserRow.kept_turns), 0),
                func.coalesce(func.sum(UserRow.kept_bytes), 0),
            )
            .select_from(UserRow)
            .join(TenantRow, TenantRow.id == UserRow.tenant_id)
            .where(TenantRow.name == tenant)
        )
        return Usage(*(int(value) for value in rows[0]))


def _limits(tenant: str) -> Select[int | None, int | None, int | None]:
    columns = (TenantRow.max_users, TenantRow.max_turns, TenantRow.max_text_bytes)
    return select(*columns).where(TenantRow.name == tenant)


def bytes_of(turns: Sequence[Turn]) -> int:
    """What the turns' texts take."""
    return sum(len(turn.text.encode()) for turn in turns)
