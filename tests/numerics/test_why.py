"""`Why` on the tiny model: its weights are those of the definition, computed another way."""

import pytest
import torch

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Message
from memory_service.evaluation.methods import memorise
from memory_service.services.compute import Compute
from memory_service.services.remember import Remember
from memory_service.services.why import Claim, Depth, Why
from tests.helpers.fakes import FakeStore
from tests.helpers.histories import turn
from tests.helpers.tiny_inference import tiny_inference

ANN = MemoryId("ann")
PLANTED = turn(5, "the key is under the mat")
TURNS = [*(turn(n, f"{n} we talk of rain") for n in (0, 1, 2, 3, 4)), PLANTED, turn(6, "bye now")]
QUESTION, ANSWER = "where is the key", "under the mat"


@pytest.fixture
def made():
    torch.manual_seed(0)
    return tiny_inference()


async def test_weights_are_what_the_answer_loses_without_the_turn(made) -> None:
    store, compute = FakeStore(), Compute()
    await Remember(store, made.encoder, compute).append(ANN, TURNS)
    why = Why(store, made.encoder, made.backend, compute)
    depth = Depth(chunks=9, opened=9, turns=99)
    (found,) = await why.claims(ANN, [Claim(QUESTION, ANSWER)], depth)
    compute.close()

    def likelihood(turn_lists) -> float:
        """Of the answer, under chunks that are encoded each by itself and added up."""
        state = made.encoder.empty_state()
        for turns in turn_lists:
            for chunk in made.encoder.chunk(turns):
                state = state + made.encoder.encode(chunk)
        prompt = [Message("user", QUESTION)]
        readouts = made.encoder.read_out(state)
        return made.backend.log_likelihoods([prompt], [ANSWER], [readouts])[0]

    kept = {one.id: one for one in TURNS}
    chunks = [[kept[id_] for id_ in chunk.turn_ids] for chunk in made.encoder.chunk(TURNS)]
    assert len(chunks) > 2
    whole = likelihood(chunks)
    assert found.log_likelihood == pytest.approx(whole, abs=1e-4)
    assert made.encoder.read_out(
        sum((made.encoder.encode(c) for c in made.encoder.chunk(TURNS)), made.encoder.empty_state())
    ).equal(memorise(made.encoder, TURNS))
    expected = {
        one.id: whole - likelihood([[t for t in chunk if t != one] for chunk in chunks])
        for one in TURNS
    }
    assert {w.turn.id: w.loss for w in found.turns} == pytest.approx(expected, abs=1e-4)
    by_chunk = {
        one.id: whole - likelihood([chunk for chunk in chunks if one not in chunk]) for one in TURNS
    }
    assert {w.turn.id: w.chunk_loss for w in found.turns} == pytest.approx(by_chunk, abs=1e-4)
    losses = [weight.loss for weight in found.turns]
    assert losses == sorted(losses, reverse=True)
