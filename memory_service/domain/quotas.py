"""How much a tenant may keep."""

from dataclasses import astuple, dataclass, fields

from memory_service.errors import InvalidInput, QuotaExceeded


@dataclass(frozen=True)
class Usage:
    """What a tenant keeps; `text_bytes` are those of its turns' texts in UTF-8."""

    users: int
    turns: int
    text_bytes: int


@dataclass(frozen=True)
class Quota:
    """The most that a tenant may keep, each part by itself; None is no limit.

    Raises:
        InvalidInput: a limit is negative, or more than any database counts to.
    """

    users: int | None = None
    turns: int | None = None
    text_bytes: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None and not 0 <= limit < 2**63:
                raise InvalidInput(field.name, limit, "must be from 0 to 2**63 - 1")

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is limited."""
        return all(limit is None for limit in astuple(self))

    def require(self, tenant: str, used: Usage, *parts: str) -> None:
        """Refuse what is above the limit in one of the named parts.

        Raises:
            QuotaExceeded: a part is above its limit.
        """
        for part in parts:
            limit, amount = getattr(self, part), getattr(used, part)
            if limit is not None and amount > limit:
                raise QuotaExceeded(tenant, part.replace("_", " "), amount, limit)
