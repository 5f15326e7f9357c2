"""Why: which turns carry an answer, by asking what the memory would say without them.

A turn's weight is what the answer loses when the turn is left out: its log-likelihood under the
memory less that under the state without the turn's chunk plus the rest of the chunk encoded anew.
Rows of the chunk are never dropped instead: other tokens attended to them. That is exact and costs
an encoding per turn, so the cheap shares of all turns (`generator.provenance`) choose which chunks
are left out, and in the chunks that count, which turns.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from memory_service.domain.chunks import Chunk, without_turn
from memory_service.domain.memory import MemoryId
from memory_service.domain.records import StoredChunk
from memory_service.domain.turns import Turn
from memory_service.errors import IncompatibleState, InvalidInput, NotFound, StateConflict
from memory_service.generator.config import Encoding
from memory_service.generator.state import add, digest, subtract
from memory_service.services.compute import Compute
from memory_service.services.ports import Encoder, Message, OpenUnit, Scorer
from memory_service.services.reconcile import kept_chunk

Report = Callable[[int, int], None]
"""Called with encodings done and to do."""


@dataclass(frozen=True)
class Depth:
    """How much is left out one by one: chunks, the chunks among them whose turns are, and turns."""

    chunks: int = 8
    opened: int = 3
    turns: int = 12


@dataclass(frozen=True)
class TurnWeight:
    """How much of an answer one turn carries.

    `loss` is what the answer loses without the turn in nats per token, `chunk_loss` without its
    whole chunk; None where that was not tried. `share` is the cheap one, from the rows.
    """

    turn: Turn
    share: float
    chunk_loss: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Claim:
    """A question and the answer that is to be accounted for."""

    question: str
    answer: str


@dataclass(frozen=True)
class Reasons:
    """The turns of a memory by how much they carry an answer, most first.

    Log-likelihoods are in nats per token, with the memory and with the base model alone.
    """

    claim: Claim
    version: int
    log_likelihood: float
    without_memory: float
    turns: Sequence[TurnWeight]


@dataclass(frozen=True)
class _Held:
    """A chunk of the state with its text and turns."""

    stored: StoredChunk
    chunk: Chunk


@dataclass(frozen=True)
class _Memory:
    """What is asked: a state and what it was made from."""

    name: str
    version: int
    total: Tensor
    held: Sequence[_Held]
    turns: Mapping[str, Turn]


class Why:
    """Leaves chunks and turns out of a memory's newest state; stores nothing."""

    def __init__(
        self, open_unit: OpenUnit, encoder: Encoder, scorer: Scorer, compute: Compute
    ) -> None:
        self._open_unit = open_unit
        self._encoder = encoder
        self._scorer = scorer
        self._compute = compute

    async def claims(
        self,
        memory_id: MemoryId,
        claims: Sequence[Claim],
        depth: Depth | None = None,
        report: Report | None = None,
    ) -> list[Reasons]:
        """Account for answers; the chunks of the memory are read once for all of them.

        Raises:
            InvalidInput: an answer is empty.
            NotFound: there is no such user, or nothing was encoded yet.
            IncompatibleState: another generator or base model made the state, it was encoded
                sequentially, or this machine does not reproduce an update to the last bit.
            StateConflict: a turn was forgotten meanwhile.
        """
        for claim in claims:
            if not claim.answer.strip():
                raise InvalidInput("answer", claim.answer, "is empty: there is nothing to explain")
        depth = depth or Depth()
        memory = await self._memory(memory_id)
        steps = _Steps(report, len(memory.held) + len(claims) * (depth.chunks + depth.turns))
        shares = await self._shares(memory, claims, steps)
        found = [
            await self._account(memory, claim, share, depth, steps)
            for claim, share in zip(claims, shares, strict=True)
        ]
        async with self._open_unit() as unit:
            kept = await unit.memories.turns_by_id(memory_id, memory.turns)
        if len(kept) < len(memory.turns):  # forgotten meanwhile: not a word of it
            raise StateConflict(memory.name, "turns were forgotten meanwhile; ask again")
        return found

    async def claim(
        self, memory_id: MemoryId, question: str, answer: str, report: Report | None = None
    ) -> Reasons:
        """Account for one answer; see `claims`."""
        (found,) = await self.claims(memory_id, [Claim(question, answer)], report=report)
        return found

    async def strongest(
        self, memory_id: MemoryId, count: int, report: Report | None = None
    ) -> list[TurnWeight]:
        """The turns with the largest shares in the adapter as a whole, whatever is asked.

        Raises:
            NotFound: there is no such user, or nothing was encoded yet.
            IncompatibleState: another generator or base model made the state, or it was encoded
                sequentially.
        """
        memory = await self._memory(memory_id)
        gauge = await self._compute.run(self._encoder.gauge, memory.total)
        (shares,) = await self._weighed(memory, [gauge], _Steps(report, len(memory.held)))
        largest = sorted(shares, key=lambda turn_id: -shares[turn_id])[:count]
        return [TurnWeight(memory.turns[turn_id], shares[turn_id]) for turn_id in largest]

    async def _memory(self, memory_id: MemoryId) -> _Memory:
        """The newest state and its chunks."""
        async with self._open_unit() as unit:
            head = await unit.memories.head(memory_id)
            state = await unit.memories.state(memory_id)
            stored = await unit.memories.chunks(memory_id)
            kept = await unit.memories.turns(memory_id)
            aside = await unit.memories.turns_set_aside(memory_id)
        if state is None:
            raise NotFound("state", memory_id.user, "none of its turns is encoded now")
        name = f"{memory_id.user}@{head.version}"
        self._encoder.fingerprint.require(state.fingerprint, f"state of {name}")
        if state.fingerprint.encoding == Encoding.SEQUENTIAL:
            raise IncompatibleState(
                f"state of {name}",
                "was encoded sequentially: later chunks were read with the earlier ones applied, "
                "so none can be left out alone",
                "use a generator with independent encoding",
            )
        active = [turn for turn in kept if turn.id not in aside]
        held = await self._compute.run(self._held, stored, active)
        named = {turn_id for one in held for turn_id in one.chunk.turn_ids}
        turns = {turn.id: turn for turn in active if turn.id in named}
        return _Memory(name, head.version, state.total(), held, turns)

    def _held(self, stored: Sequence[StoredChunk], turns: Sequence[Turn]) -> list[_Held]:
        """The chunks with their text; a session that changed since is cut chunk by chunk."""
        by_session: dict[str, list[Turn]] = defaultdict(list)
        for turn in turns:
            by_session[turn.session].append(turn)
        cut = {
            chunk.digest: chunk
            for name in {one.session for one in stored}
            for chunk in self._encoder.chunk(by_session[name])
        }
        found = []
        for one in stored:
            members = by_session[one.session]
            chunk = cut.get(one.digest) or kept_chunk(self._encoder, one, members)
            if chunk is not None:
                found.append(_Held(one, chunk))
        return found

    async def _shares(
        self, memory: _Memory, claims: Sequence[Claim], steps: "_Steps"
    ) -> list[dict[str, float]]:
        gauges = []
        for claim in claims:
            prompt = _prompt(claim)
            gauges.append(
                await self._compute.run(self._encoder.gauge, memory.total, prompt, claim.answer)
            )
        return await self._weighed(memory, gauges, steps)

    async def _weighed(
        self, memory: _Memory, gauges: Sequence[Tensor], steps: "_Steps"
    ) -> list[dict[str, float]]:
        """Every turn's share by every gauge."""
        shares: list[dict[str, float]] = [defaultdict(float) for _ in gauges]
        for held in memory.held:
            weighed = await self._compute.run(self._encoder.weigh, held.chunk, gauges)
            for sums, found in zip(shares, weighed, strict=True):
                for turn_id, share in found.items():
                    sums[turn_id] += share
            steps.add()
        return shares

    async def _account(
        self,
        memory: _Memory,
        claim: Claim,
        shares: Mapping[str, float],
        depth: Depth,
        steps: "_Steps",
    ) -> Reasons:
        updates: dict[str, Tensor] = {}

        def weight(held: _Held) -> float:
            return max(shares[turn_id] for turn_id in held.chunk.turn_ids)

        tried = sorted(memory.held, key=weight, reverse=True)[: depth.chunks]
        without = [
            await self._compute.run(self._without, memory, [held], None, updates) for held in tried
        ]
        steps.add(depth.chunks)
        whole = await self._compute.run(self._encoder.read_out, memory.total)
        own, alone, *each = await self._likelihoods(claim, [whole, None, *without])
        by_chunk = sorted(zip(tried, each, strict=True), key=lambda pair: pair[1])
        weights = {
            turn_id: TurnWeight(memory.turns[turn_id], share) for turn_id, share in shares.items()
        }
        for held, likelihood in reversed(by_chunk):  # a turn of several keeps the largest
            for turn_id in held.chunk.turn_ids:
                weights[turn_id] = replace(weights[turn_id], chunk_loss=own - likelihood)
        opened = {
            turn_id for held, _ in by_chunk[: depth.opened] for turn_id in held.chunk.turn_ids
        }
        chosen = sorted(opened, key=lambda turn_id: -shares[turn_id])[: depth.turns]
        states = []
        for turn_id in chosen:
            holding = [held for held in memory.held if turn_id in held.chunk.turn_ids]
            states.append(await self._compute.run(self._without, memory, holding, turn_id, updates))
            steps.add()
        steps.add(depth.turns - len(chosen))
        each = await self._likelihoods(claim, states)
        for turn_id, likelihood in zip(chosen, each, strict=True):
            weights[turn_id] = replace(weights[turn_id], loss=own - likelihood)
        return Reasons(claim, memory.version, own, alone, _ranked(weights.values()))

    async def _likelihoods(self, claim: Claim, readouts: Sequence[Tensor | None]) -> list[float]:
        """Of the answer in one batch, by each of these; None is the base model alone."""
        if not readouts:
            return []
        prompts, answers = [_prompt(claim)] * len(readouts), [claim.answer] * len(readouts)
        return await self._compute.run(self._scorer.log_likelihoods, prompts, answers, readouts)

    # The following runs on the worker of `compute`.

    def _without(
        self,
        memory: _Memory,
        holding: Sequence[_Held],
        turn_id: str | None,
        updates: dict[str, Tensor],
    ) -> Tensor:
        """The read-out of the state without chunks, or without one turn of them."""
        state = memory.total
        for held in holding:
            if held.stored.digest not in updates:
                updates[held.stored.digest] = self._exact(memory, held)
            state = subtract(state, updates[held.stored.digest])
            rest = None
            if turn_id is not None:
                rest = without_turn(held.chunk, turn_id, memory.turns)
            if rest is not None:
                state = add(state, self._encoder.encode(rest))
        return self._encoder.read_out(state)

    def _exact(self, memory: _Memory, held: _Held) -> Tensor:
        update = self._encoder.encode(held.chunk)
        if digest(update) != held.stored.update_digest:
            raise IncompatibleState(
                f"state of {memory.name}",
                "holds an update that this machine does not reproduce to the last bit",
                "run `memory users rebuild USER` to encode the kept turns again",
            )
        return update


class _Steps:
    """Counts encodings for a report."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._report is not None:
            self._report(self._done, self._total)


def _prompt(claim: Claim) -> list[Message]:
    return [Message("user", claim.question)]


def _ranked(weights: Iterable[TurnWeight]) -> list[TurnWeight]:
    """Turns that were left out by what that cost; then the others by their shares."""

    def rank(weight: TurnWeight) -> tuple[bool, float]:
        measured = weight.loss is not None
        return not measured, -(weight.share if weight.loss is None else weight.loss)

    return sorted(weights, key=rank)
