"""Every query about API keys."""

from datetime import datetime

from sqlalchemy import Select, delete, insert, select, update

from memory_service.domain.keys import ApiKey, Scope
from memory_service.errors import NotFound
from memory_service.storage.queries import TABLES, now
from memory_service.storage.tables import ApiKeyRow, TenantRow
from memory_service.storage.transaction import Transaction


class Keys:
    """The queries of one transaction (`services.ports.ApiKeys`)."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def add(self, key: ApiKey) -> None:
        """Store a key, creating its tenant where it is new."""
        await self._transaction.insert_missing(
            TABLES["tenants"], {"name": key.tenant, "created_at": now()}
        )
        tenant = select(TenantRow.id).where(TenantRow.name == key.tenant).scalar_subquery()
        await self._transaction.write(
            insert(TABLES["api_keys"]).values(
                key_id=key.id,
                tenant_id=tenant,
                digest=key.digest,
                scopes=",".join(sorted(key.scopes)),
                created_at=key.created_at,
            )
        )

    async def find(self, key_id: str) -> ApiKey | None:
        """A key by its id, revoked or not."""
        rows = await self._transaction.read(_keys().where(ApiKeyRow.key_id == key_id))
        return _key(*rows[0]) if rows else None

    async def all(self) -> list[ApiKey]:
        """All keys by tenant and time."""
        rows = await self._transaction.read(
            _keys().order_by(TenantRow.name, ApiKeyRow.created_at, ApiKeyRow.key_id)
        )
        return [_key(*row) for row in rows]

    async def any(self) -> bool:
        """Whether there is a key, revoked or not."""
        return bool(await self._transaction.read(select(ApiKeyRow.key_id).limit(1)))

    async def revoke(self, key_id: str) -> None:
        """End a key; one that was revoked before stays so.

        Raises:
            NotFound: there is no such key.
        """
        if await self.find(key_id) is None:
            raise NotFound("key", key_id)
        await self._transaction.write(
            update(TABLES["api_keys"])
            .where(TABLES["api_keys"].c.key_id == key_id)
            .where(TABLES["api_keys"].c.revoked_at.is_(None))
            .values(revoked_at=now())
        )

    async def delete_all(self, tenant: str) -> int:
        """Delete a tenant's keys; how many there were.

        Raises:
            NotFound: there is no such tenant.
        """
        rows = await self._transaction.read(select(TenantRow.id).where(TenantRow.name == tenant))
        if not rows:
            raise NotFound("tenant", tenant)
        keys = delete(TABLES["api_keys"]).where(TABLES["api_keys"].c.tenant_id == rows[0].id)
        return await self._transaction.write(keys)


def _keys() -> Select[str, str, str, str, datetime, datetime | None]:
    return select(
        ApiKeyRow.key_id,
        TenantRow.name,
        ApiKeyRow.scopes,
        ApiKeyRow.digest,
        ApiKeyRow.created_at,
        ApiKeyRow.revoked_at,
    ).join(TenantRow, TenantRow.id == ApiKeyRow.tenant_id)


def _key(  # one parameter per column
    key_id: str,
    tenant: str,
    scopes: str,
    digest: str,
    created_at: datetime,
    revoked_at: datetime | None,
) -> ApiKey:
    allowed = frozenset(Scope(name) for name in scopes.split(","))
    return ApiKey(key_id, tenant, allowed, digest, created_at, revoked_at)
