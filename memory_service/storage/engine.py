"""Engines: the same code on a SQLite file and on PostgreSQL.

A transaction says what it is for before it begins (`READING`, `WRITING`), because both databases
want to know: SQLite takes its one write lock at BEGIN, so that two writers queue instead of
deadlocking on a lock upgrade; PostgreSQL gives readers one snapshot and writers the newest rows.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from memory_service.errors import ConfigurationError

BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another one before it gives up."""

CONNECT_TIMEOUT_S = 10.0
"""How long a PostgreSQL server may take to answer a new connection."""

STATEMENT_TIMEOUT_S = 60.0
"""How long one statement may take on PostgreSQL, before its connection is taken for dead."""

CACHE_KIB = 32_000
"""SQLite's memory for pages, of a connection: a version of several megabytes is written at once."""

LOG_PAGES = 10_000
"""SQLite's log is copied into the file beyond so many pages, within a commit; see `Transaction`."""

_BEGIN = "memory_service_begin"
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class Purpose(StrEnum):
    """What a transaction is for."""

    READING = "reading"
    WRITING = "writing"
    NO_TRANSACTION = "no transaction"


_SQLITE_BEGIN = {Purpose.READING: "BEGIN", Purpose.WRITING: "BEGIN IMMEDIATE"}
_POSTGRES_ISOLATION = {Purpose.READING: "REPEATABLE READ", Purpose.WRITING: "READ COMMITTED"}


def create_engine(
    url: str,
    *,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
    foreign_keys: bool = True,
    pooled: bool = True,
) -> AsyncEngine:
    """Make an engine; nothing is connected yet, but the folder of a SQLite file is created.

    `foreign_keys` is off for migrations only: rebuilding a table must not cascade.

    Raises:
        ConfigurationError: the URL is none, or of a database this program does not know.
    """
    parsed = parse_url(url)
    # Errors must not carry parameters: they are what people said.
    options: dict[str, Any] = {"hide_parameters": True}
    if not pooled:
        options["poolclass"] = NullPool
    if parsed.get_backend_name() == "postgresql":
        # Only migrations may take long.
        timeouts = {
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": STATEMENT_TIMEOUT_S if pooled else None,
        }
        return create_async_engine(parsed, connect_args=timeouts, pool_pre_ping=pooled, **options)
    _create_folder(parsed)
    engine = create_async_engine(parsed, connect_args={"timeout": busy_timeout_s}, **options)
    pragmas = (
        f"busy_timeout = {round(busy_timeout_s * 1000)}",  # first: the others may have to wait
        "journal_mode = WAL",
        "synchronous = FULL",
        f"foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        "secure_delete = ON",
        f"cache_size = -{CACHE_KIB}",
        f"wal_autocheckpoint = {LOG_PAGES}",
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        statement = connection.get_execution_options().get(_BEGIN, "BEGIN")
        if statement:
            connection.exec_driver_sql(statement)

    return engine


def create_sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Make the session factory: rows stay readable after the commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


def transaction_options(backend: str, purpose: Purpose) -> dict[str, Any]:
    """Execution options with which a transaction of that purpose begins."""
    if backend == "sqlite":
        return {_BEGIN: _SQLITE_BEGIN.get(purpose, "")}
    return {"isolation_level": _POSTGRES_ISOLATION.get(purpose, "AUTOCOMMIT")}


def parse_url(url: str) -> URL:
    """Read a database URL and choose the driver.

    Raises:
        ConfigurationError: it is none, or of a database this program does not know.
    """
    remedy = (
        "set MEMORY_SERVICE_DATABASE_URL to sqlite:///FILE or "
        "postgresql://USER:PASSWORD@HOST/DATABASE"
    )
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("database_url", "is not a database URL", remedy) from None
    backend = "postgresql" if parsed.drivername == "postgres" else parsed.get_backend_name()
    if backend not in _DRIVERS:
        raise ConfigurationError("database_url", f"names the database {backend!r}", remedy)
    if backend == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ConfigurationError("database_url", "names no file", remedy)
    return parsed.set(drivername=_DRIVERS[backend])


def describe(url: URL) -> str:
    """Name a database in a message: never its user, password or options."""
    if url.get_backend_name() == "sqlite":
        return f"SQLite file {url.database}"
    host = url.host or url.query.get("host") or "localhost"
    return f"PostgreSQL database {url.database} on {host}"


def sqlite_file(url: URL) -> Path | None:
    """Where a SQLite database lies; None for PostgreSQL and for SQLite's own `file:` URIs."""
    if url.get_backend_name() != "sqlite" or (url.database or "").startswith("file:"):
        return None
    return Path(url.database or "")


def _create_folder(url: URL) -> None:
    path = sqlite_file(url)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            "database_url",
            f"the folder {path.parent} cannot be created ({error.strerror})",
            "choose another folder in MEMORY_SERVICE_DATABASE_URL, or make this one writable",
        ) from error
