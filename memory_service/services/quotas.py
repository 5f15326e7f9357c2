"""Quotas: what a tenant may keep, and what it keeps."""

from collections.abc import Mapping
from dataclasses import replace

from memory_service.domain.quotas import Quota, Usage
from memory_service.errors import NotFound
from memory_service.services.ports import OpenUnit


class Quotas:
    """Reads and changes the quotas of tenants."""

    def __init__(self, open_unit: OpenUnit) -> None:
        self._open_unit = open_unit

    async def show(self, tenant: str) -> tuple[Quota, Usage]:
        """What a tenant may keep and what it keeps.

        Raises:
            NotFound: there is no such tenant.
        """
        async with self._open_unit() as unit:
            return await unit.memories.quota(tenant)

    async def change(self, tenant: str, limits: Mapping[str, int | None]) -> tuple[Quota, Usage]:
        """Change the named limits of a tenant, which may be new; None takes one away.

        What is kept beyond a limit stays; only more of it is refused.

        Raises:
            InvalidInput: a limit is negative.
        """
        async with self._open_unit() as unit:
            try:
                before, _ = await unit.memories.quota(tenant)
            except NotFound:
                before = Quota()
            await unit.memories.set_quota(tenant, replace(before, **limits))
            await unit.commit()
        return await self.show(tenant)
