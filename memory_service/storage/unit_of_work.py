"""The one commit."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from memory_service.storage.engine import create_sessions
from memory_service.storage.keys import Keys
from memory_service.storage.repositories import Memories
from memory_service.storage.transaction import Transaction, Writers


class UnitOfWork:
    """One transaction; leaving the block without commit rolls back."""

    def __init__(
        self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], writers: Writers
    ) -> None:
        self._transaction = Transaction(engine, sessions, writers)
        self._memories = Memories(self._transaction)
        self._keys = Keys(self._transaction)

    @property
    def memories(self) -> Memories:
        """The queries of this transaction."""
        return self._memories

    @property
    def keys(self) -> Keys:
        """The queries about API keys."""
        return self._keys

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transaction.close()

    async def commit(self) -> None:
        """Make it durable.

        Raises:
            Unavailable: the database is locked, full, read-only or gone; nothing was stored.
        """
        await self._transaction.commit()


def unit_factory(engine: AsyncEngine) -> Callable[[], UnitOfWork]:
    """Make `open_unit` for one engine."""
    sessions, writers = create_sessions(engine), Writers()
    return lambda: UnitOfWork(engine, sessions, writers)
