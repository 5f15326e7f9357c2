"""Export: a user's newest adapter as a LoRA that peft and vLLM load."""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput, NotFound, Unavailable
from memory_service.generator.adapter import export_peft
from memory_service.generator.config import DTYPES
from memory_service.generator.generator import Generator
from memory_service.generator.state import add
from memory_service.services.compute import Compute
from memory_service.services.ports import Encoder, OpenUnit, StoredState


@dataclass(frozen=True)
class Exported:
    """What was written."""

    version: int
    directory: Path
    size_bytes: int


class Export:
    """Writes adapters as files for other engines."""

    def __init__(
        self,
        open_unit: OpenUnit,
        encoder: Encoder,
        generator: Generator,
        compute: Compute,
        base_model_name: str,
    ) -> None:
        self._open_unit = open_unit
        self._encoder = encoder
        self._generator = generator
        self._compute = compute
        self._base_model_name = base_model_name

    async def lora(
        self, memory_id: MemoryId, version: int | None, directory: Path, dtype: str = "float32"
    ) -> Exported:
        """Write the newest version into a new or empty folder, whole or not at all.

        Only the newest version's state is kept, and LoRA factors are made from the state.

        Raises:
            InvalidInput: the folder is not empty, or the dtype is unknown.
            NotFound: no such user or version, nothing was encoded yet, or the version is not the
                newest.
            IncompatibleState: another generator or base model made the state.
            Unavailable: the folder cannot be written.
        """
        if dtype not in DTYPES:
            raise InvalidInput("dtype", dtype, f"must be one of: {', '.join(DTYPES)}")
        require_empty(directory)
        newest, state = await self._newest(memory_id, version)
        name = f"{memory_id.user}@{newest}"
        self._encoder.fingerprint.require(state.fingerprint, f"state of {name}")
        directory = directory.absolute()
        unfinished = directory.with_name(f".{directory.name}-{uuid.uuid4().hex}.partial")
        try:
            await self._compute.run(self._write, state, unfinished, dtype)
            size_bytes = sum(file.stat().st_size for file in unfinished.iterdir())
            if directory.is_dir():
                directory.rmdir()  # empty, as checked; fails where it no longer is
            unfinished.rename(directory)
        except OSError as error:
            told = f"{directory} cannot be written ({error.strerror})"
            raise Unavailable(
                "disk",
                told if error.strerror else str(error),
                "choose another folder, or make room",
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return Exported(newest, directory, size_bytes)

    async def _newest(self, memory_id: MemoryId, version: int | None) -> tuple[int, StoredState]:
        async with self._open_unit() as unit:
            head = await unit.memories.head(memory_id)
            state = await unit.memories.state(memory_id)
        if state is None:
            raise NotFound("adapter", memory_id.user, "none of its turns was encoded yet")
        if version not in {None, head.version}:
            raise NotFound(
                "state",
                f"{memory_id.user}@{version}",
                f"states are kept for the newest version only, which is {head.version}",
            )
        return head.version, state

    def _write(self, state: StoredState, directory: Path, dtype: str) -> None:
        total = state.closed
        if state.open_update is not None:
            total = add(total, state.open_update)
        export_peft(self._generator, total, directory, self._base_model_name, DTYPES[dtype])


def require_empty(directory: Path) -> None:
    """Check that nothing would be overwritten, before any slow work.

    Raises:
        InvalidInput: it is a file, or a folder with something in it.
    """
    if directory.is_dir():
        if any(directory.iterdir()):
            raise InvalidInput("directory", str(directory), "is not empty; nothing is overwritten")
    elif directory.exists() or directory.is_symlink():
        raise InvalidInput("directory", str(directory), "is not a folder")
