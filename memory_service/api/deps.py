"""Who asks, and what they may do."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from memory_service.api.metrics import Metrics
from memory_service.bootstrap import Service
from memory_service.domain.keys import Scope
from memory_service.domain.memory import MemoryId
from memory_service.errors import Forbidden, Overloaded, Unauthenticated
from memory_service.services.keys import Keys
from memory_service.settings import Settings

BEARER = HTTPBearer(auto_error=False, description="`memory keys create`; none on loopback")
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
MINUTE_S = 60.0


@dataclass
class Rates:
    """Requests of every key in the running minute."""

    most_per_minute: int
    _minute: int = 0
    _counts: dict[str, int] = field(default_factory=dict)

    def count(self, key_id: str) -> None:
        """Take note of a request.

        Raises:
            Overloaded: the key has had its share of this minute.
        """
        minute, passed_s = divmod(time.monotonic(), MINUTE_S)
        if minute != self._minute:
            self._minute, self._counts = int(minute), {}
        self._counts[key_id] = self._counts.get(key_id, 0) + 1
        if self.most_per_minute and self._counts[key_id] > self.most_per_minute:
            problem = f"this key has made its {self.most_per_minute} requests of this minute"
            raise Overloaded("rate limit", problem, max(1, round(MINUTE_S - passed_s)))


@dataclass
class Door:
    """Whether callers must show a key. Once shut it stays so while the process runs.

    So whoever deletes the last key, with its tenant for instance, opens nothing.
    """

    is_shut: bool

    async def must_show_key(self, keys: Keys) -> bool:
        """Look whether there is a key by now, where there was none."""
        self.is_shut = self.is_shut or await keys.are_required()
        return self.is_shut


@dataclass(frozen=True)
class Parts:
    """What routes work with."""

    service: Service
    settings: Settings
    door: Door
    rates: Rates
    metrics: Metrics


@dataclass(frozen=True)
class Caller:
    """Whose data a request may reach, and what it may do there."""

    tenant: str
    scopes: frozenset[Scope]

    def memory(self, user: str) -> MemoryId:
        """A user of the caller's own tenant: no request can name another one.

        Raises:
            InvalidInput: the name cannot be a user's.
        """
        return MemoryId(user, self.tenant)

    def require(self, scope: Scope, action: str) -> None:
        """Check that the key allows it.

        Raises:
            Forbidden: it does not.
        """
        if scope not in self.scopes:
            raise Forbidden(action, scope.value)


def parts(request: Request) -> Parts:
    """The parts that the app was made with."""
    made: Parts = request.app.state.parts
    return made


async def caller(
    request: Request,
    made: Annotated[Parts, Depends(parts)],
    shown: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
) -> Caller:
    """Who asks: the holder of a key, or anybody on this machine while there are no keys.

    Raises:
        Unauthenticated: a key is needed and none, or no valid one, was sent.
        Forbidden: there are no keys and the request names another host than this machine: a web
            page elsewhere may have sent it (DNS rebinding).
        Overloaded: the key has made too many requests.
    """
    keys = made.service.store.keys
    if not await made.door.must_show_key(keys):
        if request.url.hostname not in LOOPBACK:
            raise Forbidden("asking for another host than localhost", "read")
        return Caller(made.settings.tenant, frozenset(Scope))
    if shown is None or not shown.credentials:
        raise Unauthenticated("is missing")
    key = await keys.check(shown.credentials.strip())
    made.rates.count(key.id)
    return Caller(key.tenant, key.scopes)


def allowed(scope: Scope, action: str) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency: a caller whose key has a scope."""

    async def check(who: Annotated[Caller, Depends(caller)]) -> Caller:
        who.require(scope, action)
        return who

    return check
