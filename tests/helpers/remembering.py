"""A user's memory on a real database and the tiny model, as the service joins them."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn
from memory_service.evaluation.methods import memorise
from memory_service.generator.config import Encoding, SvdConfig
from memory_service.inference.encoder import LocalEncoder
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.edit import Edit
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.recall import Recall
from memory_service.services.remember import Remember
from memory_service.services.rollback import Rollback
from memory_service.storage.engine import create_engine
from memory_service.storage.unit_of_work import unit_factory
from tests.helpers.histories import digest_of
from tests.helpers.tiny_generator import FLOAT32, tiny_config
from tests.helpers.tiny_inference import tiny_inference

NUMBERS = itertools.count()
RIDGE = tiny_inference().encoder
OTHER = tiny_inference(seed=1).encoder
SEQUENTIAL = tiny_inference(
    tiny_config(SvdConfig(rank=4), encoding=replace(FLOAT32, encoding=Encoding.SEQUENTIAL))
).encoder


class Memory:
    """A user nobody else has, on real storage."""

    def __init__(self, url: str, encoder: LocalEncoder) -> None:
        self.engine = create_engine(url)
        self.open_unit = unit_factory(self.engine)
        self.encoder = encoder
        self.compute = Compute()
        self.remember = Remember(self.open_unit, encoder, self.compute)
        self.amend = Amend(self.open_unit, encoder, self.compute, self.remember)
        self.forget = ForgetTurns(self.amend)
        self.edit = Edit(self.amend)
        self.rollback = Rollback(self.amend)
        self.id = MemoryId(f"ann{next(NUMBERS)}")

    async def append(self, *turns: Turn) -> int:
        return (await self.remember.append(self.id, turns)).version

    async def state_digest(self) -> str:
        async with self.open_unit() as unit:
            state = await unit.memories.state(self.id)
        assert state is not None
        return state.digest

    async def reasons(self) -> list[str]:
        async with self.open_unit() as unit:
            return [made.reason for made in await unit.memories.adapters(self.id)][::-1]

    async def pending(self) -> set[str]:
        async with self.open_unit() as unit:
            return await unit.memories.pending_turn_ids(self.id)

    async def check(self, turns: Sequence[Turn]) -> None:
        """The state is that of these turns, and nothing is left to do."""
        wanted = sorted(set(turns), key=lambda one: one.order)
        async with self.open_unit() as unit:
            assert await unit.memories.turns(self.id) == wanted
            head = await unit.memories.head(self.id)
        assert (head.turns, head.pending_turns) == (len(wanted), 0)
        if self.encoder is not SEQUENTIAL:
            assert await self.state_digest() == digest_of(self.encoder, wanted)
        adapter = await Recall(self.open_unit, self.encoder).adapter(self.id)
        assert adapter.state_digest == await self.state_digest()
        assert adapter.turns == len(wanted)
        assert adapter.readouts is not None
        assert adapter.readouts.equal(memorise(self.encoder, wanted))


@asynccontextmanager
async def opened(url: str, encoder: LocalEncoder = RIDGE) -> AsyncIterator[Memory]:
    memory = Memory(url, encoder)
    try:
        yield memory
    finally:
        memory.compute.close()
        await memory.engine.dispose()
