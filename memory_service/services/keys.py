"""Keys: make, check and revoke what callers of the API show."""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime

from memory_service.domain.keys import ApiKey, Scope
from memory_service.errors import Unauthenticated
from memory_service.services.ports import OpenUnit

PREFIX = "mk"
SECRET_BYTES = 32


class Keys:
    """API keys. The secret is shown once; stored is its digest.

    A secret of 256 random bits cannot be guessed, so a plain digest is enough: slow hashes are for
    passwords.
    """

    def __init__(self, open_unit: OpenUnit) -> None:
        self._open_unit = open_unit

    async def create(self, tenant: str, scopes: frozenset[Scope]) -> tuple[ApiKey, str]:
        """Make a key for a tenant; it, and what its holder sends.

        Raises:
            InvalidInput: the tenant's name cannot be stored, or there is no scope.
        """
        key_id = secrets.token_hex(6)
        token = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
        key = ApiKey(key_id, tenant, scopes, _digest(token), datetime.now(UTC))
        async with self._open_unit() as unit:
            await unit.keys.add(key)
            await unit.commit()
        return key, token

    async def list(self) -> list[ApiKey]:
        """All keys, revoked ones too."""
        async with self._open_unit() as unit:
            return await unit.keys.all()

    async def are_required(self) -> bool:
        """Whether callers must show a key: as soon as one was made, and when it was revoked too.

        Revoking the last key shuts everybody out; it lets nobody in.
        """
        async with self._open_unit() as unit:
            return await unit.keys.any()

    async def check(self, token: str) -> ApiKey:
        """The key of a token.

        Raises:
            Unauthenticated: it is none, or was revoked; which of them is not told.
        """
        prefix, _, rest = token.partition("_")
        key_id = rest.partition("_")[0]
        key = None
        if prefix == PREFIX and key_id.isalnum() and key_id.isascii():
            async with self._open_unit() as unit:
                key = await unit.keys.find(key_id)
        is_right = hmac.compare_digest(key.digest if key is not None else "", _digest(token))
        if key is None or not is_right or key.revoked_at is not None:
            raise Unauthenticated("the key is not valid")
        return key

    async def revoke(self, key_id: str) -> None:
        """End a key at once.

        Raises:
            NotFound: there is no such key.
        """
        async with self._open_unit() as unit:
            await unit.keys.revoke(key_id)
            await unit.commit()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
