"""Archives on real databases: the same memory to the last bit, or nothing at all."""

import hashlib
import io
import json
import stat
import warnings
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput, NotFound, StateConflict, Unavailable
from memory_service.services.export_archive import ExportMemory
from memory_service.services.import_archive import ImportMemory
from memory_service.services.recall import Recall
from memory_service.storage.archive import read_archive, write_archive
from tests.helpers.histories import digest_of, turn
from tests.helpers.remembering import OTHER, RIDGE, Memory, opened

ODD = "Rex\u2028\x85 \U0001f415"
TURNS = [turn(number, f"{number} {ODD}", session=f"s{number // 8}") for number in range(12)]
EVE = MemoryId("eve")
Files = dict[str, bytes]


@pytest.fixture
async def memory(database_url: str) -> AsyncIterator[Memory]:
    """Turns that are kept, one set aside, one forgotten, one pending."""
    async with opened(database_url) as made:
        await made.append(*TURNS)
        await made.append(turn(20))
        await made.rollback.version(made.id, 1)
        await made.forget.turns(made.id, [TURNS[3].id])
        async with made.open_unit() as unit:
            await unit.memories.add_turns(made.id, [turn(30, session="s1")])
            await unit.commit()
        yield made


ACTIVE = [*TURNS[:3], *TURNS[4:], turn(30, session="s1")]


@pytest.fixture
async def file(memory: Memory, tmp_path: Path) -> Path:
    path = tmp_path / "ann.zip"
    size = await ExportMemory(memory.open_unit, write_archive).archive(memory.id, path)
    assert size == path.stat().st_size
    return path


def importing(memory: Memory, encoder=RIDGE) -> ImportMemory:
    return ImportMemory(memory.open_unit, encoder, memory.compute, memory.remember)


async def test_the_round_trip_is_the_same_memory_to_the_last_bit(memory, file):
    before = await memory.state_digest()
    archive = read_archive(file)
    assert archive.encoded.state.digest == before
    imported = await importing(memory).archive(archive, EVE)
    assert not imported.is_reencoded
    old, memory.id = memory.id, EVE
    assert await memory.reasons() == ["import", "append"]  # what was pending is encoded now
    assert imported.state_digest == await memory.state_digest() == digest_of(RIDGE, ACTIVE)
    async with memory.open_unit() as unit:
        assert await unit.memories.turns_set_aside(EVE) == {turn(20).id}
        assert await unit.memories.tombstones(EVE) == await unit.memories.tombstones(old)
        first, theirs = await unit.memories.adapter(EVE, 1), await unit.memories.adapter(old)
    assert first.state_digest == before
    assert first.readouts.equal(theirs.readouts)
    assert (await memory.remember.append(EVE, TURNS)).forgotten == 1
    receipt = await memory.forget.turns(EVE, [TURNS[0].id])
    assert receipt.reason == "", "subtracted from the imported state"
    assert receipt.state_digest == digest_of(RIDGE, ACTIVE[1:])
    assert (await Recall(memory.open_unit, RIDGE).adapter(EVE)).state_digest == receipt.state_digest


