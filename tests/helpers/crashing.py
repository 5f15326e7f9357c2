"""Processes that append and forget, and are really killed: at a named step, or at any time.

The steps are announced by wrappers around the services' ports, so what is killed is exactly what
runs in production. `FORKS` imports torch once; each process is a fork of that clean server.
"""

import asyncio
import faulthandler
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn
from memory_service.errors import NotFound
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.remember import Remember
from memory_service.storage.engine import create_engine
from memory_service.storage.unit_of_work import unit_factory
from tests.helpers.remembering import RIDGE

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.helpers.crashing"])

PATIENCE_S = 90.0
BUSY_TIMEOUT_S = 60.0
"""How long a writer waits for the others: the machine that runs the tests may be starved."""

COMMIT_S = 0.004
"""About how long a commit takes: a kill in the middle of one comes within this time."""


@dataclass(frozen=True)
class Operation:
    """One request of a client: turns to append, or ids to forget."""

    append: Sequence[Turn] = ()
    forget: Sequence[str] = ()


@dataclass(frozen=True)
class Fault:
    """Where a process is killed: the step of that name, the time it comes (from 0)."""

    step: str
    occurrence: int = 0


@dataclass
class Watch:
    """Hears every step, notes its name, and kills the process at the one of the fault."""

    fault: Fault | None
    heard: list[str] = field(default_factory=list)

    def hear(self, step: str) -> None:
        occurrence = self.heard.count(step)
        self.heard.append(step)
        if self.fault == Fault(step, occurrence):
            if step == "in commit":
                threading.Thread(target=_kill_soon, daemon=True).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)


class WatchedUnit:
    """A unit of work whose queries and commit are steps."""

    def __init__(self, unit: Any, watch: Watch) -> None:
        self._unit = unit
        self._watch = watch
        self.memories = WatchedMemories(unit.memories, watch)

    async def __aenter__(self) -> "WatchedUnit":
        await self._unit.__aenter__()
        return self

    async def __aexit__(self, *details: Any) -> None:
        await self._unit.__aexit__(*details)

    async def commit(self) -> None:
        self._watch.hear("before commit")
        self._watch.hear("in commit")
        await self._unit.commit()
        self._watch.hear("after commit")


class WatchedMemories:
    """Queries that are announced before and after."""

    def __init__(self, memories: Any, watch: Watch) -> None:
        self._memories = memories
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        query = getattr(self._memories, name)

        async def watched(*arguments: Any, **named: Any) -> Any:
            self._watch.hear(f"before {name}")
            answer = await query(*arguments, **named)
            self._watch.hear(f"after {name}")
            return answer

        return watched


class WatchedEncoder:
    """The real encoder; encoding and reading out are steps."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        part = getattr(RIDGE, name)
        if name not in {"encode", "read_out"}:
            return part

        def watched(*arguments: Any) -> Any:
            self._watch.hear(f"before {name}")
            answer = part(*arguments)
            self._watch.hear(f"after {name}")
            return answer

        return watched


def work(
    url: str,
    user: str,
    operations: Sequence[Operation],
    notes: Path,
    fault: Fault | None = None,
    begin: Any = None,
) -> None:
    """Do all operations as a client that retries; note in a file what was acknowledged."""
    faulthandler.dump_traceback_later(PATIENCE_S - 5)  # where a process hangs
    watch = Watch(fault)
    if begin is not None:
        begin.wait(PATIENCE_S)
    asyncio.run(_work(url, MemoryId(user), operations, notes, watch))
    notes.with_suffix(".steps").write_text("\n".join(watch.heard))


async def _work(
    url: str, memory_id: MemoryId, operations: Sequence[Operation], notes: Path, watch: Watch
) -> None:
    engine = create_engine(url, busy_timeout_s=BUSY_TIMEOUT_S)
    open_real = unit_factory(engine)
    open_unit: Any = lambda: WatchedUnit(open_real(), watch)  # noqa: E731
    encoder: Any = WatchedEncoder(watch)
    compute = Compute()
    remember = Remember(open_unit, encoder, compute)
    forget = ForgetTurns(Amend(open_unit, encoder, compute, remember))
    with notes.open("a") as file:
        for number, operation in enumerate(operations):
            if operation.append:
                await remember.append(memory_id, operation.append)
            if operation.forget:
                try:
                    await forget.turns(memory_id, operation.forget)
                except NotFound:  # done before the kill, by the request that is retried here
                    await remember.encode_pending(memory_id)
            watch.hear("before acknowledging")
            file.write(f"{number}\n")
            file.flush()
    compute.close()
    await engine.dispose()


def start(*arguments: Any) -> Any:
    """Start `work` in a process of its own."""
    process = FORKS.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def run(*arguments: Any) -> int:
    """Run `work` to its end; its exit code, which is -SIGKILL where it was killed."""
    process = start(*arguments)
    return finish(process)


def run_and_kill(after_s: float, *arguments: Any) -> int:
    """Run `work` and kill it after a time, if it still runs then."""
    process = start(*arguments)
    process.join(after_s)
    process.kill()
    return finish(process)


def finish(process: Any) -> int:
    """Wait for a process; its exit code."""
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"process {process.pid} did not end")
    return int(process.exitcode)


def acknowledged(notes: Path) -> set[int]:
    """The numbers of the operations that a client got an answer to."""
    if not notes.exists():
        return set()
    return {int(line) for line in notes.read_text().splitlines() if line}


def duration_s(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _kill_soon() -> None:
    time.sleep(random.uniform(0, COMMIT_S))
    os.kill(os.getpid(), signal.SIGKILL)
