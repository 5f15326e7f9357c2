"""The only place that builds objects and joins them.

Two sizes: `open_store` needs the database only and starts in a blink, `open_service` also loads the
base model and the generator.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from memory_service.errors import NotFound
from memory_service.services.forget import Forget
from memory_service.services.ports import OpenUnit
from memory_service.settings import Settings

if TYPE_CHECKING:
    from memory_service.generator.generator import Generator
    from memory_service.inference.base_models import BaseModel
    from memory_service.inference.encoder import LocalEncoder
    from memory_service.inference.local import LocalBackend
    from memory_service.services.chat import Chat
    from memory_service.services.compute import Compute
    from memory_service.services.recall import Recall
    from memory_service.services.remember import Remember

SHIPPED_GENERATOR = "smollm2-135m-instruct.safetensors"

Report = Callable[[str], None]
"""Receives what a slow start is doing."""


@dataclass(frozen=True)
class Store:
    """What works without a model: the database."""

    open_unit: OpenUnit
    forget: Forget


@dataclass(frozen=True)
class Service:
    """The whole product in one process."""

    store: Store
    base: "BaseModel"
    generator: "Generator"
    encoder: "LocalEncoder"
    backend: "LocalBackend"
    compute: "Compute"
    remember: "Remember"
    recall: "Recall"
    chat: "Chat"


def generator_path(settings: Settings) -> Path:
    """The configured generator, or the one shipped in the package.

    Raises:
        NotFound: the configured path does not exist, or nothing is shipped.
    """
    if settings.generator is not None:
        if not settings.generator.exists():
            raise NotFound("generator", str(settings.generator), "correct MEMORY_SERVICE_GENERATOR")
        return settings.generator
    shipped = Path(str(resources.files("memory_service"))) / "weights" / SHIPPED_GENERATOR
    if not shipped.is_file():
        raise NotFound("generator", str(shipped), "set MEMORY_SERVICE_GENERATOR or train one")
    return shipped


def models_folder(settings: Settings) -> Path:
    """Where base models are kept."""
    return settings.cache_dir / "models"


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the database.

    Raises:
        ConfigurationError: the URL is unusable.
    """
    from memory_service.storage.engine import create_engine
    from memory_service.storage.unit_of_work import unit_factory

    engine = create_engine(settings.database_url.get_secret_value())
    try:
        open_unit = unit_factory(engine)
        yield Store(open_unit=open_unit, forget=Forget(open_unit))
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_service(settings: Settings, report: Report) -> AsyncIterator[Service]:
    """Open the database and load base model and generator.

    Raises:
        NotFound: the base model was not pulled, or there is no generator.
        ConfigurationError: a checkpoint is damaged, or generator and base model do not fit.
    """
    report("loading torch")
    from memory_service.generator.checkpoint import load_generator
    from memory_service.generator.injection import Injector
    from memory_service.inference import base_models
    from memory_service.inference.encoder import LocalEncoder
    from memory_service.inference.local import LocalBackend
    from memory_service.inference.tokens import Tokens
    from memory_service.services.chat import Chat
    from memory_service.services.compute import Compute
    from memory_service.services.recall import Recall
    from memory_service.services.remember import Remember

    generator = load_generator(generator_path(settings))
    files = base_models.find(settings.base_model, cache_dir=models_folder(settings))
    report(f"loading {files.name}")
    base = base_models.load(files, dtype=generator.config.dtype)
    injector = Injector(base.model, generator)
    tokens = Tokens(base)
    encoder = LocalEncoder(base, tokens, generator, injector)
    backend = LocalBackend(base, tokens, injector, generator.read_out(generator.empty_state()))
    compute = Compute()
    try:
        async with open_store(settings) as store:
            recall = Recall(store.open_unit, encoder)
            yield Service(
                store=store,
                base=base,
                generator=generator,
                encoder=encoder,
                backend=backend,
                compute=compute,
                remember=Remember(store.open_unit, encoder, compute),
                recall=recall,
                chat=Chat(recall, backend, compute),
            )
    finally:
        compute.close()