async def test_the_same_memory_is_the_same_file_for_its_owner_only(memory, file, tmp_path):
    export = ExportMemory(memory.open_unit, write_archive)
    await export.archive(memory.id, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(InvalidInput, match="exists already"):
        await export.archive(memory.id, file)
    with pytest.raises(NotFound):
        await export.archive(EVE, tmp_path / "eve.zip")
    with pytest.raises(Unavailable, match="cannot be written"):
        await export.archive(memory.id, tmp_path / "nowhere" / "ann.zip")
    assert not list(tmp_path.glob(".*.partial"))


def test_it_is_readable_without_this_program(file: Path) -> None:
    with zipfile.ZipFile(file) as packed:
        manifest = json.loads(packed.read("manifest.json"))
        first = json.loads(packed.read("turns.jsonl").split(b"\n")[0])
        for name, said in manifest["files"].items():
            assert hashlib.sha256(packed.read(name)).hexdigest() == said["sha256"]
    assert first["text"] == TURNS[0].text
    assert TURNS[3].text not in file.read_bytes().decode("latin-1")
    assert manifest["version"]["fingerprint"]["generator"] == RIDGE.fingerprint.generator


async def test_another_generator_encodes_the_turns_anew(memory, file):
    async with opened(memory.engine.url.render_as_string(hide_password=False), OTHER) as other:
        imported = await importing(other, OTHER).archive(read_archive(file), EVE)
    assert imported.is_reencoded
    assert imported.made_by == RIDGE.fingerprint.short
    assert imported.state_digest == digest_of(OTHER, ACTIVE)


async def test_a_memory_without_a_turn_or_a_state(memory, tmp_path):
    export = ExportMemory(memory.open_unit, write_archive)
    await memory.forget.turns(memory.id, [one.id for one in ACTIVE] + [turn(20).id])
    await export.archive(memory.id, tmp_path / "empty.zip")
    await importing(memory).archive(read_archive(tmp_path / "empty.zip"), EVE)
    assert (await memory.remember.append(EVE, TURNS)).forgotten == len(TURNS)
    bob = MemoryId("bob")
    async with memory.open_unit() as unit:
        await unit.memories.add_turns(bob, [turn(1)])
        await unit.commit()
    await export.archive(bob, tmp_path / "bob.zip")
    assert read_archive(tmp_path / "bob.zip").encoded is None
    imported = await importing(memory).archive(
        read_archive(tmp_path / "bob.zip"), MemoryId("bobby")
    )
    assert imported.state_digest == digest_of(RIDGE, [turn(1)])


async def test_nobody_is_overwritten_and_no_other_tenant_reached(memory, file):
    archive = read_archive(file)
    with pytest.raises(StateConflict, match="exists already"):
        await importing(memory).archive(archive, memory.id)
    with pytest.raises(InvalidInput, match="not of the tenant other"):
        await importing(memory).archive(archive, MemoryId("eve", "other"))
    fat = replace(
        archive,
        encoded=replace(archive.encoded, readouts=archive.encoded.readouts[:1]),
    )
    with pytest.raises(InvalidInput, match="its adapter has another shape"):
        await importing(memory).archive(fat, EVE)
    wrong = archive.encoded.readouts.flip(-1)
    with pytest.raises(InvalidInput, match="its adapter is not its state's"):
        await importing(memory).archive(
            replace(archive, encoded=replace(archive.encoded, readouts=wrong)), EVE
        )
    async with memory.open_unit() as unit:
        assert await unit.memories.heads("other") == []
        with pytest.raises(NotFound):
            await unit.memories.head(EVE)


# Damaged and hostile files


def unpacked(file: Path) -> Files:
    with zipfile.ZipFile(file) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def pack(files: Files, path: Path, *, signed: bool = True, **how: int) -> None:
    """Write an archive; `signed` corrects the digests in the manifest."""
    files = dict(files)
    if signed:
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            for name, data in files.items()
            if name != "manifest.json"
        }
        files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w", **how) as packed:
        for name, data in files.items():
            packed.writestr(name, data)


def edited(name: str, change: Callable[[dict], object]) -> Callable[[Files], object]:
    def edit(files: Files) -> None:
        record = json.loads(files[name])
        change(record)
        files[name] = json.dumps(record).encode()

    return edit


def doubled(files: Files) -> None:
    files["turns.jsonl"] += files["turns.jsonl"].split(b"\n")[0] + b"\n"
    edited("manifest.json", lambda it: it.update(turns=it["turns"] + 1))(files)


def unsafe_line(files: Files) -> None:
    first = json.loads(files["turns.jsonl"].split(b"\n")[0])
    del first["time"]
    files["turns.jsonl"] = json.dumps(first).encode()


