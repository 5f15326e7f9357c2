"""Migrations up and down, on both databases."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from memory_service.domain.search import parse_search
from memory_service.errors import ConfigurationError
from memory_service.storage.engine import create_engine
from memory_service.storage.migrate import current, downgrade, on_database, upgrade
from memory_service.storage.tables import Base, is_declared
from memory_service.storage.unit_of_work import unit_factory
from tests.integration.storage.records import ANN, change, chunk, revisions, turn

HEAD = "0007"


def tables(url: str) -> set[str]:
    """All but those that hold SQLite's search index."""
    names = on_database(url, lambda connection: inspect(connection).get_table_names())
    return set(filter(is_declared, names))


def differences(connection: Connection) -> Sequence[Any]:
    options = {"include_name": lambda name, *_: is_declared(name)}
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, Base.metadata))


async def remember(url: str) -> None:
    engine = create_engine(url)
    async with unit_factory(engine)() as unit:
        await unit.memories.add_turns(ANN, [turn(1)])
        await unit.commit()
        seen = await revisions(unit)
        await unit.memories.write_version(ANN, change(0, seen, appeared=[chunk(1)]))
        await unit.commit()
    await engine.dispose()


def test_up_down_and_up_again_with_rows(empty_database_url: str) -> None:
    url = empty_database_url
    assert current(url) == (None, HEAD)
    upgrade(url)
    assert current(url) == (HEAD, HEAD)
    assert tables(url) == {*Base.metadata.tables, "alembic_version"}
    asyncio.run(remember(url))
    upgrade(url)
    rows = on_database(url, lambda on: on.scalar(text("SELECT count(*) FROM adapters")))
    assert rows == 1
    downgrade(url, "base")
    names = on_database(url, lambda connection: inspect(connection).get_table_names())
    assert names == ["alembic_version"]
    assert current(url) == (None, HEAD)
    upgrade(url)
    asyncio.run(remember(url))


def test_back_from_the_ledger_and_up_again_keeps_turns(empty_database_url: str) -> None:
    """What was set aside is part of the memory again, and waits to be encoded."""
    url = empty_database_url
    upgrade(url)
    asyncio.run(remember(url))

    def set_aside(connection: Connection) -> None:
        connection.execute(text("UPDATE turns SET is_aside = true"))
        connection.execute(text("UPDATE sessions SET turns = 0"))

    on_database(url, set_aside)
    downgrade(url, "0001")
    assert "tombstones" not in tables(url)
    upgrade(url)
    counted = "SELECT turns, revision - encoded_revision FROM sessions"
    assert on_database(url, lambda on: tuple(on.execute(text(counted)).one())) == (1, 1)
    assert on_database(url, lambda on: on.scalar(text("SELECT count(*) FROM turns"))) == 1
    assert on_database(url, differences) == []


def test_turns_kept_before_there_was_a_search_are_found(empty_database_url: str) -> None:
    url = empty_database_url

    async def found() -> list[str]:
        engine = create_engine(url)
        async with unit_factory(engine)() as unit:
            turns = await unit.memories.search(ANN, parse_search("says"))
        await engine.dispose()
        return [one.id for one in turns]

    upgrade(url)
    asyncio.run(remember(url))
    chunks = "SELECT count(*) FROM chunks"
    for _ in range(2):
        downgrade(url, "0003")
        assert on_database(url, lambda on: on.scalar(text("SELECT count(*) FROM turns"))) == 1
        upgrade(url)
        assert asyncio.run(found()) == [turn(1).id]
    assert on_database(url, lambda on: on.scalar(text(chunks))) == 1
    assert on_database(url, differences) == []


def test_what_was_kept_before_there_were_quotas_is_counted(empty_database_url: str) -> None:
    url = empty_database_url
    upgrade(url)
    asyncio.run(remember(url))
    downgrade(url, "0005")
    on_database(url, lambda on: on.execute(text("UPDATE turns SET text = 'fünf'")))
    upgrade(url)
    counted = "SELECT kept_turns, kept_bytes FROM users"
    assert on_database(url, lambda on: tuple(on.execute(text(counted)).one())) == (1, 5)
    assert on_database(url, differences) == []


