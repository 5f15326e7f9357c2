import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from memory_service.errors import (
    ConfigurationError,
    MemoryServiceError,
    StateConflict,
    Timeout,
    Unavailable,
)
from memory_service.storage.engine import create_engine, describe, parse_url, sqlite_file
from memory_service.storage.failures import translated
from memory_service.storage.tables import Base, UtcDateTime


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:///memory.db", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:////tmp/memory.db", "sqlite+aiosqlite"),
        ("postgresql://u:p@host/db", "postgresql+asyncpg"),
        ("postgres://u:p@host/db", "postgresql+asyncpg"),
        ("postgresql+psycopg://u:p@host/db", "postgresql+asyncpg"),
    ],
)
def test_the_driver_is_chosen_by_the_program(url: str, driver: str) -> None:
    assert parse_url(url).drivername == driver


@pytest.mark.parametrize(
    "url", ["", "memory.db", "mysql://u:p@host/db", "sqlite://", "sqlite:///:memory:", "://"]
)
def test_other_urls_are_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///FILE") as caught:
        parse_url(url)
    assert "u:p" not in str(caught.value)


def test_descriptions_hold_no_user_password_or_option() -> None:
    url = parse_url("postgresql://someone:secret@db.example/memories?password=secret")
    assert describe(url) == "PostgreSQL database memories on db.example"
    assert describe(parse_url("sqlite:////data/m.db")) == "SQLite file /data/m.db"


def test_the_folder_of_a_file_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_engine("sqlite:///some/folder/memory.db")
    assert (tmp_path / "some" / "folder").is_dir()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/folder cannot be created"):
        create_engine(f"sqlite:///{tmp_path}/file/folder/memory.db")


def test_statements_in_errors_come_without_what_people_said() -> None:
    for url in ("sqlite:///memory.db", "postgresql://host/db"):
        assert create_engine(url).sync_engine.hide_parameters


def test_uris_of_sqlite_itself_are_left_alone() -> None:
    assert sqlite_file(parse_url("sqlite:///file:x.db?mode=ro&uri=true")) is None


class PostgresError(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate
        super().__init__("Key (name)=(zed) told by the server")


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        (sqlite3.OperationalError("database is locked"), Unavailable, "locked"),
        (sqlite3.OperationalError("database table is locked"), Unavailable, "try again"),
        (sqlite3.OperationalError("attempt to write a readonly database"), Unavailable, "writable"),
        (sqlite3.DatabaseError("database disk image is malformed"), Unavailable, "backup"),
        (sqlite3.DatabaseError("file is not a database"), Unavailable, "backup"),
        (sqlite3.OperationalError("database or disk is full"), Unavailable, "free disk space"),
        (sqlite3.OperationalError("disk I/O error"), Unavailable, "check the disk"),
        (sqlite3.OperationalError("no such table: users"), ConfigurationError, "memory db upgrade"),
        (sqlite3.OperationalError("no such column: x"), ConfigurationError, "memory db upgrade"),
        (sqlite3.OperationalError("unable to open database file"), ConfigurationError, "opened"),
        (sqlite3.OperationalError("something new"), Unavailable, "something new"),
        (sqlite3.OperationalError("table users already exists"), ConfigurationError, "empty"),
        (PostgresError("42P07"), ConfigurationError, "empty"),
        (PostgresError("42P01"), ConfigurationError, "memory db upgrade"),
        (PostgresError("42501"), ConfigurationError, "rights"),
        (PostgresError("28P01"), ConfigurationError, "correct user and password"),
        (PostgresError("3D000"), ConfigurationError, "createdb"),
        (PostgresError("53100"), Unavailable, "free disk space"),
        (PostgresError("53300"), Unavailable, "connections"),
        (PostgresError("25006"), Unavailable, "read-only"),
        (PostgresError("57P01"), Unavailable, "try again"),
        (PostgresError("XX001"), Unavailable, "damaged"),
        (PostgresError("08006"), Unavailable, "connection"),
        (PostgresError("40001"), StateConflict, "retry"),
        (PostgresError("40P01"), StateConflict, "retry"),
        (PostgresError(None), Unavailable, "PostgresError"),
    ],
)
def test_failures_say_what_to_do(
    cause: Exception, kind: type[MemoryServiceError], words: str
) -> None:
    failure = OperationalError("INSERT INTO turns", {"text": "a secret"}, cause)
    with pytest.raises(kind, match=words) as caught, translated("SQLite file m.db"):
        raise failure
    assert "secret" not in str(caught.value)
    assert "zed" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


def test_failures_outside_statements_are_translated() -> None:
    with pytest.raises(Unavailable, match="locked"), translated("SQLite file m.db"):
        raise sqlite3.OperationalError("database is locked")
    with pytest.raises(Unavailable, match="start the database server"), translated("db"):
        raise ConnectionRefusedError
    with pytest.raises(Timeout, match="try again"), translated("db"):
        raise PoolTimeout
    with pytest.raises(StateConflict, match="retry"), translated("db"):
        raise IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE constraint failed"))


def test_what_only_a_bug_can_cause_stays_visible() -> None:
    with pytest.raises(ProgrammingError), translated("db"):
        raise ProgrammingError("SELEC 1", {}, sqlite3.ProgrammingError("syntax error"))


def test_times_are_utc_both_ways() -> None:
    kind = UtcDateTime()
    evening = datetime(2026, 3, 1, 18, 30, tzinfo=timezone(timedelta(hours=2)))
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        stored = kind.process_bind_param(evening, dialect)
        assert stored is not None
        assert stored.utcoffset() == timedelta(0)
        assert kind.process_bind_param(None, dialect) is None
        assert kind.process_result_value(None, dialect) is None
        assert kind.process_result_value(stored.replace(tzinfo=None), dialect) == evening
        back = kind.process_result_value(evening, dialect)
        assert back is not None
        assert back.tzinfo is UTC


def test_every_constraint_has_a_name_and_every_reference_cascades() -> None:
    for table in Base.metadata.tables.values():
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name for index in table.indexes)
        assert all(key.ondelete == "CASCADE" for key in table.foreign_key_constraints)
