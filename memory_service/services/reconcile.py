"""Reconcile: a state and the turns it should hold -> the version that holds them.

The one way a state changes, whatever happened to the turns: recompute the chunks of the sessions
that changed, add what appeared, subtract what vanished.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from memory_service.domain.chunks import Chunk, in_order_said
from memory_service.domain.records import NewVersion, PendingSession, StoredChunk, StoredState
from memory_service.domain.turns import Turn
from memory_service.generator.config import Encoding
from memory_service.generator.state import add, digest, subtract
from memory_service.services.compute import Compute
from memory_service.services.ports import Encoder

Report = Callable[[int, int], None]
"""Called with chunks encoded so far and chunks to encode."""


class CannotSubtractError(Exception):
    """A chunk's update cannot be taken out exactly: withdraw the state, rebuild from the text."""


@dataclass
class _Sum:
    """A state in the making; see `StoredState` for why one update is kept apart."""

    closed: Tensor
    open_update: Tensor | None
    open_chunk: str | None

    def append(self, update: Tensor, chunk: str) -> None:
        """Fold the open update into the sum and open the new one."""
        if self.open_update is not None:
            self.closed = add(self.closed, self.open_update)
        self.open_update, self.open_chunk = update, chunk

    def total(self) -> Tensor:
        """The state."""
        return self.closed if self.open_update is None else add(self.closed, self.open_update)


class Reconcile:
    """Computes new versions; stores nothing."""

    def __init__(self, encoder: Encoder, compute: Compute) -> None:
        self.fingerprint = encoder.fingerprint
        self.is_sequential = encoder.fingerprint.encoding == Encoding.SEQUENTIAL
        self._encoder = encoder
        self._compute = compute

    async def change(  # a version is made of these
        self,
        version: int,
        stored: StoredState | None,
        sessions: Sequence[PendingSession],
        reason: str,
        report: Report | None = None,
    ) -> NewVersion:
        """The version after `version`, in which the state holds the sessions' turns.

        Raises:
            CannotSubtractError: a chunk that vanished is not reproduced to the last bit here.
            NumericalError: a chunk cannot be encoded.
        """
        total = _Sum(await self._compute.run(self._encoder.empty_state), None, None)
        if stored is not None:
            total = _Sum(stored.closed, stored.open_update, stored.open_chunk)
        vanished: list[StoredChunk] = []
        appeared: list[Chunk] = []
        for session in sessions:
            chunks = await self._compute.run(self._encoder.chunk, session.turns)
            kept = {chunk.digest for chunk in chunks}
            known = {chunk.digest for chunk in session.chunks}
            for lost in session.chunks:
                if lost.digest not in kept:
                    turns = (*session.turns, *session.leaving)
                    await self._compute.run(self._remove, total, lost, turns)
                    vanished.append(lost)
            appeared += [chunk for chunk in chunks if chunk.digest not in known]
        added: list[StoredChunk] = []
        for chunk in in_order_said(appeared, [turn for one in sessions for turn in one.turns]):
            added.append(await self._compute.run(self._add, total, chunk))
            if report is not None:
                report(len(added), len(appeared))
        state, readouts = await self._compute.run(self._read_out, total)
        return NewVersion(
            expected_version=version,
            reason=reason,
            state=state,
            readouts=readouts,
            appeared=added,
            vanished=vanished,
            sessions={session.name: session.revision for session in sessions},
        )

    # The following run on the worker of `compute`.

    def _add(self, total: _Sum, chunk: Chunk) -> StoredChunk:
        """Encode a chunk and add its update; it becomes the open one."""
        update = self._encoder.encode(chunk, total.total() if self.is_sequential else None)
        total.append(update, chunk.digest)
        return StoredChunk(
            session=chunk.session,
            digest=chunk.digest,
            update_digest=digest(update),
            turn_ids=chunk.turn_ids,
            tokens=sum(self._encoder.count_tokens(text) for text in chunk.texts),
        )

    def _remove(self, total: _Sum, gone: StoredChunk, turns: Sequence[Turn]) -> None:
        """Take a chunk's update out of the sum: the open one is dropped, a closed one subtracted.

        Raises:
            CannotSubtractError: the update cannot be reproduced to the last bit here.
        """
        if gone.digest == total.open_chunk:
            total.open_update = total.open_chunk = None
            return
        if self.is_sequential:
            raise CannotSubtractError("later chunks were read with this one's adapter applied")
        members = [turn for turn in turns if turn.id in gone.turn_ids]
        candidates = self._encoder.chunk(members)
        chunk = next((chunk for chunk in candidates if chunk.digest == gone.digest), None)
        if chunk is None:
            raise CannotSubtractError("the text of a chunk in the state is no longer kept")
        update = self._encoder.encode(chunk)
        if digest(update) != gone.update_digest:
            raise CannotSubtractError(
                "this machine does not reproduce an update in the state to the last bit"
            )
        total.closed = subtract(total.closed, update)

    def _read_out(self, total: _Sum) -> tuple[StoredState, Tensor]:
        """The state as it is stored, and its adapter."""
        state = total.total()
        stored = StoredState(
            fingerprint=self.fingerprint,
            closed=total.closed,
            open_update=total.open_update,
            open_chunk=total.open_chunk,
            digest=digest(state),
        )
        return stored, self._encoder.read_out(state)
