"""`services.why` on fakes: an answer is as likely as the state holds the word `key` often."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from memory_service.domain.chunks import Chunk
from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import Turn
from memory_service.errors import IncompatibleState, InvalidInput, NotFound, StateConflict
from memory_service.services.amend import Amend
from memory_service.services.compute import Compute
from memory_service.services.forget_turns import ForgetTurns
from memory_service.services.remember import Remember
from memory_service.services.why import Claim, Depth, Reasons, Why
from tests.helpers.fakes import FakeEncoder, FakeStore, sequential
from tests.helpers.histories import turn

ANN = MemoryId("ann")
TURNS = [
    turn(0, "the weather is what we have talked about"),
    turn(1, "key"),
    turn(2, "it rains"),
    turn(3, "key key"),
    turn(4, "key and so on and so forth"),
    turn(5, "bye"),
]
WORDS = {one.id: one.text.count("key") for one in TURNS}


class CountingEncoder(FakeEncoder):
    """An update is how often a chunk says `key`."""

    def encode(self, chunk: Chunk, state: torch.Tensor | None = None) -> torch.Tensor:
        return torch.full_like(super().encode(chunk, state), chunk.text.count("key"))


class Scorer:
    """Answers are as likely as the read-out is large; `during` is called before."""

    def __init__(self) -> None:
        self.during = lambda: None

    def log_likelihoods(
        self, prompts: Sequence[Any], answers: Sequence[str], readouts: Sequence[Any]
    ) -> list[float]:
        assert len(prompts) == len(answers) == len(readouts)
        self.during()
        return [-9.0 if one is None else -9.0 + float(one.mean()) for one in readouts]


class Setup:
    def __init__(self, encoder: FakeEncoder) -> None:
        self.store, self.encoder, self.compute = FakeStore(), encoder, Compute()
        self.scorer = Scorer()
        self.remember = Remember(self.store, encoder, self.compute)
        self.forget = ForgetTurns(Amend(self.store, encoder, self.compute, self.remember))
        self.why = Why(self.store, encoder, self.scorer, self.compute)

    async def ask(self, *turns: Turn, depth: Depth | None = None) -> Reasons:
        await self.remember.append(ANN, turns)
        self.encoder.encoded.clear()
        (found,) = await self.why.claims(ANN, [Claim("where?", "under the mat")], depth)
        return found


@pytest.fixture
def setup():
    made = Setup(CountingEncoder(budget_tokens=90))  # a turn or two a chunk, none split
    yield made
    made.compute.close()


def chunks(setup: Setup) -> list[tuple[str, ...]]:
    return [chunk.turn_ids for chunk in setup.encoder.chunk(TURNS)]


async def test_turns_are_ranked_by_what_the_answer_loses_without_them(setup: Setup) -> None:
    found = await setup.ask(*TURNS, depth=Depth(chunks=9, opened=9, turns=9))
    assert len(chunks(setup)) > 2
    assert (found.version, found.without_memory) == (1, -9.0)
    assert found.log_likelihood == -9.0 + sum(WORDS.values())
    assert {one.turn.id: one.loss for one in found.turns} == WORDS
    assert found.turns[0].turn == TURNS[3]
    for held in chunks(setup):
        lost = {one.chunk_loss for one in found.turns if one.turn.id in held}
        assert lost == {sum(WORDS[id_] for id_ in held)}


async def test_only_so_much_is_left_out_what_the_shares_favour_first(setup: Setup) -> None:
    found = await setup.ask(*TURNS, depth=Depth(chunks=2, opened=1, turns=1))
    letters = {one.id: len(one.text) for one in TURNS}
    favoured = sorted(chunks(setup), key=lambda held: -max(letters[id_] for id_ in held))[:2]
    tried = {one.turn.id for one in found.turns if one.chunk_loss is not None}
    assert tried == {id_ for held in favoured for id_ in held}
    opened = max(favoured, key=lambda held: sum(WORDS[id_] for id_ in held))
    (measured,) = [one for one in found.turns if one.loss is not None]
    assert measured.turn.id == max(opened, key=lambda id_: letters[id_])
    assert found.turns[0] == measured
    shares = [one.share for one in found.turns[1:]]
    assert shares == sorted(shares, reverse=True)
    assert len(setup.encoder.encoded) <= 3  # two chunks, and the rest of one of them


async def test_the_chunks_are_read_once_for_all_claims_and_progress_ends_at_its_end(setup) -> None:
    await setup.remember.append(ANN, TURNS)
    read: list[tuple[str, int]] = []
    weigh = setup.encoder.weigh

    def count(chunk: Chunk, gauges: Sequence[torch.Tensor]) -> list[dict[str, float]]:
        read.append((chunk.digest, len(gauges)))
        return weigh(chunk, gauges)

    setup.encoder.weigh = count
    steps: list[tuple[int, int]] = []
    claims = [Claim("where?", "there"), Claim("when?", "now")]
    found = await setup.why.claims(ANN, claims, report=lambda *step: steps.append(step))
    assert [one.claim for one in found] == claims
    assert sorted(read) == sorted((chunk.digest, 2) for chunk in setup.encoder.chunk(TURNS))
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]


async def test_nothing_is_told_of_turns_that_go_meanwhile(setup: Setup) -> None:
    await setup.remember.append(ANN, TURNS)

    def forget() -> None:
        setup.store.users[ANN].turns.pop("t002", None)

    setup.scorer.during = forget
    with pytest.raises(StateConflict, match="ann@1: turns were forgotten meanwhile"):
        await setup.why.claim(ANN, "where?", "there")


async def test_turns_that_the_state_does_not_hold_have_no_weight(setup: Setup) -> None:
    await setup.ask(*TURNS)
    setup.encoder.interrupt = fail
    with pytest.raises(NotFound):
        await setup.remember.append(ANN, [turn(6, "key", session="later")])
    setup.encoder.interrupt = lambda chunk: None
    found = await setup.why.claim(ANN, "where?", "there")
    assert {one.turn.id for one in found.turns} == set(WORDS)


def fail(chunk: Chunk) -> None:
    raise NotFound("file", "weights")


async def test_what_is_not_reproduced_to_the_last_bit_is_not_subtracted(setup: Setup) -> None:
    await setup.remember.append(ANN, TURNS)
    user = setup.store.users[ANN]
    user.chunks = [replace(chunk, update_digest="0" * 64) for chunk in user.chunks]
    with pytest.raises(IncompatibleState, match="memory users rebuild"):
        await setup.why.claim(ANN, "where?", "there")


async def test_sequential_states_and_empty_answers_are_refused(setup: Setup) -> None:
    with pytest.raises(InvalidInput, match="answer"):
        await setup.ask(*TURNS)
        await setup.why.claim(ANN, "where?", " ")
    other = Setup(sequential())
    with pytest.raises(IncompatibleState, match="sequentially"):
        await other.ask(*TURNS)
    other.compute.close()


async def test_who_has_no_state_is_not_accounted_for(setup: Setup) -> None:
    with pytest.raises(NotFound):
        await setup.why.claim(ANN, "where?", "there")
    await setup.remember.append(ANN, TURNS[:1])
    setup.store.users[ANN].state = None
    with pytest.raises(NotFound, match="none of its turns is encoded now"):
        await setup.why.strongest(ANN, 3)


async def test_the_strongest_turns_are_those_of_the_largest_shares(setup: Setup) -> None:
    await setup.remember.append(ANN, TURNS)
    strongest = await setup.why.strongest(ANN, 2)
    assert [one.turn.id for one in strongest] == ["t000", "t004"]
    letters = {
        line.turn_id: len(line.text) for chunk in setup.encoder.chunk(TURNS) for line in chunk.lines
    }
    assert [one.share for one in strongest] == [letters["t000"], letters["t004"]]
