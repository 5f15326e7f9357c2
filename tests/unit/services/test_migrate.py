"""Migrating to another generator: the old version is there until the new one is whole."""

import asyncio
from dataclasses import replace

import pytest

from memory_service.domain.chunks import Chunk
from memory_service.domain.memory import MemoryId
from memory_service.errors import NotFound, NumericalError
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.migrate import Migrate
from memory_service.services.remember import Remember
from memory_service.services.rollback import Rollback
from tests.helpers.fakes import FINGERPRINT, FakeEncoder, FakeStore, StoredUser
from tests.helpers.histories import digest_of, turn

ANN = MemoryId("ann")
LONG = [turn(number, f"{number} word", session=f"s{number // 8}") for number in range(0, 24, 2)]


class Setup:
    """A memory made by one generator, and another generator beside it."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.compute = Compute()
        self.old = FakeEncoder()
        self.new = FakeEncoder(replace(FINGERPRINT, generator="new"))
        self.remember = self.remembering(self.old)
        self.migrate = Migrate(self.store, self.new, self.compute, self.remembering(self.new))

    def remembering(self, encoder: FakeEncoder) -> Remember:
        return Remember(self.store, encoder, self.compute)

    def user(self) -> StoredUser:
        return self.store.users[ANN]

    def check(self, turns) -> None:
        state = self.user().state
        assert state.fingerprint == self.new.fingerprint
        assert state.digest == digest_of(self.new, turns)

    def meanwhile(self, change) -> None:
        """Let others do something while the new generator encodes its third chunk."""
        loop, done = asyncio.get_running_loop(), []

        def interrupt(chunk: Chunk) -> None:
            if len(self.new.encoded) == 2 and not done:
                done.append(chunk)
                asyncio.run_coroutine_threadsafe(change(), loop).result(5)

        self.new.interrupt = interrupt


@pytest.fixture
async def setup():
    made = Setup()
    await made.remember.append(ANN, LONG)
    yield made
    made.compute.close()


async def test_the_state_is_that_of_the_other_generator_from_the_start(setup):
    migrated = await setup.migrate.user(ANN)
    assert (migrated.version, migrated.was_done) == (2, False)
    setup.check(LONG)
    assert setup.user().adapters[2].reason == "migrate"
    encoded = len(setup.new.encoded)
    again = await setup.migrate.user(ANN)
    assert (again.version, again.was_done) == (2, True)
    assert len(setup.new.encoded) == encoded
    with pytest.raises(NotFound, match="bob"):
        await setup.migrate.user(MemoryId("bob"))


async def test_until_it_is_done_the_old_version_stays(setup):
    before, seen = setup.user(), []
    setup.new.interrupt = lambda chunk: seen.append(setup.user() == before)
    await setup.migrate.user(ANN)
    assert seen
    assert all(seen)

    def fail(chunk: Chunk) -> None:
        raise NumericalError("hidden states", "the base model returned NaN")

    setup.old.interrupt = fail  # and back again, which fails on the way
    back = Migrate(setup.store, setup.old, Compute(), setup.remember)
    before = setup.user()
    with pytest.raises(NumericalError):
        await back.user(ANN)
    assert setup.user() == before


async def test_others_may_go_on_writing_and_only_what_they_changed_is_read_again(setup):
    other = Compute()

    async def change() -> None:
        await Remember(setup.store, setup.old, other).append(ANN, [turn(99)])

    setup.meanwhile(change)
    await setup.migrate.user(ANN)
    encoded = [chunk.digest for chunk in setup.new.encoded]
    assert len(encoded) == len(set(encoded))
    setup.check([*LONG, turn(99)])
    other.close()


async def test_what_is_forgotten_meanwhile_is_not_in_it(setup):
    other = Compute()
    amend = Amend(setup.store, setup.old, other, Remember(setup.store, setup.old, other))

    async def change() -> None:
        await ForgetTurns(amend).turns(ANN, [LONG[0].id, *(one.id for one in LONG[8:])])

    setup.meanwhile(change)
    await setup.migrate.user(ANN)
    setup.check(LONG[1:8])
    assert set(setup.user().turns.values()) == set(LONG[1:8])
    other.close()


async def test_pending_and_set_aside_turns(setup):
    await setup.remember.append(ANN, [turn(50)])
    amend = Amend(setup.store, setup.old, setup.compute, setup.remember)
    await Rollback(amend).version(ANN, 1)
    async with setup.store() as unit:
        await unit.memories.add_turns(ANN, [turn(60)])
        await unit.commit()
    await setup.migrate.user(ANN)
    setup.check([*LONG, turn(60)])
    assert setup.user().aside == {turn(50).id}
