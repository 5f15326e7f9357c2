"""Bringing a database to this program's tables, and telling where it stands.

Alembic is synchronous and the drivers are not: each call here runs its own event loop in its own
thread, so it can be made from anywhere; it blocks until the work is done.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from memory_service.errors import ConfigurationError, Unavailable
from memory_service.storage.engine import (
    Purpose,
    create_engine,
    describe,
    parse_url,
    sqlite_file,
    transaction_options,
)
from memory_service.storage.failures import translated

_ADVISORY_LOCK = 0x6D656D6F7279  # "memory": any number that no other program on the server takes

_Answer = TypeVar("_Answer")


def upgrade(url: str, revision: str = "head") -> None:
    """Create or bring up to date all tables; two processes may do this at once.

    Raises:
        ConfigurationError: the database is newer than this program, or the URL is wrong.
        Unavailable: it is locked, read-only, full, damaged or cannot be reached.
    """
    _migrate(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Go back to an earlier revision ("-1", "base"). What only newer tables hold is lost.

    Raises:
        ConfigurationError: the database is newer than this program, or the URL is wrong.
        Unavailable: it is locked, read-only, full, damaged or cannot be reached.
    """
    _migrate(url, lambda config: command.downgrade(config, revision))


def current(url: str) -> tuple[str | None, str]:
    """Tell the database's revision (None: no tables yet) and the one this program needs.

    Raises:
        ConfigurationError: the database is newer than this program, or the URL is wrong.
        Unavailable: it is locked, damaged or cannot be reached.
    """
    place = sqlite_file(parse_url(url))
    if place is not None and not place.exists():
        return None, _head()  # looking must not create the file
    return on_database(url, lambda connection: _revision(connection, url), Purpose.READING), _head()


def on_database(
    url: str, work: Callable[[Connection], _Answer], purpose: Purpose = Purpose.WRITING
) -> _Answer:
    """Run synchronous work in one transaction on an own connection, and commit it.

    Raises:
        ConfigurationError: the URL is wrong.
        Unavailable: the database cannot be used now.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(_on_database(url, work, purpose))).result()


async def _on_database(
    url: str, work: Callable[[Connection], _Answer], purpose: Purpose
) -> _Answer:
    # SQLite changes a table by copying it; with foreign keys on, dropping the old would cascade.
    engine = create_engine(url, foreign_keys=False, pooled=False)
    engine = engine.execution_options(**transaction_options(engine.dialect.name, purpose))
    try:
        with translated(describe(engine.url)):
            async with engine.begin() as connection:
                return await connection.run_sync(work)
    finally:
        await engine.dispose()


def _migrate(url: str, run: Callable[[Config], None]) -> None:
    def work(connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        _revision(connection, url)
        config = _config()
        config.attributes["connection"] = connection
        with _explained():
            run(config)
        _check_references(connection, url)

    on_database(url, work)


def _revision(connection: Connection, url: str) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise ConfigurationError(
            "database",
            f"the {describe(parse_url(url))} is at revision {found}, newer than this program",
            "upgrade memory-service, or use another database",
        )
    return found


def _check_references(connection: Connection, url: str) -> None:
    """On SQLite, check afterwards what was not checked meanwhile."""
    if (
        connection.dialect.name == "sqlite"
        and connection.execute(text("PRAGMA foreign_key_check")).first()
    ):
        raise Unavailable(
            "database",
            f"the {describe(parse_url(url))} would hold rows without their parents; "
            "nothing was changed",
            "restore it from a backup, then run `memory db upgrade` again",
        )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise ConfigurationError(
            "revision", str(error), "see `memory db current` for the revisions there are"
        ) from error


def _head() -> str:
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _config() -> Config:
    """Alembic's configuration, without a file, from wherever the package is installed.

    In a wheel the scripts lie inside `memory_service`, in a checkout beside it: only the import
    system knows. (`memory_service:migrations` would be the former only.)
    """
    spec = find_spec("memory_service.migrations")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "installation", "lacks memory_service.migrations", "install memory-service again"
        )
    config = Config()
    folder = spec.submodule_search_locations[0]
    config.set_main_option("script_location", folder.replace("%", "%%"))
    return config
