from contextlib import aclosing
from dataclasses import replace

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation, Message, Sampling
from memory_service.errors import IncompatibleState, InvalidInput, NotFound
from memory_service.services.chat import Chat
from memory_service.services.compute import Compute
from memory_service.services.forget import Forget
from memory_service.services.recall import Recall
from memory_service.services.remember import Remember
from tests.helpers.fakes import FakeBackend, FakeEncoder, FakeStore
from tests.helpers.histories import turn

ANN, BOB = MemoryId("ann"), MemoryId("bob")
ASKED = [Message("user", "What is my dog called?")]


class Setup:
    def __init__(self) -> None:
        self.store, self.encoder, self.backend = FakeStore(), FakeEncoder(), FakeBackend()
        self.compute = Compute()
        self.recall = Recall(self.store, self.encoder)
        self.remember = Remember(self.store, self.encoder, self.compute)
        self.chat = Chat(self.recall, self.backend)

    async def answer(self, memory_id: MemoryId | None, version: int | None = None) -> list:
        return [piece async for piece in self.chat.answer(memory_id, ASKED, Sampling(), version)]


@pytest.fixture
def setup():
    made = Setup()
    yield made
    made.compute.close()


async def test_answer_is_streamed_and_ends_with_the_generation(setup):
    *pieces, generation = await setup.answer(None)
    assert "".join(pieces) == generation.text == "Your dog is called Rex."
    assert isinstance(generation, Generation)


async def test_no_user_no_memory(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.answer(None)
    assert setup.backend.asked == [(ASKED, None, Sampling())]


async def test_every_user_gets_the_own_adapter(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.remember.append(BOB, [turn(1)])
    for memory_id in (ANN, BOB):
        await setup.answer(memory_id)
        applied = setup.backend.asked[-1][1]
        user = setup.store.users[memory_id]
        assert applied.memory_id == memory_id
        assert applied.readouts.equal(user.adapters[1].readouts)
    first, second = (applied.readouts for _, applied, _ in setup.backend.asked)
    assert not first.equal(second)


async def test_older_version(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.remember.append(ANN, [turn(1)])
    await setup.answer(ANN, version=1)
    applied = setup.backend.asked[0][1]
    assert applied.version == 1
    assert applied.readouts.equal(setup.store.users[ANN].adapters[1].readouts)


async def test_unknown_user_is_an_error_before_anything_is_generated(setup):
    with pytest.raises(NotFound):
        await setup.answer(ANN)
    assert setup.backend.asked == []


async def test_adapter_of_another_maker_is_refused(setup):
    await setup.remember.append(ANN, [turn(0)])
    user = setup.store.users[ANN]
    made_by = replace(user.adapters[1].fingerprint, base_model="another")
    user.adapters[1] = replace(user.adapters[1], fingerprint=made_by)
    with pytest.raises(IncompatibleState, match=r"adapter ann@1: .*base_model another"):
        await setup.answer(ANN)
    assert setup.backend.asked == []


async def test_version_without_readouts(setup):
    await setup.remember.append(ANN, [turn(0)])
    user = setup.store.users[ANN]
    user.adapters[1] = replace(user.adapters[1], readouts=None)
    with pytest.raises(NotFound, match=r"ann@1.*use the newest"):
        await setup.recall.adapter(ANN, 1)
    with pytest.raises(NotFound, match=r"ann@1.*were forgotten"):
        await setup.answer(ANN)


async def test_reader_that_stops_early_stops_the_backend_at_once(setup):
    async with aclosing(setup.chat.answer(None, ASKED, Sampling())) as pieces:
        assert await anext(pieces) == "Your"
    assert setup.backend.closed == 1  # not whenever the garbage is collected


# The adapters that are kept in memory


async def test_an_adapter_is_read_once(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.answer(ANN)
    await setup.answer(ANN)
    cache = setup.recall.cache
    assert (cache.hits, cache.misses) == (1, 1)
    assert cache.size_bytes == setup.store.users[ANN].adapters[1].size_bytes
    assert setup.backend.asked[0][1].readouts is setup.backend.asked[1][1].readouts


async def test_a_changed_memory_is_used_by_the_next_request(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.answer(ANN)
    await setup.remember.append(ANN, [turn(1)])
    await setup.answer(ANN)
    assert [applied.version for _, applied, _ in setup.backend.asked] == [1, 2]
    newest = setup.store.users[ANN].adapters[2].readouts
    assert setup.backend.asked[1][1].readouts.equal(newest)


async def test_a_user_who_comes_again_has_nothing_of_the_deleted_one(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.answer(ANN)
    await Forget(setup.store).user(ANN)
    with pytest.raises(NotFound):
        await setup.answer(ANN)
    await setup.remember.append(ANN, [turn(1)])  # version 1 again
    await setup.answer(ANN)
    assert setup.backend.asked[1][1].readouts.equal(setup.store.users[ANN].adapters[1].readouts)


async def test_users_of_two_tenants_share_nothing(setup):
    other = MemoryId(ANN.user, "other")
    await setup.remember.append(ANN, [turn(0)])
    await setup.remember.append(other, [turn(1)])
    await setup.answer(ANN)
    await setup.answer(other)
    assert setup.recall.cache.hits == 0
    first, second = (applied.readouts for _, applied, _ in setup.backend.asked)
    assert not first.equal(second)


async def test_an_older_version_by_number_is_kept_too(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.remember.append(ANN, [turn(1)])
    for _ in range(2):
        await setup.answer(ANN, version=1)
    assert setup.recall.cache.hits == 1
    with pytest.raises(NotFound):
        await setup.answer(ANN, version=7)


async def test_forgotten_user_has_no_memory(setup):
    await setup.remember.append(ANN, [turn(0)])
    await setup.remember.append(BOB, [turn(1)])
    assert await Forget(setup.store).user(ANN) == {"turns": 1, "chunks": 1}
    with pytest.raises(NotFound):
        await setup.answer(ANN)
    with pytest.raises(NotFound):
        await Forget(setup.store).user(ANN)
    await setup.answer(BOB)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_new_tokens", value) for value in (0, -1)),
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"))),
        *(("top_p", value) for value in (0.0, -1.0, 1.1, float("nan"))),
        *(("seed", value) for value in (-1, 2**63)),
    ],
)
def test_sampling_out_of_range(field, value):
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        Sampling(**{field: value})