HOSTILE = {
    "does not belong": lambda it: it.update({"../../etc/cron.d/evil": b"x"}),
    "'/etc/passwd' does not belong": lambda it: it.update({"/etc/passwd": b"x"}),
    "turns.jsonl is missing": lambda it: it.pop("turns.jsonl"),
    "part of the state or the adapter is missing": lambda it: it.pop("adapter.safetensors"),
    "turn t000 is in it twice": doubled,
    "lacks a field": unsafe_line,
    "manifest: format is wrong": edited("manifest.json", lambda it: it.update(format="other/1")),
    "manifest: evil is wrong": edited("manifest.json", lambda it: it.update(evil=1)),
    "user: must not be empty": edited("manifest.json", lambda it: it.update(user=" ")),
    "memory: chunks.0.tokens is wrong": edited(
        "memory.json", lambda it: it["chunks"][0].update(tokens="many")
    ),
    "memory: chunks.1.tokens is wrong": edited(
        "memory.json", lambda it: it["chunks"][1].update(tokens=10**30)
    ),
    "lone surrogate": lambda it: it.update(
        {"turns.jsonl": it["turns.jsonl"].replace(b'"text": "', b'"text": "\\ud800', 1)}
    ),
    "turns that are missing": edited(
        "memory.json", lambda it: it["chunks"][0].update(turn_ids=["t999"])
    ),
    "a chunk is in it twice": edited(
        "memory.json", lambda it: it["chunks"].append(it["chunks"][0])
    ),
    "the open chunk is missing": edited("memory.json", lambda it: it.update(open_chunk="0" * 64)),
    "set aside is missing": edited("memory.json", lambda it: it.update(set_aside=["t999"])),
    "its state: its sum has digest": edited(
        "manifest.json", lambda it: it["version"].update(state_digest="0" * 64)
    ),
    "its state: its bytes were made by": edited(
        "manifest.json", lambda it: it["version"]["fingerprint"].update(generator="x")
    ),
    "its stored bytes are damaged": lambda it: it.update({"closed.safetensors": b"\xff" * 64}),
    "nested": lambda it: it.update({"manifest.json": b"[" * 100_000}),
}


@pytest.mark.parametrize("problem", HOSTILE)
def test_what_is_not_as_written_is_refused(file: Path, problem: str) -> None:
    files = unpacked(file)
    HOSTILE[problem](files)
    pack(files, file, signed=problem != "nested")
    with pytest.raises(InvalidInput, match="nothing was imported") as refused:
        read_archive(file)
    assert problem in str(refused.value) or problem == "nested"


def test_zip_bombs_symlinks_and_duplicate_names(file: Path) -> None:
    files = unpacked(file)
    bomb = {**files, "turns.jsonl": b" " * 50_000_000}
    pack(bomb, file, compression=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 1_000_000
    with pytest.raises(InvalidInput, match="is compressed"):
        read_archive(file)

    pack(files, file)
    with zipfile.ZipFile(file, "a") as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed.writestr("turns.jsonl", b"")
    with pytest.raises(InvalidInput, match=r"'turns.jsonl' is in it twice"):
        read_archive(file)

    link = zipfile.ZipInfo("turns.jsonl")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(InvalidInput, match="not a regular file"):
        read_archive(file)


def test_lying_sizes_and_damaged_bytes(file: Path) -> None:
    good = file.read_bytes()
    for position in range(0, len(good), max(1, len(good) // 150)):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            found = read_archive(file)
        except InvalidInput:
            continue
        file.write_bytes(good)  # a bit that no content depends on: a date in the ZIP's directory
        whole = read_archive(file)
        assert (found.turns, found.encoded.state.digest) == (
            whole.turns,
            whole.encoded.state.digest,
        )
    for size in (0, 10, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        with pytest.raises(InvalidInput):
            read_archive(file)
    with pytest.raises(Unavailable, match="cannot be read"):
        read_archive(file.with_name("missing.zip"))


def test_files_that_overlap_are_refused(file: Path) -> None:
    files = unpacked(file)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("manifest.json", files["manifest.json"])
        packed.writestr("turns.jsonl", b"x" * 5000)
        packed.writestr("memory.json", b"")
        first = packed.getinfo("turns.jsonl")
        last = packed.getinfo("memory.json")
        last.header_offset = first.header_offset
        last.file_size = last.compress_size = first.file_size * 2
    file.write_bytes(buffer.getvalue())
    with pytest.raises(InvalidInput, match="nothing was imported"):
        read_archive(file)
