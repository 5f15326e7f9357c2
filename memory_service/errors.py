"""The whole exception tree.

    MemoryServiceError
    ├── InvalidInput        a value the caller gave cannot be accepted
    ├── NotFound            what was named does not exist
    ├── StateConflict       it exists already and differs, or someone else wrote first
    ├── IncompatibleState   a state or adapter made by another generator, base model or chunking
    ├── Unauthenticated     who asks is not known
    ├── Forbidden           who asks may not do this
    ├── QuotaExceeded       a tenant would keep more than it may
    ├── NumericalError      NaN, Inf, overflow, or a matrix that cannot be solved
    ├── ConfigurationError  settings or files of this installation are wrong
    └── BackendError        a part we depend on did not do its work
        ├── Unavailable     it cannot be used now
        ├── Overloaded      it has too much to do already
        ├── Timeout         it took too long
        └── Rejected        it refused the request

No class knows an HTTP status or an exit code: `memory_cli.main` maps class to exit code.
"""

from typing import ClassVar


class MemoryServiceError(Exception):
    """Root of every error this package raises on purpose."""

    code: ClassVar[str] = "error"


class InvalidInput(MemoryServiceError):
    """A value the caller gave cannot be accepted; nothing was changed."""

    code = "invalid_input"

    def __init__(self, field: str, value: object, problem: str) -> None:
        self.field = field
        self.value = _shorten(value)
        self.problem = problem
        super().__init__(f"{field}: {problem} (got {self.value})")


class NotFound(MemoryServiceError):
    """What was named does not exist."""

    code = "not_found"

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"no {kind} named {_shorten(name)}" + (f"; {hint}" if hint else ""))


class StateConflict(MemoryServiceError):
    """It exists already with other content, or another writer came first."""

    code = "conflict"

    def __init__(self, subject: str, problem: str) -> None:
        self.subject = subject
        self.problem = problem
        super().__init__(f"{subject}: {problem}")


class IncompatibleState(MemoryServiceError):
    """A state, adapter or checkpoint does not belong to what is running."""

    code = "incompatible_state"

    def __init__(self, subject: str, problem: str, remedy: str) -> None:
        self.subject = subject
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{subject}: {problem}; {remedy}")


class Unauthenticated(MemoryServiceError):
    """A valid API key is needed."""

    code = "unauthenticated"

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"key: {problem}; send one as `Authorization: Bearer KEY`")


class Forbidden(MemoryServiceError):
    """The API key does not allow this."""

    code = "forbidden"

    def __init__(self, action: str, scope: str) -> None:
        self.action = action
        self.scope = scope
        super().__init__(f"{action}: needs a key with the scope {scope}")


class QuotaExceeded(MemoryServiceError):
    """A tenant would keep more than it may; nothing was stored."""

    code = "quota_exceeded"

    def __init__(self, tenant: str, what: str, amount: int, limit: int) -> None:
        self.tenant = tenant
        self.what = what
        self.amount = amount
        self.limit = limit
        super().__init__(
            f"tenant {tenant}: would keep {amount:,} {what} where its quota is {limit:,}; forget "
            "some, or let the operator raise it with `memory tenants quota`"
        )


class NumericalError(MemoryServiceError):
    """A computation produced something that is not a usable number."""

    code = "numerical_error"

    def __init__(self, quantity: str, problem: str) -> None:
        self.quantity = quantity
        self.problem = problem
        super().__init__(f"{quantity}: {problem}")


class ConfigurationError(MemoryServiceError):
    """Settings, files or installation of this machine are wrong."""

    code = "configuration"

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        self.setting = setting
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{setting}: {problem}; {remedy}")


class BackendError(MemoryServiceError):
    """A part we depend on (database, base model, remote engine) did not do its work."""

    code = "backend"

    def __init__(self, backend: str, problem: str, remedy: str = "") -> None:
        self.backend = backend
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{backend}: {problem}" + (f"; {remedy}" if remedy else ""))


class Unavailable(BackendError):
    """The backend cannot be used now."""

    code = "unavailable"


class Overloaded(BackendError):
    """The backend has too much to do already; try again later."""

    code = "overloaded"

    def __init__(self, backend: str, problem: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(backend, problem, f"try again in {retry_after_s} s")


class Timeout(BackendError):
    """The backend took too long."""

    code = "timeout"


class Rejected(BackendError):
    """The backend refused the request."""

    code = "rejected"


def _shorten(value: object, limit: int = 80) -> str:
    """Show a value in a message without flooding the terminal or a log."""
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}... ({len(shown)} characters)"
