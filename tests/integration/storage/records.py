"""Turns, chunks and versions for storage tests, made from small numbers."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import torch
from torch import Tensor

from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.records import NewVersion, StoredChunk, StoredState
from memory_service.domain.turns import Role, Turn
from memory_service.generator.state import digest
from memory_service.storage.unit_of_work import UnitOfWork

ANN = MemoryId("ann", "acme")
FINGERPRINT = Fingerprint("generator", "base", "tokenizer", "chunking", "independent", "bf16")
START = datetime(2026, 3, 1, 18, 30, tzinfo=UTC)


def turn(number: int, *, session: str = "s", text: str = "", minutes: float | None = None) -> Turn:
    return Turn(
        session=session,
        role=Role.USER if number % 2 == 0 else Role.ASSISTANT,
        text=text or f"what turn {number} says",
        time=START + timedelta(minutes=number if minutes is None else minutes),
        id=f"t{number:05}",
    )


def chunk(*numbers: int, session: str = "s", salt: str = "") -> StoredChunk:
    turn_ids = tuple(turn(number).id for number in numbers)
    content = hashlib.sha256(f"{session}{turn_ids}{salt}".encode()).hexdigest()
    return StoredChunk(session, content, content[::-1], turn_ids, 10 * len(numbers))


def state(seed: int = 0, *, open_chunk: str | None = None) -> StoredState:
    closed = numbers(seed)
    update = numbers(seed + 1) if open_chunk else None
    total = closed if update is None else closed + update
    return StoredState(FINGERPRINT, closed, update, open_chunk, digest(total))


def numbers(seed: int, shape: tuple[int, ...] = (2, 3, 5)) -> Tensor:
    return torch.randint(-9999, 9999, shape, generator=torch.Generator().manual_seed(seed))


def readouts(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).bfloat16()


def change(  # one keyword a field
    expected_version: int,
    sessions: Mapping[str, int],
    *,
    appeared: Sequence[StoredChunk] = (),
    vanished: Sequence[StoredChunk] = (),
    reason: str = "append",
) -> NewVersion:
    seed = expected_version
    return NewVersion(
        expected_version, reason, state(seed), readouts(seed), appeared, vanished, sessions
    )


async def revisions(unit: UnitOfWork, memory_id: MemoryId = ANN) -> dict[str, int]:
    return {
        pending.name: pending.revision
        for pending in await unit.memories.pending_sessions(memory_id)
    }
