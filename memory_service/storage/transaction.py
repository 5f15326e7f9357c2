"""One transaction: reads see one snapshot until the first write, writes see the newest rows."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import Executable, Insert, Row, Select, Table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from memory_service.storage.engine import (
    BUSY_TIMEOUT_S,
    Purpose,
    describe,
    transaction_options,
)
from memory_service.storage.failures import translated

MERGE_WORDS = "INSERT INTO turn_words(turn_words) VALUES ('optimize')"
"""Write the search index anew. Deleting only marks a word as gone from a turn, there too."""

Ts = TypeVarTuple("Ts")
_Answer = TypeVar("_Answer")


class Transaction:
    """A session that begins by purpose and translates every failure.

    A unit of work does not say at its start whether it will write. So it begins by reading; at the
    first write the snapshot is given up and a writing transaction begins. What was read before may
    be old by then: writers compare and swap.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        sessions: async_sessionmaker[AsyncSession],
        writers: "Writers",
    ) -> None:
        self.place = describe(engine.url)
        self._engine = engine
        self._backend = engine.dialect.name
        self.is_sqlite = self._backend == "sqlite"
        self._session = sessions()
        self._writers = writers
        self._purpose: Purpose | None = None
        self._erased = False
        self._is_large = False

    async def read(self, statement: Select[*Ts]) -> Sequence[Row[*Ts]]:
        """Run a query and fetch its rows."""
        await self._begin(Purpose.READING)
        with translated(self.place):
            return (await _settled(self._session.execute(statement))).all()

    async def lock(self, statement: Select[*Ts]) -> Row[*Ts] | None:
        """Begin writing and lock the row that the query names; None where there is none.

        SQLite has one lock for all and takes it at BEGIN; the statement's own is PostgreSQL's.
        """
        await self._begin(Purpose.WRITING)
        with translated(self.place):
            return (await _settled(self._session.execute(statement))).one_or_none()

    async def write(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> int:
        """Run a change, once for each of `rows` where given; returns how many rows changed.

        With `rows` the number is not known on every driver: do not rely on it.
        """
        await self._begin(Purpose.WRITING)
        with translated(self.place):
            result = await _settled(self._session.execute(statement, rows))
        return result.rowcount if isinstance(result, CursorResult) else 0

    async def insert_missing(self, table: Table, values: Mapping[str, Any]) -> None:
        """Insert a row unless another process just did."""
        insert: Insert
        if self._backend == "postgresql":
            insert = postgresql.insert(table).values(values).on_conflict_do_nothing()
        else:
            insert = sqlite.insert(table).values(values).on_conflict_do_nothing()
        await self.write(insert)

    def expect_megabytes(self) -> None:
        """Let the next writer in before SQLite's log is copied into the file after the commit."""
        self._is_large = True

    def erase_at_commit(self) -> None:
        """Also wipe what was deleted from SQLite's search index and write-ahead log.

        PostgreSQL has its own ways: see decision 6.
        """
        self._erased = True

    async def commit(self) -> None:
        """Make everything durable; the next statement begins a new transaction."""
        with translated(self.place):
            await _settled(self._commit())

    async def close(self) -> None:
        """Roll back what was not committed."""
        try:
            with translated(self.place):
                await _settled(self._session.close())
        finally:
            self._writers.leave(self)

    async def _begin(self, purpose: Purpose) -> None:
        if self._purpose in {purpose, Purpose.WRITING}:
            return
        with translated(self.place):
            if self._purpose is not None:
                await _settled(self._session.rollback())
                self._purpose = None
            if self.is_sqlite and purpose is Purpose.WRITING:
                await self._writers.enter(self)
            options = transaction_options(self._backend, purpose)
            await _settled(self._session.connection(execution_options=options))
        self._purpose = purpose

    async def _commit(self) -> None:
        is_wiped, is_large = self._erased and self.is_sqlite, self._is_large and self.is_sqlite
        if is_wiped:
            await self._session.execute(text(MERGE_WORDS))
        await self._session.commit()
        self._writers.leave(self)
        self._purpose = None
        self._erased = self._is_large = False
        if is_wiped:
            await self._checkpoint("TRUNCATE")
        elif is_large:
            await self._checkpoint("PASSIVE")

    async def _checkpoint(self, mode: str) -> None:
        """Copy SQLite's log into the file; `TRUNCATE` also empties it.

        The log still holds the pages before a deletion. With a reader in the way SQLite does what
        it can and finishes at a later checkpoint. What was committed is durable already, so a
        failure here is none of the caller's.
        """
        options = transaction_options(self._backend, Purpose.NO_TRANSACTION)
        with suppress(DBAPIError):
            async with self._engine.execution_options(**options).connect() as connection:
                await connection.execute(text(f"PRAGMA wal_checkpoint({mode})"))


class Writers:
    """The queue of a process's writers to one SQLite file.

    SQLite has no queue: a connection that finds the file locked sleeps for up to a tenth of a
    second and looks again, so one long write delays the others by more than it takes. Here the next
    one begins as soon as the one before is done. Processes still meet at SQLite's own lock.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._inside: Transaction | None = None

    async def enter(self, transaction: Transaction) -> None:
        """Wait for the turn; after the busy timeout SQLite decides, and names the failure."""
        with suppress(TimeoutError):
            async with asyncio.timeout(BUSY_TIMEOUT_S):
                await self._lock.acquire()
            self._inside = transaction

    def leave(self, transaction: Transaction) -> None:
        """Let the next one in; nothing where this one was not inside."""
        if self._inside is transaction:
            self._inside = None
            self._lock.release()


async def _settled(work: Awaitable[_Answer]) -> _Answer:
    """Await database work to its end, also when the request is cancelled meanwhile.

    Statements are short. Interrupting one leaves a connection in an unknown state, and on SQLite a
    thread that answers to nobody.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # retrieved, so that nobody warns of it
        raise
