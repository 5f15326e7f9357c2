"""Archives come in: a user's memory out of another database, to the last bit."""

from collections import defaultdict
from dataclasses import dataclass

from memory_service.domain.archive import Archive, Encoded
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import Arrival, NewVersion
from memory_service.domain.turns import Turn
from memory_service.errors import InvalidInput, NotFound, StateConflict
from memory_service.generator.state import add
from memory_service.services.compute import Compute
from memory_service.services.ports import Encoder, Memories, OpenUnit
from memory_service.services.reconcile import Report
from memory_service.services.remember import Remember

ROUNDING = 0.01
"""How far another machine may read out of the same state: more than bfloat16 can explain."""


@dataclass(frozen=True)
class Imported:
    """A memory that was imported; `is_reencoded` where another generator had made its state."""

    memory_id: MemoryId
    version: int
    turns: int
    is_reencoded: bool
    made_by: str | None
    state_digest: str | None


class ImportMemory:
    """Makes memories of archives."""

    def __init__(
        self, open_unit: OpenUnit, encoder: Encoder, compute: Compute, remember: Remember
    ) -> None:
        self._open_unit = open_unit
        self._encoder = encoder
        self._compute = compute
        self._remember = remember

    async def archive(
        self, archive: Archive, memory_id: MemoryId, report: Report | None = None
    ) -> Imported:
        """Store an archive as a new user's memory, in one transaction, and encode what is missing.

        Its state and adapter are taken over where the running generator made them; otherwise its
        turns are encoded anew.

        Raises:
            StateConflict: the user exists already.
            InvalidInput: it is of another tenant, its state or adapter has another shape than the
                generator's, or its adapter is not the read-out of its state.
        """
        if archive.memory_id.tenant != memory_id.tenant:
            tenant = archive.memory_id.tenant
            raise InvalidInput("archive", tenant, f"is not of the tenant {memory_id.tenant}")
        encoded = archive.encoded
        fits = encoded is not None and encoded.state.fingerprint == self._encoder.fingerprint
        if encoded is not None and fits:
            await self._compute.run(self._require_fitting, encoded)
        whole = await self._whole_sessions(archive) if fits else set()
        async with self._open_unit() as unit:
            await _require_new(unit.memories, memory_id)
            await unit.memories.bury(memory_id, archive.tombstones)
            arrivals = await unit.memories.add_turns(memory_id, archive.turns)
            if set(arrivals) - {Arrival.NEW}:
                raise _taken(memory_id)
            head = await unit.memories.head(memory_id)
            if (head.version, head.turns) != (0, len(archive.turns)):  # another was quicker
                raise _taken(memory_id)
            if archive.aside:
                await unit.memories.set_aside(memory_id, aside=archive.aside, back=())
            if encoded is not None and fits:
                change = await _version(unit.memories, memory_id, archive, encoded, whole)
                await unit.memories.write_version(memory_id, change)
            await unit.commit()
        version = await self._remember.encode_pending(memory_id, report)
        return Imported(
            memory_id=memory_id,
            version=version,
            turns=len(archive.turns),
            is_reencoded=encoded is not None and not fits,
            made_by=None if encoded is None else encoded.state.fingerprint.short,
            state_digest=await self._state_digest(memory_id),
        )

    async def _whole_sessions(self, archive: Archive) -> set[str]:
        """Sessions that the state holds whole; the others are encoded after the import."""
        turns: dict[str, list[Turn]] = defaultdict(list)
        for turn in archive.turns:
            turns[turn.session] += [] if turn.id in archive.aside else [turn]
        held = defaultdict(set)
        for chunk in archive.encoded.chunks if archive.encoded is not None else ():
            held[chunk.session].add(chunk.digest)
        whole = set()
        for name, said in turns.items():
            chunks = await self._compute.run(self._encoder.chunk, said)
            if {chunk.digest for chunk in chunks} == held[name]:
                whole.add(name)
        return whole

    def _require_fitting(self, encoded: Encoded) -> None:
        state = encoded.state
        if state.closed.shape != self._encoder.empty_state().shape:
            raise InvalidInput("archive", list(state.closed.shape), "its state has another shape")
        total = state.closed if state.open_update is None else add(state.closed, state.open_update)
        readouts = self._encoder.read_out(total)
        found = encoded.readouts
        if (found.shape, found.dtype) != (readouts.shape, readouts.dtype):
            raise InvalidInput("archive", list(found.shape), "its adapter has another shape")
        away = (found.float() - readouts.float()).norm()
        if not away <= ROUNDING * readouts.float().norm():  # NaN is not near anything
            raise InvalidInput("archive", encoded.version, "its adapter is not its state's")

    async def _state_digest(self, memory_id: MemoryId) -> str | None:
        async with self._open_unit() as unit:
            state = await unit.memories.state(memory_id)
        return None if state is None else state.digest


async def _require_new(memories: Memories, memory_id: MemoryId) -> None:
    try:
        await memories.head(memory_id)
    except NotFound:
        return
    raise _taken(memory_id)


def _taken(memory_id: MemoryId) -> StateConflict:
    return StateConflict(
        f"user {memory_id.user}",
        "exists already; import under another name (--user), then `memory users merge` both",
    )


async def _version(
    memories: Memories, memory_id: MemoryId, archive: Archive, encoded: Encoded, whole: set[str]
) -> NewVersion:
    sessions = await memories.sessions_of(memory_id, [turn.id for turn in archive.turns])
    return NewVersion(
        expected_version=0,
        reason="import",
        state=encoded.state,
        readouts=encoded.readouts,
        appeared=encoded.chunks,
        vanished=(),
        sessions={one.name: one.revision for one in sessions if one.name in whole},
    )
