"""Whose memory, which version of it, and what made it."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from memory_service.domain.turns import check_name
from memory_service.errors import IncompatibleState, InvalidInput

DEFAULT_TENANT = "default"
_DIGEST_CHARS = 64


@dataclass(frozen=True)
class MemoryId:
    """One user of one tenant.

    Raises:
        InvalidInput: a name is empty, too long or not printable.
    """

    user: str
    tenant: str = DEFAULT_TENANT

    def __post_init__(self) -> None:
        check_name("tenant", self.tenant)
        check_name("user", self.user)
        if "@" in self.user and self.user.rpartition("@")[2].isdecimal():
            raise InvalidInput("user", self.user, "must not end like a version (@ and a number)")


def parse_versioned(name: str) -> tuple[str, int | None]:
    """Split `user@version` into the user and the version; no version means the newest."""
    user, at, version = name.rpartition("@")
    if at and version.isdecimal():
        return user, int(version)
    return name, None


@dataclass(frozen=True)
class Fingerprint:
    """Everything a state depends on besides the turns; two states add only if these are equal.

    Digests are SHA-256 in hexadecimal. `chunking` is the chunk format and token budget.
    """

    generator: str
    base_model: str
    tokenizer: str
    chunking: str
    encoding: str
    numerics: str

    @property
    def digest(self) -> str:
        """One name for all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def short(self) -> str:
        """First twelve characters of the digest, for people."""
        return self.digest[:12]

    def require(self, found: "Fingerprint", subject: str) -> None:
        """Check that what was found was made by the same parts.

        Raises:
            IncompatibleState: names both sides, and the parts that differ.
        """
        if found == self:
            return
        different = ", ".join(
            f"{field.name} {_shown(getattr(found, field.name))} instead of "
            f"{_shown(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(found, field.name) != getattr(self, field.name)
        )
        raise IncompatibleState(
            subject,
            f"was made by {found.short}, but {self.short} is running ({different})",
            "run `memory users migrate USER` to encode the kept turns again, or start with the "
            "generator and base model that made it",
        )


def _shown(part: str) -> str:
    """Digests by their first characters; what is short may differ in its last ones."""
    return part[:12] if len(part) == _DIGEST_CHARS else part
