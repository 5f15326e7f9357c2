"""Database failures -> the package's errors: what to do, never a parameter or password."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from memory_service.errors import (
    ConfigurationError,
    MemoryServiceError,
    StateConflict,
    Timeout,
    Unavailable,
)

UPGRADE = "run `memory db upgrade`"
"""What brings a database to this program's tables."""

REBUILD = "run `memory users rebuild USER` to encode the kept turns again"
"""What helps against every damaged state or adapter: they are caches, the turns are kept."""

_RETRY = "try again; if it stays locked, stop the other process that writes to it"
_FREE_SPACE = "free disk space, or move the database to a larger disk"
_RESTORE = "restore it from a backup; the damaged file is left as it is"
_WRITABLE = "make the file and its folder writable, or choose another MEMORY_SERVICE_DATABASE_URL"
_START = "start the database server, or correct MEMORY_SERVICE_DATABASE_URL"
_WHO = "correct user and password in MEMORY_SERVICE_DATABASE_URL"

_SQLITE = (
    # part of SQLite's message, problem, remedy
    ("locked", "is locked by another writer", _RETRY),
    ("readonly", "is read-only", _WRITABLE),
    ("malformed", "is damaged", _RESTORE),
    ("not a database", "is not a SQLite database, or is damaged", _RESTORE),
    ("is full", "has no room left", _FREE_SPACE),
    ("disk i/o error", "cannot be read or written", "check the disk"),
)
_POSTGRES = {
    # SQLSTATE or its class: problem, remedy
    "53100": ("has no room left", _FREE_SPACE),
    "53": ("has no resources left (connections or memory)", "try again later"),
    "25006": ("is read-only", "connect to the primary server"),
    "55P03": ("is locked by another writer", _RETRY),
    "57": ("is starting, stopping, or cancelled the request", "try again"),
    "58": ("cannot read or write its files", "see the server's log"),
    "XX": ("reports damaged data or an internal error", "see the server's log"),
    "08": ("broke the connection", _START),
}
_POSTGRES_SETTINGS = {
    "3D": ("does not exist", "create it (createdb), or correct MEMORY_SERVICE_DATABASE_URL"),
    "28": ("refuses this user or password", _WHO),
    "42501": ("does not let this user do that", "grant the user its rights"),
}
_UNMIGRATED = {"42P01", "42703"}
_OCCUPIED = {"42P07", "42P06"}
_CROSSED = {"40001", "40P01"}


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Turn what a database call raises into this package's errors.

    Args:
        place: how messages name the database.

    Raises:
        Unavailable: it cannot be used now: locked, full, read-only, damaged, unreachable.
        Timeout: all connections are in use.
        ConfigurationError: its tables are missing or old, or the URL is wrong.
        StateConflict: two writers crossed; the transaction is gone and can be retried.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        failure = _translate(error, place)
        if failure is None:
            raise
        raise failure from error
    except PoolTimeout as error:
        raise Timeout(
            "database", f"no connection to the {place} became free", "try again later"
        ) from error
    except OSError as error:
        raise Unavailable(
            "database", f"the {place} cannot be reached ({type(error).__name__})", _START
        ) from error


def _translate(error: DBAPIError | sqlite3.Error, place: str) -> MemoryServiceError | None:
    """Give the error to raise instead, or None for what only a bug can cause."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    if isinstance(cause, sqlite3.Error):
        known = _of_sqlite(str(cause).lower(), place)
    else:
        known = _of_postgres(state, place) if isinstance(state, str) else None
    if known is not None:
        return known
    if isinstance(error, IntegrityError):
        return StateConflict("memory", "another writer changed it meanwhile; read it and retry")
    if isinstance(error, ProgrammingError | DataError | NotSupportedError):
        return None
    what = str(cause) if isinstance(cause, sqlite3.Error) else type(cause).__name__
    return Unavailable("database", f"the {place} failed ({what})", "try again")


def _of_sqlite(message: str, place: str) -> MemoryServiceError | None:
    if "no such table" in message or "no such column" in message:
        return _unmigrated(place)
    if "already exists" in message:
        return _occupied(place)
    if "unable to open" in message:
        return ConfigurationError("database_url", f"the {place} cannot be opened", _WRITABLE)
    for part, problem, remedy in _SQLITE:
        if part in message:
            return Unavailable("database", f"the {place} {problem}", remedy)
    return None


def _of_postgres(state: str, place: str) -> MemoryServiceError | None:
    if state in _UNMIGRATED:
        return _unmigrated(place)
    if state in _OCCUPIED:
        return _occupied(place)
    if state in _CROSSED:
        return StateConflict("memory", "two writers crossed; read it and retry")
    for key in (state, state[:2]):
        if key in _POSTGRES_SETTINGS:
            problem, remedy = _POSTGRES_SETTINGS[key]
            return ConfigurationError("database_url", f"the {place} {problem}", remedy)
        if key in _POSTGRES:
            problem, remedy = _POSTGRES[key]
            return Unavailable("database", f"the {place} {problem}", remedy)
    return None


def _unmigrated(place: str) -> ConfigurationError:
    return ConfigurationError("database", f"the {place} lacks tables of this program", UPGRADE)


def _occupied(place: str) -> ConfigurationError:
    return ConfigurationError(
        "database_url", f"the {place} holds tables of another program", "use an empty database"
    )
