"""Adapters that a remote engine holds: each written as a LoRA into a folder both see, and loaded.

The engine knows an adapter by a name made from its content. So nobody learns from the name whose it
is, every version has another one (engines keep prefixes of what was loaded under a name before),
and several processes may load the same adapter.
"""

import asyncio
import hashlib
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import structlog
import torch
from torch import Tensor

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter
from memory_service.errors import Rejected, Unavailable
from memory_service.generator.adapter import lora_of_readouts, write_peft
from memory_service.generator.checkpoint import generator_digest
from memory_service.generator.generator import Generator
from memory_service.inference.engine import RunOnWorker

log = structlog.get_logger()

PREFIX = "memory-"
LOAD_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class EngineAddress:
    """Where a remote engine is: the address of its OpenAI API, ending in `/v1`, and its key."""

    url: str
    key: str | None = None


@dataclass(eq=False)
class _Held:
    """An adapter on the way to the engine or there, for whom, and how many answers use it."""

    owner: MemoryId | None
    users: int = 0
    is_loaded: bool = False
    is_forgotten: bool = False
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)


class RemoteAdapters:
    """Keeps the adapters of the newest answers loaded in an engine that speaks vLLM's LoRA routes.

    At most `most` are loaded unless more are in use; of one user only the newest that was used.
    Belongs to one event loop, and its folder to one process.
    """

    def __init__(  # one parameter per part that it joins
        self,
        generator: Generator,
        base_model_name: str,
        engine: EngineAddress,
        folder: Path,
        run: RunOnWorker,
        most: int = 16,
    ) -> None:
        self._generator = generator
        self._base_model_name = base_model_name
        self._engine = engine
        self._folder = folder
        self._run = run
        self._most = most
        self._generator_digest = generator_digest(generator)
        self._none = generator.read_out(generator.empty_state())  # [layer key value], all zero
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Take back what an earlier process left: its memories may have been deleted since.

        Raises:
            Unavailable: the folder cannot be used.
        """
        try:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
            left = sorted(self._folder.glob(f"{PREFIX}*"))
        except OSError as error:
            raise _folder_trouble(self._folder, error) from error
        for directory in left:
            await self._unload(directory.name.partition(".")[0])
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def stop(self) -> None:
        """Unload everything and delete its files."""
        for name in [*self._held]:
            self._held.pop(name)
            await self._remove(name)

    async def hang_up(self) -> None:
        """Close the connection to the engine."""
        if self._client is not None:
            await self._client.aclose()

    @asynccontextmanager
    async def held(self, adapter: AppliedAdapter | None) -> AsyncIterator[str]:
        """The engine's name of an adapter; it stays loaded inside the block.

        No memory is an adapter too, of zeros: some engines give a request without one the adapter
        of another request in its batch (vLLM on CPU, vllm-project/vllm#48421).

        Raises:
            Unavailable: the engine cannot be reached, or the folder cannot be written.
            Rejected: the engine does not take the adapter.
        """
        readouts = self._none if adapter is None else adapter.readouts
        name = await self._run(self._name, readouts)
        held = self._held.setdefault(name, _Held(None if adapter is None else adapter.memory_id))
        self._held.move_to_end(name)
        held.users += 1
        try:
            async with held.loading:
                if not held.is_loaded:
                    await self._load(name, readouts)
                    held.is_loaded = True
            yield name
        finally:
            held.users -= 1
            await self._make_room(name, held)

    async def load_again(self, name: str) -> None:
        """Load a held adapter once more: the engine was restarted and does not know it.

        Raises:
            Unavailable: the engine cannot be reached.
            Rejected: the engine does not take the adapter.
        """
        async with self._held[name].loading:
            await self._tell(name)

    async def drop(self, memory_id: MemoryId) -> None:
        """Unload and delete everything of a user; what is in use goes when its answer ends."""
        for name, held in [*self._held.items()]:
            if held.owner == memory_id:
                held.is_forgotten = True
                if not held.users:
                    del self._held[name]
                    await self._remove(name)

    async def _make_room(self, name: str, used: _Held) -> None:
        """Let go of what is forgotten, of older adapters of the same user, and of the eldest."""
        for other, held in [*self._held.items()]:
            if held.users:
                continue
            is_older = used.owner is not None and held.owner == used.owner and other != name
            is_useless = held.is_forgotten or not held.is_loaded
            if is_useless or is_older or len(self._held) > self._most:
                del self._held[other]
                await self._remove(other)

    async def _load(self, name: str, readouts: Tensor) -> None:
        directory = self._folder / name
        try:
            await self._run(self._write, readouts, directory)
        except OSError as error:
            raise _folder_trouble(directory, error) from error
        await self._tell(name)

    async def _tell(self, name: str) -> None:
        body = {"lora_name": name, "lora_path": str((self._folder / name).absolute())}
        answer = await self._post("load_lora_adapter", body)
        if answer.is_error and "already" not in answer.text:
            raise Rejected(
                "engine",
                f"did not load an adapter (status {answer.status_code})",
                "start it with LoRA enabled, a rank of at least "
                f"{self._generator.config.key_width}, leave to load adapters while it runs, and "
                "the folder MEMORY_SERVICE_ENGINE_FOLDER visible under the same path",
            )

    async def _remove(self, name: str) -> None:
        await self._unload(name)
        await asyncio.to_thread(shutil.rmtree, self._folder / name, ignore_errors=True)

    async def _unload(self, name: str) -> None:
        """Tell the engine; one that is down holds nothing, and one that never knew it is glad."""
        try:
            answer = await self._post("unload_lora_adapter", {"lora_name": name})
        except Unavailable:
            log.warning("adapter_not_unloaded", adapter=name, reason="engine unreachable")
            return
        if answer.is_server_error:
            log.warning("adapter_not_unloaded", adapter=name, status=answer.status_code)

    async def _post(self, route: str, body: dict[str, str]) -> httpx.Response:
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._engine.key}"} if self._engine.key else {}
            self._client = httpx.AsyncClient(headers=headers, timeout=LOAD_TIMEOUT_S)
        try:
            return await self._client.post(f"{self._engine.url}/{route}", json=body)
        except httpx.HTTPError as error:
            raise Unavailable(
                "engine",
                f"cannot be reached ({type(error).__name__})",
                "start it, or correct MEMORY_SERVICE_ENGINE_URL",
            ) from error

    def _name(self, readouts: Tensor) -> str:
        content = readouts.contiguous().view(torch.uint8).numpy().tobytes()
        made_by = self._generator_digest.encode()
        return PREFIX + hashlib.sha256(made_by + content).hexdigest()[:32]

    def _write(self, readouts: Tensor, directory: Path) -> None:
        """Whole or not at all: the engine may look at any time."""
        unfinished = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        factors = lora_of_readouts(self._generator, readouts)
        write_peft(self._generator, factors, unfinished, self._base_model_name, torch.bfloat16)
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)


def _folder_trouble(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(
        "disk",
        f"{folder} cannot be written ({error.strerror or error})",
        "correct MEMORY_SERVICE_ENGINE_FOLDER, or make room",
    )
