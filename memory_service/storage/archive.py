"""Archives: one memory in one ZIP file that any program can read.

`manifest.json` names format, tenant, user, version, fingerprint, and every other file with its size
and SHA-256; `turns.jsonl` is what `memory turns import` reads; `memory.json` holds the recipe, the
turns set aside and the tombstones; `closed.safetensors`, `open_update.safetensors` and
`adapter.safetensors` hold the state's two parts and the read-outs.

Nothing in an archive is compressed, so none is larger than its file, and nothing is unpacked to
disk. Whatever differs from this in any way is refused before anything is used.
"""

import hashlib
import json
import os
import stat
import uuid
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from memory_service.domain.archive import Archive, Encoded
from memory_service.domain.memory import Fingerprint, MemoryId
from memory_service.domain.records import StoredChunk
from memory_service.domain.tombstones import buried
from memory_service.domain.turns import FIELDS, Turn, turn_from_record
from memory_service.errors import IncompatibleState, InvalidInput, Unavailable

FORMAT = "memory-service-archive/1"
MANIFEST = "manifest.json"
TURNS = "turns.jsonl"
MEMORY = "memory.json"
CLOSED = "closed.safetensors"
OPEN_UPDATE = "open_update.safetensors"
ADAPTER = "adapter.safetensors"
NAMES = {MANIFEST, TURNS, MEMORY, CLOSED, OPEN_UPDATE, ADAPTER}
REQUIRED = {MANIFEST, TURNS, MEMORY}

_WRITTEN_AT = (1980, 1, 1, 0, 0, 0)
"""The same memory gives the same bytes; the file itself has a date."""

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _File(_Record):
    sha256: _Digest
    size_bytes: int


class _Fingerprint(_Record):
    generator: str
    base_model: str
    tokenizer: str
    chunking: str
    encoding: str
    numerics: str


class _Version(_Record):
    number: _Count
    fingerprint: _Fingerprint
    state_digest: _Digest


class _Manifest(_Record):
    format: Literal["memory-service-archive/1"]
    tenant: str
    user: str
    turns: _Count
    version: _Version | None
    files: dict[str, _File]


class _Chunk(_Record):
    session: str
    digest: _Digest
    update_digest: _Digest
    turn_ids: list[str]
    tokens: _Count


class _Tombstones(_Record):
    key: _Digest
    hashes: list[_Digest]


class _Memory(_Record):
    set_aside: list[str]
    tombstones: list[_Tombstones]
    open_chunk: _Digest | None
    chunks: list[_Chunk]


def write_archive(archive: Archive, file: Path) -> int:
    """Write a new file, whole or not at all, that only its owner may read; its size in bytes.

    Raises:
        InvalidInput: the file exists already.
        Unavailable: it cannot be written.
    """
    if file.exists() or file.is_symlink():
        raise InvalidInput("file", str(file), "exists already; nothing is overwritten")
    file = file.absolute()
    unfinished = file.with_name(f".{file.name}-{uuid.uuid4().hex}.partial")
    try:
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                _write(archive, stream)
                stream.flush()
                os.fsync(descriptor)
            unfinished.rename(file)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        problem = f"{file} cannot be written ({error.strerror or error})"
        raise Unavailable("disk", problem, "choose another folder, or make room") from error
    return file.stat().st_size


def read_archive(file: Path) -> Archive:
    """Read and check an archive.

    Raises:
        InvalidInput: it is damaged, or not written like an archive; tells in what.
        Unavailable: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            with zipfile.ZipFile(stream) as packed:
                return _archive(_checked(packed, size_bytes))
    except OSError as error:
        problem = f"{file} cannot be read ({error.strerror or error})"
        raise Unavailable("disk", problem, "name a file that can be read") from error
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise _refused(file, f"{error.title.strip('_').lower()}: {place} is wrong") from None
    except InvalidInput as error:
        raise _refused(file, str(error)) from None
    except IncompatibleState as error:
        raise _refused(file, f"{error.subject}: {error.problem}") from None
    except (zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError, EOFError) as error:
        raise _refused(file, f"it is damaged, or no ZIP file of this kind ({error})") from None


def _write(archive: Archive, stream: object) -> None:
    contents = _contents(archive)
    encoded = archive.encoded
    manifest = {
        "format": FORMAT,
        "tenant": archive.memory_id.tenant,
        "user": archive.memory_id.user,
        "turns": len(archive.turns),
        "version": None
        if encoded is None
        else {
            "number": encoded.version,
            "fingerprint": asdict(encoded.state.fingerprint),
            "state_digest": encoded.state.digest,
        },
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            for name, data in contents.items()
        },
    }
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as packed:  # type: ignore[call-overload]
        for name, data in {MANIFEST: _json(manifest), **contents}.items():
            info = zipfile.ZipInfo(name, _WRITTEN_AT)
            info.external_attr = (stat.S_IFREG | 0o600) << 16
            packed.writestr(info, data)


def _contents(archive: Archive) -> dict[str, bytes]:
    encoded = archive.encoded
    memory = {
        "set_aside": sorted(archive.aside),
        "tombstones": [
            {"key": key.hex(), "hashes": sorted(hashes)}
            for key, hashes in sorted(archive.tombstones.items())
        ],
        "open_chunk": None if encoded is None else encoded.state.open_chunk,
        "chunks": [] if encoded is None else [asdict(chunk) for chunk in encoded.chunks],
    }
    lines = [json.dumps(_record(turn), ensure_ascii=False) + "\n" for turn in archive.turns]
    contents = {TURNS: "".join(lines).encode(), MEMORY: _json(memory)}
    if encoded is not None:
        codec = _codec()
        closed, open_update = codec.pack_state(encoded.state)
        contents[CLOSED] = closed
        if open_update is not None:
            contents[OPEN_UPDATE] = open_update
        contents[ADAPTER] = codec.pack_readouts(encoded.readouts, encoded.state.fingerprint)
    return contents


def _checked(packed: zipfile.ZipFile, size_bytes: int) -> Mapping[str, bytes]:
    """Read the files, after all that the ZIP's directory says was found harmless."""
    infos = packed.infolist()
    twice = [name for name, times in Counter(info.filename for info in infos).items() if times > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is in it twice")
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.filename not in NAMES:
            raise ValueError(f"{info.filename[:80]!r} does not belong in it")
        if kind not in {0, stat.S_IFREG} or info.is_dir():
            raise ValueError(f"{info.filename} is not a regular file")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"{info.filename} is compressed")
        if info.flag_bits & 1:
            raise ValueError(f"{info.filename} is encrypted")
    if sum(info.file_size for info in infos) > size_bytes:
        raise ValueError("its files overlap")
    missing = REQUIRED - {info.filename for info in infos}
    if missing:
        raise ValueError(f"{min(missing)} is missing")
    return {info.filename: packed.read(info) for info in infos}


