"""A database that is locked, full, read-only, damaged, unmigrated or not there."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_service.errors import ConfigurationError, Timeout, Unavailable
from memory_service.storage.engine import create_engine
from memory_service.storage.migrate import current, upgrade
from memory_service.storage.unit_of_work import UnitOfWork, unit_factory
from tests.integration.storage.records import ANN, turn

OpenUnit = Callable[[], UnitOfWork]


@asynccontextmanager
async def units(url: str, **options: Any) -> AsyncIterator[OpenUnit]:
    engine = create_engine(url, **options)
    yield unit_factory(engine)
    await engine.dispose()


async def add(open_unit: OpenUnit, number: int = 1, words: str = "") -> None:
    async with open_unit() as unit:
        await unit.memories.add_turns(ANN, [turn(number, text=words)])
        await unit.commit()


async def turns(open_unit: OpenUnit) -> int:
    async with open_unit() as unit:
        return (await unit.memories.head(ANN)).turns


async def test_a_locked_file_says_so_after_the_wait_and_works_again(sqlite_path: Path) -> None:
    async with units(f"sqlite:///{sqlite_path}", busy_timeout_s=0.2) as open_unit:
        await add(open_unit)
        with closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match=r"memory\.db is locked by another writer"):
                await add(open_unit, 2)
            assert await turns(open_unit) == 1  # readers need no lock
            other.execute("ROLLBACK")
        await add(open_unit, 2)
        assert await turns(open_unit) == 2


async def test_a_locked_file_is_waited_for(sqlite_path: Path) -> None:
    async with units(f"sqlite:///{sqlite_path}", busy_timeout_s=5) as open_unit:
        with closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(add(open_unit))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            other.execute("ROLLBACK")
            await waiting


async def test_a_read_only_file_says_so(sqlite_path: Path) -> None:
    async with units(f"sqlite:///{sqlite_path}") as open_unit:
        await add(open_unit)
    url = f"sqlite:///file:{sqlite_path}?mode=ro&uri=true"
    async with units(url) as open_unit:
        assert await turns(open_unit) == 1
        with pytest.raises(Unavailable, match="is read-only; make the file"):
            await add(open_unit, 2)


async def test_a_full_disk_says_so_and_loses_nothing(sqlite_path: Path) -> None:
    engine = create_engine(f"sqlite:///{sqlite_path}")
    open_unit = unit_factory(engine)
    await add(open_unit)
    await engine.dispose()

    @event.listens_for(engine.sync_engine, "connect")
    def limit(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA max_page_count = 50")
        cursor.close()

    with pytest.raises(Unavailable, match="has no room left; free disk space"):
        await add(open_unit, 2, "x" * 500_000)
    assert await turns(open_unit) == 1
    await engine.dispose()


async def test_a_damaged_file_says_so_and_is_left_as_it_is(sqlite_path: Path) -> None:
    async with units(f"sqlite:///{sqlite_path}") as open_unit:
        await add(open_unit)
    content = bytearray(sqlite_path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    sqlite_path.write_bytes(content)
    async with units(f"sqlite:///{sqlite_path}") as open_unit:
        with pytest.raises(Unavailable, match=r"is damaged; restore it from a backup"):
            await add(open_unit, 2)
    assert sqlite_path.read_bytes() == content


async def test_another_file_is_not_taken_for_a_database(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_text("a letter to grandmother\n" * 100)
    url = f"sqlite:///{path}"
    async with units(url) as open_unit:
        with pytest.raises(Unavailable, match="is not a SQLite database"):
            await add(open_unit)
    for call in (upgrade, current):
        with pytest.raises(Unavailable, match="is not a SQLite database"):
            call(url)
    assert path.read_text().startswith("a letter")


async def test_a_path_that_is_a_folder_says_so(tmp_path: Path) -> None:
    async with units(f"sqlite:///{tmp_path}") as open_unit:
        with pytest.raises(ConfigurationError, match="cannot be opened"):
            await add(open_unit)


async def test_a_database_without_tables_names_the_command(empty_database_url: str) -> None:
    async with units(empty_database_url) as open_unit:
        for call in (add, turns):
            with pytest.raises(ConfigurationError, match="memory db upgrade"):
                await call(open_unit)


async def test_a_database_with_older_tables_names_the_command(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    engine = create_engine(empty_database_url)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE sessions DROP COLUMN floor_revision"))
    with pytest.raises(ConfigurationError, match="memory db upgrade"):
        await add(unit_factory(engine))
    await engine.dispose()


async def test_a_server_that_is_not_there_says_so(tmp_path: Path) -> None:
    for url in (
        f"postgresql://ann:secret@/memory?host={tmp_path}",
        "postgresql://ann:secret@127.0.0.1:9/memory",
    ):
        async with units(url) as open_unit:
            with pytest.raises(Unavailable, match="start the database server") as caught:
                await add(open_unit)
        assert "secret" not in str(caught.value)
        with pytest.raises(Unavailable, match="start the database server") as caught:
            upgrade(url)
        assert "secret" not in str(caught.value)


async def test_a_missing_database_or_user_says_so(postgres_server: Any) -> None:
    url = str(postgres_server.get_uri("nowhere"))
    async with units(url) as open_unit:
        with pytest.raises(ConfigurationError, match="does not exist; create it"):
            await add(open_unit)
    async with units(url.replace("postgres:@", "stranger:secret@")) as open_unit:
        with pytest.raises(ConfigurationError, match="refuses this user or password") as caught:
            await add(open_unit)
    assert "secret" not in str(caught.value)


async def test_a_read_only_server_says_so(postgres_url: str) -> None:
    engine = create_engine(postgres_url)

    @event.listens_for(engine.sync_engine, "connect")
    def read_only(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        cursor.close()
        connection.commit()

    with pytest.raises(Unavailable, match="is read-only"):
        await add(unit_factory(engine))
    await engine.dispose()


async def test_a_broken_connection_says_so_and_the_next_works(
    postgres_server: Any, postgres_url: str
) -> None:
    engine = create_engine(postgres_url)
    open_unit = unit_factory(engine)
    async with open_unit() as unit:
        assert await unit.memories.heads("unknown") == []
        postgres_server.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'memory'"
        )
        with pytest.raises(Unavailable):
            await unit.memories.heads("unknown")
    async with open_unit() as unit:
        assert await unit.memories.heads("unknown") == []
    await engine.dispose()


async def test_when_all_connections_are_taken_the_wait_ends(engine: AsyncEngine) -> None:
    pool = engine.pool
    pool._timeout = 0.1  # type: ignore[attr-defined]
    open_unit = unit_factory(engine)
    opened = []
    with pytest.raises(Timeout, match="became free; try again"):
        for _ in range(16):
            unit = open_unit()
            opened.append(unit)
            await unit.memories.heads("unknown")
    for unit in opened:
        await unit.__aexit__(None, None, None)
    async with open_unit() as unit:
        assert await unit.memories.heads("unknown") == []


async def test_a_cancelled_request_gives_its_connection_back(engine: AsyncEngine) -> None:
    open_unit = unit_factory(engine)
    for pause in range(30):
        task = asyncio.create_task(add(open_unit))
        await asyncio.sleep(pause / 3000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await add(open_unit)
    assert await turns(open_unit) == 1


async def test_a_copy_of_the_file_is_a_backup(sqlite_path: Path, tmp_path: Path) -> None:
    async with units(f"sqlite:///{sqlite_path}") as open_unit:
        await add(open_unit)
    shutil.copy(sqlite_path, tmp_path / "backup.db")
    async with units(f"sqlite:///{tmp_path}/backup.db") as open_unit:
        assert await turns(open_unit) == 1


async def test_writers_of_one_process_queue_and_lose_nothing(sqlite_path: Path) -> None:
    inside: set[int] = set()

    async def append(open_unit: OpenUnit, number: int) -> None:
        async with open_unit() as unit:
            await unit.memories.add_turns(ANN, [turn(number)])
            inside.add(number)
            assert len(inside) == 1
            await asyncio.sleep(0.002)
            inside.remove(number)
            await unit.commit()

    async with units(f"sqlite:///{sqlite_path}") as open_unit:
        await asyncio.gather(*(append(open_unit, number) for number in range(20)))
        assert await turns(open_unit) == 20


async def test_a_writer_that_gives_up_in_the_queue_holds_nobody_up(sqlite_path: Path) -> None:
    async with units(f"sqlite:///{sqlite_path}") as open_unit:
        async with open_unit() as first:
            await first.memories.add_turns(ANN, [turn(1)])
            waiting = asyncio.create_task(add(open_unit, 2))
            await asyncio.sleep(0.02)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await first.commit()
        async with asyncio.timeout(1):
            await add(open_unit, 3)
        assert await turns(open_unit) == 2
