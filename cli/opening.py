"""Opening what a command works on, and closing it however the command ends."""

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from memory_cli import output
from memory_service.bootstrap import Service, Store, open_service, open_store, prepare_database
from memory_service.settings import Settings

if TYPE_CHECKING:
    from memory_service.inference.engine import Watch

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Opened(Generic[T]):
    """Something open, and the event loop it lives in."""

    it: T
    _runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run asynchronous work to its end."""
        return self._runner.run(work)


@contextmanager
def opened_store(settings: Settings) -> Iterator[Opened[Store]]:
    """The database: quick, no model."""
    prepare_database(settings, output.note)
    with _opened(open_store(settings)) as store:
        yield store


@contextmanager
def opened_service(settings: Settings, watch: "Watch | None" = None) -> Iterator[Opened[Service]]:
    """Database, base model and generator: seconds. `watch` is told what the engine does."""
    from memory_service.logs import configure_logs

    prepare_database(settings, output.note)
    configure_logs(settings.log_format, settings.log_level)
    with ExitStack() as stack:
        with output.waiting("starting") as report:
            service = stack.enter_context(_opened(open_service(settings, report, watch)))
        yield service


@contextmanager
def opened_scratch_service(settings: Settings) -> Iterator[Opened[Service]]:
    """The same over an empty SQLite file that goes with the block, for measurements."""
    from pydantic import SecretStr

    from memory_service.storage import migrate

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'scratch.db'}"
        migrate.upgrade(url)
        there = settings.model_copy(update={"database_url": SecretStr(url)})
        with opened_service(there) as service:
            yield service


@contextmanager
def _opened(opening: AbstractAsyncContextManager[T]) -> Iterator[Opened[T]]:
    with asyncio.Runner() as runner:
        it = runner.run(_enter(opening))
        try:
            yield Opened(it, runner)
        finally:
            runner.run(_leave(opening))


async def _enter(opening: AbstractAsyncContextManager[T]) -> T:
    return await opening.__aenter__()


async def _leave(opening: AbstractAsyncContextManager[T]) -> None:
    """Close, after ending what Ctrl-C left half-done: its transactions roll back."""
    unfinished = asyncio.all_tasks() - {asyncio.current_task()}
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
    await opening.__aexit__(None, None, None)
