"""SIGKILL at every named step and at random; many processes at once. Nothing lost, nothing twice.

`make test-crash` runs the same for longer (CRASH_ROUNDS) and prints what was done.
"""

import os
import random
import signal
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn
from tests.helpers import crashing
from tests.helpers.crashing import Fault, Operation
from tests.helpers.histories import turn
from tests.helpers.remembering import opened

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "1"))
KILLED = -signal.SIGKILL
USERS = count()

SAID = [turn(number, f"{number} Rex", session="ab"[number % 3 == 0]) for number in range(14)]
OPERATIONS = [
    Operation(append=SAID[:5]),
    Operation(append=[SAID[7], SAID[6]]),
    Operation(forget=[SAID[2].id]),  # the middle of a closed chunk
    Operation(append=[SAID[5], *SAID[8:]]),  # a late turn moves chunks
    Operation(forget=[SAID[0].id, SAID[13].id]),
]
KEPT = [one for one in SAID if one not in (SAID[0], SAID[2], SAID[13])]

WRITING_STEPS = {
    *("before add_turns", "after add_turns", "before encode", "after encode", "after read_out"),
    *("before write_version", "after write_version", "after erase_turns"),
    *("before commit", "in commit", "after commit", "before acknowledging"),
}
"""What `make test` kills at; `make test-crash` also takes the queries, and every occurrence."""


@pytest.fixture(scope="module")
def counts() -> Iterator[dict[str, int]]:
    """What was done, printed at the end."""
    counted = {"faults injected": 0, "turns appended": 0, "turns lost": 0}
    yield counted
    print(f"\n{counted}")  # noqa: T201  # what `make test-crash` is for


class Client:
    """One user, the processes that write to it, and what was acknowledged."""

    def __init__(self, url: str, folder: Path, counts: dict[str, int]) -> None:
        self.url, self.folder, self.counts = url, folder, counts
        self.user = f"user{next(USERS)}"
        self.notes = folder / f"{self.user}.notes"

    def arguments(self, operations: Sequence[Operation] = OPERATIONS) -> tuple[object, ...]:
        return (self.url, self.user, operations, self.notes)

    def run(self) -> int:
        return crashing.run(*self.arguments())

    def crash_at(self, fault: Fault) -> int:
        self.counts["faults injected"] += 1
        return crashing.run(*self.arguments(), fault)

    def crash_after(self, seconds: float) -> int:
        code = crashing.run_and_kill(seconds, *self.arguments())
        self.counts["faults injected"] += code == KILLED
        return code

    async def check_after_crash(self) -> None:
        """What was acknowledged is there, and what was acknowledged as forgotten is not."""
        done = crashing.acknowledged(self.notes)
        gone = {turn_id for number in done for turn_id in OPERATIONS[number].forget}
        asked = {turn_id for one in OPERATIONS[: len(done) + 1] for turn_id in one.forget}
        wanted = {one.id for number in done for one in OPERATIONS[number].append} - asked
        async with opened(self.url) as memory:
            memory.id = MemoryId(self.user)
            async with memory.open_unit() as unit:
                stored = {one.id for one in await unit.memories.turns(memory.id)} if done else set()
        lost = wanted - stored
        self.counts["turns lost"] += len(lost)
        assert not lost
        assert not stored & gone

    async def check_end(self, kept: Sequence[Turn] = KEPT) -> None:
        """State, adapter and turns are those of a memory that was never disturbed."""
        self.counts["turns appended"] += len(SAID)
        async with opened(self.url) as memory:
            memory.id = MemoryId(self.user)
            await memory.check(kept)
            async with memory.open_unit() as unit:
                recipe = await unit.memories.chunks(memory.id)
            held = [turn_id for chunk in recipe for turn_id in chunk.turn_ids]
            assert sorted(held) == sorted(one.id for one in kept), "each turn in one chunk"


@pytest.fixture
def client(database_url: str, tmp_path: Path, counts: dict[str, int]) -> Client:
    return Client(database_url, tmp_path, counts)


def steps(client: Client) -> dict[str, int]:
    """How often each step comes in an undisturbed run."""
    heard = client.notes.with_suffix(".steps").read_text().splitlines()
    return {name: heard.count(name) for name in dict.fromkeys(heard)}


@pytest.mark.timeout(120 + 1200 * (ROUNDS > 1))
async def test_sigkill_at_every_named_step(client: Client) -> None:
    assert client.run() == 0
    await client.check_end()
    found = steps(client)
    assert set(found) > WRITING_STEPS
    for step, times in found.items():
        if ROUNDS == 1 and step not in WRITING_STEPS:
            continue
        for occurrence in range(times) if ROUNDS > 1 else [times // 2]:
            crashed = Client(client.url, client.folder, client.counts)
            code = crashed.crash_at(Fault(step, occurrence))
            assert code == KILLED or (step == "in commit" and code == 0), step
            await crashed.check_after_crash()
            assert crashed.run() == 0
            await crashed.check_end()


@pytest.mark.timeout(120 + 30 * ROUNDS)
async def test_sigkill_at_random(client: Client) -> None:
    assert client.run() == 0
    whole_s = crashing.duration_s(Client(client.url, client.folder, client.counts).run)
    for _ in range(2 * ROUNDS):
        crashed = Client(client.url, client.folder, client.counts)
        for _ in range(2):  # also while it recovers from the crash before
            crashed.crash_after(random.uniform(0.1, 1.0) * whole_s)
            await crashed.check_after_crash()
        assert crashed.run() == 0
        await crashed.check_end()


@pytest.mark.parametrize("writers", [2, 6 if ROUNDS == 1 else 20])
async def test_many_processes_append_and_forget_in_one_memory(client: Client, writers: int) -> None:
    turns = [turn(number, session=f"s{number % 3}") for number in range(3 * writers)]
    begin = crashing.FORKS.Barrier(writers)
    processes = []
    for number in range(writers):
        mine = turns[number::writers]
        operations = [Operation(append=[one]) for one in mine[:2]]
        operations += [Operation(forget=[mine[0].id]), Operation(append=[mine[2]])]
        notes = client.folder / f"{client.user}.{number}"
        processes.append(crashing.start(client.url, client.user, operations, notes, None, begin))
    assert [crashing.finish(process) for process in processes] == [0] * writers
    client.counts["turns appended"] += len(turns)
    async with opened(client.url) as memory:
        memory.id = MemoryId(client.user)
        await memory.remember.encode_pending(memory.id)
        await memory.check(turns[writers:])


async def test_processes_of_different_users_do_not_wait_for_each_other(client: Client) -> None:
    clients = [Client(client.url, client.folder, client.counts) for _ in range(3)]
    processes = [crashing.start(*one.arguments()) for one in clients]
    assert [crashing.finish(process) for process in processes] == [0] * 3
    for one in clients:
        await one.check_end()
