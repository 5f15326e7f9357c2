"""`services.ask` on fakes."""

import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message
from memory_service.errors import NotFound
from memory_service.services.ask import Ask
from memory_service.services.compute import Compute
from memory_service.services.forget import Forget
from memory_service.services.recall import Recall
from memory_service.services.remember import Remember
from tests.helpers.fakes import FakeBackend, FakeEncoder, FakeStore
from tests.helpers.histories import turn

ANN = MemoryId("ann")


class Scorer:
    """With an adapter answers are likely, without one they are not."""

    def log_likelihoods(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], readouts: Sequence[Any]
    ) -> list[float]:
        assert len(prompts) == len(answers) == len(readouts)
        return [-4.0 if one is None else -0.5 for one in readouts]


class Setup:
    def __init__(self, backend: FakeBackend) -> None:
        self.store, self.encoder, self.compute = FakeStore(), FakeEncoder(), Compute()
        self.backend = backend
        self.recall = Recall(self.store, self.encoder)
        self.remember = Remember(self.store, self.encoder, self.compute)
        self.ask = Ask(self.recall, backend, Scorer(), self.compute)


async def test_the_answer_comes_with_its_likelihoods():
    setup = Setup(FakeBackend("Rex."))
    await setup.remember.append(ANN, [turn(0)])
    reply = await setup.ask.question(ANN, "What is my dog called?", most_new_tokens=5)
    assert (reply.answer, reply.version) == ("Rex.", 1)
    assert reply.confidence == pytest.approx(math.exp(-0.5))
    assert (reply.log_likelihood, reply.without_memory) == (-0.5, -4.0)
    ((messages, adapter, sampling),) = setup.backend.asked
    assert messages == [Message("user", "What is my dog called?")]
    assert adapter is not None
    assert adapter.memory_id == ANN
    assert (sampling.temperature, sampling.max_new_tokens) == (0, 5)


async def test_nothing_said_is_no_confidence():
    setup = Setup(FakeBackend(""))
    await setup.remember.append(ANN, [turn(0)])
    reply = await setup.ask.question(ANN, "Well?")
    assert (reply.answer, reply.confidence, reply.log_likelihood) == ("", 0.0, None)


async def test_who_is_forgotten_while_the_answer_is_made_is_not_told_of():
    class Forgetting(FakeBackend):
        async def stream(self, *asked: Any, **more: Any) -> AsyncGenerator[str | Generation, None]:
            async for piece in super().stream(*asked, **more):
                if isinstance(piece, Generation):
                    await Forget(setup.store).user(ANN)
                yield piece

    setup = Setup(Forgetting("Rex."))
    await setup.remember.append(ANN, [turn(0)])
    with pytest.raises(NotFound):
        await setup.ask.question(ANN, "What is my dog called?")


async def test_who_has_no_memory_cannot_be_asked_about():
    with pytest.raises(NotFound):
        await Setup(FakeBackend()).ask.question(ANN, "Who am I?")
