"""Quarantine on real databases, through services and the command line."""

import pytest

from memory_service.domain.chunks import Chunk
from memory_service.errors import NotFound, NumericalError, StateConflict
from memory_service.inference.encoder import LocalEncoder
from memory_service.services.forget import Forget
from memory_service.services.inspect import Inspect
from tests.helpers.command_line import run
from tests.helpers.histories import digest_of, turn
from tests.helpers.remembering import RIDGE, Memory, opened

GOOD = [turn(0, session="a"), turn(2, session="c")]
BAD = turn(1, "poison", session="b")


@pytest.fixture
async def memory(database_url):
    async with opened(database_url) as made:
        yield made


@pytest.fixture
def poison(monkeypatch):
    """The encoder fails on the word until the fixture's `undo` is called."""
    encode = RIDGE.encode

    def fail(chunk: Chunk, *rest):
        if "poison" in chunk.text:
            raise NumericalError("hidden states", "the base model returned NaN")
        return encode(chunk, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RIDGE, "encode", fail)
        yield patch


async def counts(memory: Memory) -> tuple[int, int, int]:
    head = (await Inspect(memory.open_unit).user(memory.id)).head
    return head.turns, head.pending_turns, head.quarantined_turns


async def test_bad_chunk_is_set_apart_seen_and_encoded_when_asked_for(memory, poison):
    await memory.append(GOOD[0], BAD, GOOD[1])
    assert await memory.state_digest() == digest_of(RIDGE, GOOD)
    assert await counts(memory) == (3, 0, 1)
    assert await memory.pending() == set()
    (chunk,) = await Inspect(memory.open_unit).quarantined(memory.id)
    assert (chunk.session, chunk.turn_ids) == ("b", (BAD.id,))
    failed_again = await memory.remember.retry(memory.id)
    assert (failed_again.tried, len(failed_again.quarantined)) == (1, 1)
    assert failed_again.quarantined[0].since > chunk.since
    poison.undo()
    assert (await memory.remember.retry(memory.id)).tried == 1
    await memory.check([*GOOD, BAD])
    assert await counts(memory) == (3, 0, 0)


async def test_forgetting_rebuilding_and_deleting_take_it_along(memory, poison):
    await memory.append(*GOOD, BAD, turn(3, "poison too", session="d"))
    await memory.forget.turns(memory.id, [BAD.id])
    assert await counts(memory) == (3, 0, 1)
    poison.undo()
    await memory.remember.rebuild(memory.id)
    assert await counts(memory) == (3, 0, 0)
    await Forget(memory.open_unit).user(memory.id)
    with pytest.raises(NotFound):
        await memory.remember.retry(memory.id)


async def test_work_that_knew_it_as_quarantined_is_refused_after_a_retry(memory, poison):
    """An encoder that read before the retry and writes after it must not put it back."""
    await memory.append(BAD)
    await memory.remember.retry(memory.id)
    async with memory.open_unit() as unit:
        state = await unit.memories.state(memory.id)
        head = await unit.memories.head(memory.id)
        (session,) = await unit.memories.sessions_of(memory.id, [BAD.id])
    change = await memory.amend._reconcile.change(head.version, state, [session], "append")
    assert len(change.quarantined) == 1
    async with memory.open_unit() as unit:
        assert await unit.memories.release_quarantined(memory.id) == 1
        await unit.commit()
    with pytest.raises(StateConflict):
        async with memory.open_unit() as unit:
            await unit.memories.write_version(memory.id, change)
    poison.undo()
    await memory.remember.encode_pending(memory.id)
    await memory.check([BAD])


def test_command_line_shows_and_retries(home, monkeypatch):
    encode = LocalEncoder.encode

    def fail(self, chunk, *rest):
        if "poison" in chunk.text:
            raise NumericalError("hidden states", "the base model returned NaN")
        return encode(self, chunk, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(LocalEncoder, "encode", fail)
        run("turns", "append", "ann", "poison", "--session", "bad", "--id", "p")
        run("turns", "append", "ann", "fine", "--session", "good")
        (listed,) = run("quarantine", "list", "ann", "--json").json
        assert (listed["session"], listed["turn_ids"]) == ("bad", ["p"])
        assert "NaN" in run("quarantine", "list", "ann").out
        assert "1 chunk tried again, 1 still" in run("quarantine", "retry", "ann").out
    assert run("users", "show", "ann", "--json").json["quarantined_turns"] == 1
    assert run("turns", "show", "ann", "p", "--json").json["quarantined"]
    assert "bad" in run("inspect", "ann", "--strongest", "0").out
    retried = run("quarantine", "retry", "ann", "--json").json
    assert (retried["tried"], retried["quarantined"]) == (1, [])
    assert run("quarantine", "list", "ann", "--json").json == []
    run("quarantine", "list", "bob", code=4)
    run("quarantine", "retry", "bob", code=4)