def test_migrations_make_exactly_the_tables_of_the_program(database_url: str) -> None:
    assert on_database(database_url, differences) == []


def test_constraints_have_the_names_that_migrations_drop_them_by(database_url: str) -> None:
    def names(connection: Connection) -> set[str | None]:
        inspector = inspect(connection)
        found: set[str | None] = set()
        for table in Base.metadata.tables:
            found |= {key["name"] for key in inspector.get_foreign_keys(table)}
            found |= {unique["name"] for unique in inspector.get_unique_constraints(table)}
            found |= {index["name"] for index in inspector.get_indexes(table)}
            found.add(inspector.get_pk_constraint(table)["name"])
        return found

    expected: set[str | None] = set()
    for table in Base.metadata.tables.values():
        expected |= {str(constraint.name) for constraint in table.constraints}
        expected |= {str(index.name) for index in table.indexes}
    assert on_database(database_url, names) >= expected


def test_a_database_newer_than_the_program_is_left_alone(database_url: str) -> None:
    def stamp(connection: Connection) -> None:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    def unstamp(connection: Connection) -> None:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{HEAD}'"))

    on_database(database_url, stamp)
    try:
        for call in (current, upgrade, lambda url: downgrade(url, "base")):
            with pytest.raises(ConfigurationError, match="9999, newer than this program") as caught:
                call(database_url)
            assert "upgrade memory-service" in caught.value.remedy
        assert "turns" in tables(database_url)
    finally:
        on_database(database_url, unstamp)


def test_an_unknown_revision_is_named(database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        upgrade(database_url, "nonsense")


def test_looking_creates_no_file(tmp_path: Path) -> None:
    assert current(f"sqlite:///{tmp_path}/memory.db") == (None, HEAD)
    assert list(tmp_path.iterdir()) == []


async def test_migrations_run_inside_an_event_loop_too(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/folder/memory.db")
    assert (tmp_path / "folder" / "memory.db").exists()


def test_a_failed_migration_changes_nothing(empty_database_url: str) -> None:
    def block(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE adapters (id INTEGER)"))

    on_database(empty_database_url, block)
    with pytest.raises(ConfigurationError, match="holds tables of another program"):
        upgrade(empty_database_url)
    assert tables(empty_database_url) == {"adapters"}


def test_rebuilding_a_parent_table_keeps_its_children(sqlite_path: Path) -> None:
    """SQLite alters a table by copying and dropping it; that must not cascade."""
    url = f"sqlite:///{sqlite_path}"
    asyncio.run(remember(url))

    def rebuild(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE copied AS SELECT * FROM users"))
        connection.execute(text("DROP TABLE users"))
        connection.execute(text("ALTER TABLE copied RENAME TO users"))

    on_database(url, rebuild)
    with closing(sqlite3.connect(sqlite_path)) as connection:
        assert connection.execute("SELECT count(*) FROM turns").fetchone() == (1,)


def test_two_processes_upgrade_at_once(empty_database_url: str) -> None:
    code = "import sys; from memory_service.storage.migrate import upgrade; upgrade(sys.argv[1])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_database_url], stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert current(empty_database_url) == (HEAD, HEAD)


def test_migrating_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from memory_service.storage.migrate import upgrade; upgrade(sys.argv[1]);"
        "assert 'torch' not in sys.modules and 'memory_service.generator' not in sys.modules"
    )
    url = f"sqlite:///{tmp_path}/memory.db"
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)


def test_developers_can_use_alembic_itself(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/memory.db"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "MEMORY_SERVICE_DATABASE_URL": url}
    for arguments in (["upgrade", "head"], ["check"]):
        subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            check=True,
            cwd=root,
            env=environment,
            timeout=60,
            capture_output=True,
        )
    assert current(url) == (HEAD, HEAD)
    del environment["MEMORY_SERVICE_DATABASE_URL"]
    failed = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        check=False,
        cwd=root,
        env=environment,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert failed.returncode != 0
    assert "MEMORY_SERVICE_DATABASE_URL: is not set" in failed.stderr