def _archive(files: Mapping[str, bytes]) -> Archive:
    manifest = _Manifest.model_validate_json(files[MANIFEST])
    if set(manifest.files) != set(files) - {MANIFEST}:
        raise ValueError("the manifest names other files than there are")
    for name, said in manifest.files.items():
        if hashlib.sha256(files[name]).hexdigest() != said.sha256:
            raise ValueError(f"{name} is damaged: its digest differs from the manifest's")
    turns = tuple(_turns(files[TURNS]))
    if len(turns) != manifest.turns:
        raise ValueError(f"it holds {len(turns)} turns, the manifest says {manifest.turns}")
    memory = _Memory.model_validate_json(files[MEMORY])
    ids = {turn.id for turn in turns}
    tombstones = {bytes.fromhex(one.key): frozenset(one.hashes) for one in memory.tombstones}
    if buried(tombstones.items(), ids):
        raise ValueError("a turn in it was forgotten")
    if not ids >= set(memory.set_aside):
        raise ValueError("a turn that is set aside is missing")
    return Archive(
        memory_id=MemoryId(manifest.user, manifest.tenant),
        turns=turns,
        aside=frozenset(memory.set_aside),
        tombstones=tombstones,
        encoded=_encoded(files, manifest.version, memory, turns),
    )


def _turns(data: bytes) -> list[Turn]:
    turns: dict[str, Turn] = {}
    for line in data.decode().split("\n"):
        if not line:
            continue
        record = json.loads(line)
        if not isinstance(record, dict) or set(record) | {"expires_at"} != FIELDS:
            raise ValueError("a turn lacks a field, or has another")
        turn = turn_from_record(record)
        if turn.id in turns:
            raise ValueError(f"turn {turn.id} is in it twice")
        turns[turn.id] = turn
    return list(turns.values())


def _encoded(
    files: Mapping[str, bytes], version: _Version | None, memory: _Memory, turns: tuple[Turn, ...]
) -> Encoded | None:
    tensors = set(files) & {CLOSED, OPEN_UPDATE, ADAPTER}
    if version is None:
        if tensors or memory.chunks:
            raise ValueError("it holds a state of no version")
        return None
    if not tensors >= {CLOSED, ADAPTER} or (OPEN_UPDATE in tensors) != bool(memory.open_chunk):
        raise ValueError("a part of the state or the adapter is missing")
    _require_made_of(memory, turns)
    fingerprint = Fingerprint(**version.fingerprint.model_dump())
    codec = _codec()
    return Encoded(
        version=version.number,
        state=codec.unpack_state(
            files[CLOSED],
            files.get(OPEN_UPDATE),
            memory.open_chunk,
            fingerprint,
            version.state_digest,
            "its state",
        ),
        readouts=codec.unpack_readouts(files[ADAPTER], fingerprint, "its adapter"),
        chunks=tuple(
            StoredChunk(
                chunk.session,
                chunk.digest,
                chunk.update_digest,
                tuple(chunk.turn_ids),
                chunk.tokens,
            )
            for chunk in memory.chunks
        ),
    )


def _require_made_of(memory: _Memory, turns: tuple[Turn, ...]) -> None:
    """Check that the recipe is one of these turns."""
    sessions = {turn.id: turn.session for turn in turns}
    digests = {chunk.digest for chunk in memory.chunks}
    if len(digests) != len(memory.chunks):
        raise ValueError("a chunk is in it twice")
    if memory.open_chunk is not None and memory.open_chunk not in digests:
        raise ValueError("the open chunk is missing")
    for chunk in memory.chunks:
        if not chunk.turn_ids or {sessions.get(one) for one in chunk.turn_ids} != {chunk.session}:
            raise ValueError("a chunk is made of turns that are missing, or of another session")


def _record(turn: Turn) -> dict[str, str]:
    record = {
        "id": turn.id,
        "session": turn.session,
        "role": turn.role.value,
        "time": turn.time.isoformat(),
        "text": turn.text,
    }
    if turn.expires_at is not None:
        record["expires_at"] = turn.expires_at.isoformat()
    return record


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _refused(file: Path, problem: str) -> InvalidInput:
    return InvalidInput("archive", str(file), f"{problem}; nothing was imported")


def _codec() -> ModuleType:
    """Import the codec late: it needs torch."""
    from memory_service.storage import codec  # noqa: PLC0415

    return codec
