"""Reconcile: a state and the turns it should hold -> the version that holds them.

The one way a state changes, whatever happened to the turns: recompute the chunks of the sessions
that changed, add what appeared, subtract what vanished.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from torch import Tensor

from memory_service.domain.chunks import Chunk, in_order_said
from memory_service.domain.records import (
    NewVersion,
    PendingSession,
    QuarantinedChunk,
    StoredChunk,
    StoredState,
)
from memory_service.domain.turns import Role, Turn
from memory_service.errors import NumericalError
from memory_service.generator.config import Encoding
from memory_service.generator.state import add, digest, subtract
from memory_service.services.compute import Compute
from memory_service.services.ports import Encoder

log = structlog.get_logger()

Report = Callable[[int, int], None]
"""Called with chunks encoded so far and chunks to encode."""

ATTEMPTS = 2
"""How often a chunk is tried before it is quarantined."""

PROBE = Turn("probe", Role.USER, "My dog is called Rex.", datetime(2026, 1, 1, tzinfo=UTC), "probe")
"""A machine that cannot encode this can encode nothing."""


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

        A chunk that cannot be encoded is quarantined: the version comes without it, and it is not
        tried again while it stays there.

        Raises:
            CannotSubtractError: a chunk that vanished is not reproduced to the last bit here.
            NumericalError: the state is full, cannot be read out, or nothing at all can be encoded
                here, which is no chunk's fault.
        """
        total = _Sum(await self._compute.run(self._encoder.empty_state), None, None)
        if stored is not None:
            total = _Sum(stored.closed, stored.open_update, stored.open_chunk)
        vanished: list[StoredChunk] = []
        appeared: list[Chunk] = []
        quarantined: list[QuarantinedChunk] = []
        for session in sessions:
            chunks = await self._compute.run(self._encoder.chunk, session.turns)
            kept = {chunk.digest for chunk in chunks}
            failed = [chunk for chunk in session.quarantined if chunk.digest in kept]
            quarantined += failed
            known = {chunk.digest for chunk in session.chunks} | {chunk.digest for chunk in failed}
            for lost in session.chunks:
                if lost.digest not in kept:
                    turns = (*session.turns, *session.leaving)
                    await self._compute.run(self._remove, total, lost, turns)
                    vanished.append(lost)
            appeared += [chunk for chunk in chunks if chunk.digest not in known]
        added: list[StoredChunk] = []
        in_order = in_order_said(appeared, [turn for one in sessions for turn in one.turns])
        for number, chunk in enumerate(in_order, start=1):
            done = await self._compute.run(self._add, total, chunk)
            if isinstance(done, QuarantinedChunk):
                quarantined.append(done)
            else:
                added.append(done)
            if report is not None:
                report(number, len(appeared))
        state, readouts = await self._compute.run(self._read_out, total)
        return NewVersion(
            expected_version=version,
            reason=reason,
            state=state,
            readouts=readouts,
            appeared=added,
            vanished=vanished,
            sessions={session.name: session.revision for session in sessions},
            quarantined=quarantined,
        )

    # The following run on the worker of `compute`.

    def _add(self, total: _Sum, chunk: Chunk) -> StoredChunk | QuarantinedChunk:
        """Encode a chunk and add its update; it becomes the open one. Or tell why it cannot be."""
        state = total.total() if self.is_sequential else None
        try:
            update = self._encode(chunk, state)
        except NumericalError as error:
            self._require_working(state)
            log.warning("chunk_quarantined", chunk=chunk.digest[:12], reason=str(error))
            return QuarantinedChunk(
                chunk.session, chunk.digest, chunk.turn_ids, str(error), datetime.now(UTC)
            )
        total.append(update, chunk.digest)
        return StoredChunk(
            session=chunk.session,
            digest=chunk.digest,
            update_digest=digest(update),
            turn_ids=chunk.turn_ids,
            tokens=sum(self._encoder.count_tokens(text) for text in chunk.texts),
        )

    def _encode(self, chunk: Chunk, state: Tensor | None) -> Tensor:
        """A chunk's update. Raises NumericalError where it fails again and again."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._encoder.encode(chunk, state)
            except NumericalError:
                continue
        return self._encoder.encode(chunk, state)

    def _require_working(self, state: Tensor | None) -> None:
        """Raises NumericalError where a plain sentence fails as a chunk did: not its fault then."""
        probe = self._encoder.chunk([PROBE])[0]
        try:
            self._encode(probe, state)
        except NumericalError as error:
            raise NumericalError(
                "base model",
                "fails on a plain sentence too: the machine or the model is at fault, no turn is, "
                f"and none is quarantined; check both, then append or rebuild ({error})",
            ) from error

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
        chunk = kept_chunk(self._encoder, gone, turns)
        if chunk is None:
            raise CannotSubtractError("the text of a chunk in the state is no longer kept")
        try:
            update = self._encode(chunk, None)
        except NumericalError as error:
            raise CannotSubtractError(f"a chunk in the state fails to encode: {error}") from error
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


def kept_chunk(encoder: Encoder, stored: StoredChunk, turns: Sequence[Turn]) -> Chunk | None:
    """A chunk of a state with its text, cut again from the kept turns; None where that fails."""
    members = [turn for turn in turns if turn.id in stored.turn_ids]
    candidates = encoder.chunk(members)
    return next((chunk for chunk in candidates if chunk.digest == stored.digest), None)
