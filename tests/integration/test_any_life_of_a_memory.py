"""Whatever happens to two memories, in whatever order: they are what plain Python says they are.

A state machine does to real databases what people do to memories, and to a model of sets; after
every step the state is bit-equal to that of a memory built fresh from the turns that should be in.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memory_service.domain.archive import Archive
from memory_service.domain.turns import Turn
from memory_service.services.export_archive import ExportMemory
from memory_service.services.import_archive import ImportMemory
from memory_service.services.merge import Merge
from tests.helpers.fakes import FakeEncoder
from tests.helpers.histories import digest_of, turn
from tests.helpers.remembering import Memory


@dataclass
class Model:
    """A memory as sets: kept turns, those set aside, ids forgotten, and what versions held."""

    turns: dict[str, Turn] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    versions: dict[int, set[str]] = field(default_factory=dict)

    @property
    def active(self) -> set[str]:
        return set(self.turns) - self.aside

    def append(self, one: Turn) -> None:
        if one.id not in self.gone:
            self.turns.setdefault(one.id, one)

    def forget(self, ids: Collection[str]) -> None:
        for turn_id in ids:
            del self.turns[turn_id]
        self.aside -= set(ids)
        self.gone |= set(ids)

    def merge(self, other: "Model") -> None:
        self.gone |= other.gone
        aside = {
            turn_id
            for turn_id in {*self.turns, *other.turns}
            if turn_id not in self.active and turn_id not in other.active
        }
        turns = {**other.turns, **self.turns}
        self.turns = {id_: one for id_, one in turns.items() if id_ not in self.gone}
        self.aside = aside & set(self.turns)

    def roll_back(self, version: int) -> None:
        self.aside = set(self.turns) - self.versions[version]


class Lives(RuleBasedStateMachine):
    """Two memories of one person, which sometimes hear of each other."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        encoder = FakeEncoder()
        self.memories = [Memory(self.url, encoder) for _ in range(2)]
        self.models = [Model(), Model()]
        self.said: list[Turn] = []
        self.changed: set[int] = set()

    def teardown(self) -> None:
        for memory in self.memories:
            memory.compute.close()
            self.runner.run(memory.engine.dispose())
        self.runner.close()

    def note(self, which: int, version: int | None) -> None:
        assert version is not None
        self.models[which].versions[version] = self.models[which].active
        self.changed.add(which)

    def append_to(self, which: int, *turns: Turn) -> None:
        version = self.runner.run(self.memories[which].append(*turns))
        for one in turns:
            self.models[which].append(one)
        if version:
            self.note(which, version)

    @rule(
        which=st.integers(0, 1),
        minutes=st.lists(st.integers(0, 3000), min_size=1, max_size=3),
        session=st.sampled_from("ab"),
        words=st.sampled_from([1, 4, 24]),
    )
    def append(self, which: int, minutes: list[int], session: str, words: int) -> None:
        """New turns, late ones and ones longer than a chunk among them."""
        new = [
            turn(number, f"{number} " + "word " * words, session=session, minutes=minute)
            for number, minute in enumerate(minutes, start=len(self.said))
        ]
        self.said += new
        self.append_to(which, *new)

    @precondition(lambda self: self.said)
    @rule(which=st.integers(0, 1), data=st.data())
    def append_again(self, which: int, data: st.DataObject) -> None:
        """A retry, or the other device hears it too; what was forgotten does not come back."""
        self.append_to(which, *data.draw(st.lists(st.sampled_from(self.said), min_size=1)))

    @precondition(lambda self: any(model.turns for model in self.models))
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([n for n in (0, 1) if self.models[n].turns]))
        kept = sorted(self.models[which].turns)
        gone = data.draw(st.sets(st.sampled_from(kept), min_size=1, max_size=3))
        memory = self.memories[which]
        receipt = self.runner.run(memory.forget.turns(memory.id, gone))
        assert receipt.erased.turns == len(gone)
        self.models[which].forget(gone)
        self.note(which, receipt.version)

    @precondition(lambda self: any(model.active for model in self.models))
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([n for n in (0, 1) if self.models[n].active]))
        old = data.draw(st.sampled_from(sorted(self.models[which].active)))
        model, memory = self.models[which], self.memories[which]
        new = replace(model.turns[old], id=f"new{len(self.said)}", text=f"{len(self.said)} else")
        receipt = self.runner.run(memory.edit.turn(memory.id, old, new.text, new.id))
        model.forget([old])
        model.append(new)
        self.said.append(new)
        self.note(which, receipt.version)

    @precondition(lambda self: any(model.versions for model in self.models))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([n for n in (0, 1) if self.models[n].versions]))
        version = data.draw(st.sampled_from(sorted(self.models[which].versions)))
        memory = self.memories[which]
        receipt = self.runner.run(memory.rollback.version(memory.id, version))
        self.models[which].roll_back(version)
        self.note(which, receipt.version)

    @precondition(lambda self: all(model.versions for model in self.models))
    @rule(into=st.integers(0, 1))
    def merge(self, into: int) -> None:
        memory, other = self.memories[into], self.memories[1 - into]
        merge = Merge(memory.open_unit, memory.amend, memory.remember)
        merged = self.runner.run(merge.users(memory.id, other.id))
        self.models[into].merge(self.models[1 - into])
        self.note(into, merged.version)

    @precondition(lambda self: any(model.turns for model in self.models))
    @rule(data=st.data())
    def rebuild(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([n for n in (0, 1) if self.models[n].turns]))
        memory = self.memories[which]
        self.note(which, self.runner.run(memory.remember.rebuild(memory.id)))

    @precondition(lambda self: any(model.versions for model in self.models))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """Out into an archive, deleted, and back: one version, and otherwise the same memory."""
        which = data.draw(st.sampled_from([n for n in (0, 1) if self.models[n].versions]))
        version = self.runner.run(self.export_and_import(self.memories[which]))
        self.models[which].versions.clear()
        self.note(which, version)

    async def export_and_import(self, memory: Memory) -> int:
        packed: list[Archive] = []

        def keep(archive: Archive, file: Path) -> int:
            packed.append(archive)
            return 0

        await ExportMemory(memory.open_unit, keep).archive(memory.id, Path("kept"))
        async with memory.open_unit() as unit:
            await unit.memories.delete_user(memory.id)
            await unit.commit()
        importing = ImportMemory(memory.open_unit, memory.encoder, memory.compute, memory.remember)
        imported = await importing.archive(packed[0], memory.id)
        assert not imported.is_reencoded
        return imported.version

    @invariant()
    def is_what_the_model_says(self) -> None:
        for which in self.changed:
            self.runner.run(self.check(self.memories[which], self.models[which]))
        self.changed.clear()

    async def check(self, memory: Memory, model: Model) -> None:
        async with memory.open_unit() as unit:
            kept = await unit.memories.turns(memory.id)
            assert {one.id: one for one in kept} == model.turns
            assert await unit.memories.turns_set_aside(memory.id) == model.aside
            assert await unit.memories.pending_turn_ids(memory.id) == set()
            for version, held in model.versions.items():
                recipe = await unit.memories.chunks(memory.id, version)
                named = {turn_id for chunk in recipe for turn_id in chunk.turn_ids}
                assert named == held - model.gone
        active = [one for one in kept if one.id in model.active]
        assert await memory.state_digest() == digest_of(FakeEncoder(), active)


@pytest.mark.parametrize(
    ("database_kind", "lives", "steps"), [("sqlite", 12, 15), ("postgresql", 4, 10)]
)
def test_any_life_of_two_memories(database_url: str, lives: int, steps: int) -> None:
    Lives.url = database_url
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
