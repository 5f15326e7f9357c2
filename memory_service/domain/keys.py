"""API keys: whose data a caller may reach, and what it may do there."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from memory_service.domain.turns import check_name
from memory_service.errors import InvalidInput


class Scope(StrEnum):
    """What a key allows."""

    READ = "read"
    """Look at memories, and chat without storing anything."""
    WRITE = "write"
    """Append turns, chat with both sides stored, rebuild."""
    ADMIN = "admin"
    """Delete memories."""


@dataclass(frozen=True)
class ApiKey:
    """A key as it is stored: of the secret only its digest.

    Raises:
        InvalidInput: a name cannot be stored, or there is no scope.
    """

    id: str
    tenant: str
    scopes: frozenset[Scope]
    digest: str
    created_at: datetime
    revoked_at: datetime | None = None

    def __post_init__(self) -> None:
        check_name("tenant", self.tenant)
        if not self.scopes:
            raise InvalidInput("scope", "", f"must name at least one of: {', '.join(Scope)}")


def parse_scopes(text: str) -> frozenset[Scope]:
    """Read `read,write`.

    Raises:
        InvalidInput: names the scope that there is not.
    """
    scopes = set()
    for name in filter(None, (part.strip() for part in text.split(","))):
        try:
            scopes.add(Scope(name))
        except ValueError:
            known = ", ".join(Scope)
            raise InvalidInput("scope", name, f"must be one or more of: {known}") from None
    return frozenset(scopes)
