"""The only place that builds objects and joins them.

Two sizes: `open_store` needs the database only and starts in a blink, `open_service` also loads the
base model and the generator.
"""

import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from memory_service.errors import ConfigurationError, NotFound
from memory_service.services.append import Append
from memory_service.services.expire_turns import ExpireTurns
from memory_service.services.expiry import Expiry
from memory_service.services.export_archive import ExportMemory
from memory_service.services.forget import Forget
from memory_service.services.inspect import Inspect
from memory_service.services.jobs import Jobs
from memory_service.services.keys import Keys
from memory_service.services.ports import Backend, OpenUnit
from memory_service.services.quotas import Quotas
from memory_service.settings import Settings

if TYPE_CHECKING:
    from memory_service.domain.archive import Archive
    from memory_service.domain.records import StoredAdapter, StoredState
    from memory_service.generator.generator import Generator
    from memory_service.generator.strength import Strength
    from memory_service.inference.base_models import BaseModel
    from memory_service.inference.batch import Batch
    from memory_service.inference.encoder import LocalEncoder
    from memory_service.inference.engine import Engine, Watch
    from memory_service.inference.local import LocalBackend
    from memory_service.inference.reading import Reader
    from memory_service.inference.tokens import Tokens
    from memory_service.services.ask import Ask
    from memory_service.services.chat import Chat
    from memory_service.services.compute import Compute
    from memory_service.services.edit import Edit
    from memory_service.services.encode_queue import EncodeQueue
    from memory_service.services.exchange import Exchange
    from memory_service.services.export import Export
    from memory_service.services.forget_turns import ForgetTurns
    from memory_service.services.forgotten_elsewhere import ForgottenElsewhere
    from memory_service.services.import_archive import ImportMemory
    from memory_service.services.merge import Merge
    from memory_service.services.migrate import Migrate
    from memory_service.services.profile import Profile
    from memory_service.services.recall import Recall
    from memory_service.services.remember import Remember
    from memory_service.services.rollback import Rollback
    from memory_service.services.why import Why
    from memory_service.training.config import TrainingConfig
    from memory_service.training.loop import Trainer

SHIPPED_GENERATOR = "smollm2-135m-instruct.safetensors"

Report = Callable[[str], None]
"""Receives what a slow start is doing."""

KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's cache of compiled kernels and that of torch before it, as environment variables."""

KERNELS = 64
"""So many are kept instead of 1,024, one for every size of a product, up to 0.3 MB each.

A step of decoding needs eight; prompts are filled up to few sizes (`inference.packed`).
"""


@dataclass(frozen=True)
class Store:
    """What works without a model: the database."""

    open_unit: OpenUnit
    append: Append
    inspect: Inspect
    forget: Forget
    export_memory: ExportMemory
    read_archive: Callable[[Path], "Archive"]
    keys: Keys
    quotas: Quotas
    expiry: Expiry


@dataclass(frozen=True)
class Inference:
    """What works without a database: base model and generator."""

    base_model_name: str
    base: "BaseModel"
    generator: "Generator"
    encoder: "LocalEncoder"
    backend: "LocalBackend"
    tokens: "Tokens"
    batch: "Batch"
    reader: "Reader"


@dataclass(frozen=True)
class Service:
    """The whole product in one process."""

    store: Store
    base_model_name: str
    context_tokens: int
    base: "BaseModel"
    generator: "Generator"
    encoder: "LocalEncoder"
    reader: "Reader"
    engine: "Engine"
    compute: "Compute"
    remember: "Remember"
    forget_turns: "ForgetTurns"
    edit: "Edit"
    rollback: "Rollback"
    merge: "Merge"
    migrate: "Migrate"
    import_memory: "ImportMemory"
    recall: "Recall"
    chat: "Chat"
    ask: "Ask"
    why: "Why"
    export: "Export"
    queue: "EncodeQueue"
    exchange: "Exchange"
    forgotten_elsewhere: "ForgottenElsewhere"
    expire_turns: ExpireTurns
    jobs: Jobs

    @property
    def profile(self) -> "Profile":
        """What memories say they know."""
        from memory_service.services.profile import Profile

        return Profile(self.store.open_unit, self.ask, self.why)


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


def prepare_database(settings: Settings, report: Report) -> None:
    """Make the default SQLite file where it is missing; any other database must be there.

    Raises:
        ConfigurationError: the SQLite file of a configured URL does not exist, or the URL is wrong.
        Unavailable: the default file cannot be created.
    """
    from memory_service.storage.engine import parse_url, sqlite_file

    url = settings.database_url.get_secret_value()
    file = sqlite_file(parse_url(url))
    if file is None or file.exists():
        return
    if "database_url" in settings.model_fields_set:
        raise ConfigurationError(
            "database_url", f"the SQLite file {file} does not exist", "run `memory db upgrade`"
        )
    from memory_service.storage.migrate import upgrade

    upgrade(url)
    report(f"created the database {file}")


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the database.

    Raises:
        ConfigurationError: the URL is unusable.
    """
    from memory_service.storage.archive import read_archive, write_archive
    from memory_service.storage.engine import create_engine
    from memory_service.storage.unit_of_work import unit_factory

    engine = create_engine(settings.database_url.get_secret_value())
    try:
        open_unit = unit_factory(engine)
        yield Store(
            open_unit=open_unit,
            append=Append(open_unit),
            inspect=Inspect(open_unit),
            forget=Forget(open_unit),
            export_memory=ExportMemory(open_unit, write_archive),
            read_archive=read_archive,
            keys=Keys(open_unit),
            quotas=Quotas(open_unit),
            expiry=Expiry(open_unit),
        )
    finally:
        await engine.dispose()


def load_inference(settings: Settings, report: Report) -> Inference:
    """Load base model and generator; no database.

    Raises:
        NotFound: the base model was not pulled, or there is no generator.
        ConfigurationError: a checkpoint is damaged, or generator and base model do not fit.
    """
    from memory_service.inference import base_models

    path = generator_path(settings)
    files = base_models.find(settings.base_model, cache_dir=models_folder(settings))
    for cache in KERNEL_CACHES:  # read when torch is loaded
        os.environ.setdefault(cache, str(KERNELS))
    report("loading torch")
    from memory_service.generator.checkpoint import load_generator
    from memory_service.generator.injection import Injector
    from memory_service.inference.batch import Batch
    from memory_service.inference.decoder import make_decoder
    from memory_service.inference.encoder import LocalEncoder
    from memory_service.inference.local import LocalBackend
    from memory_service.inference.reading import Reader
    from memory_service.inference.tokens import Tokens

    report(f"loading {files.name}")
    generator = load_generator(path)
    base = base_models.load(files, dtype=generator.config.dtype)
    injector = Injector(base.model, generator)
    decoder = make_decoder(base.model, generator, injector)
    tokens = Tokens(base)
    empty = generator.read_out(generator.empty_state())
    return Inference(
        base_model_name=files.name,
        base=base,
        generator=generator,
        encoder=LocalEncoder(base, tokens, generator, injector),
        backend=LocalBackend(base, tokens, injector, decoder, empty),
        tokens=tokens,
        batch=Batch(base, tokens, decoder, empty),
        reader=Reader(base, tokens, injector, decoder, empty),
    )


@asynccontextmanager
async def open_service(
    settings: Settings, report: Report, watch: "Watch | None" = None
) -> AsyncIterator[Service]:
    """Open the database and load base model and generator; `watch` is told what the engine does.

    Raises:
        NotFound: the base model was not pulled, or there is no generator.
        ConfigurationError: a checkpoint is damaged, or generator and base model do not fit.
    """
    inference = load_inference(settings, report)
    from memory_service.inference.engine import Engine, Limits
    from memory_service.services.adapter_cache import AdapterCache
    from memory_service.services.amend import Amend
    from memory_service.services.ask import Ask
    from memory_service.services.chat import Chat
    from memory_service.services.compute import Compute
    from memory_service.services.edit import Edit
    from memory_service.services.encode_queue import EncodeQueue
    from memory_service.services.exchange import Exchange
    from memory_service.services.export import Export
    from memory_service.services.forget_turns import ForgetTurns
    from memory_service.services.forgotten_elsewhere import ForgottenElsewhere
    from memory_service.services.import_archive import ImportMemory
    from memory_service.services.merge import Merge
    from memory_service.services.migrate import Migrate
    from memory_service.services.recall import Recall
    from memory_service.services.remember import Remember
    from memory_service.services.rollback import Rollback
    from memory_service.services.why import Why

    encoder, generator = inference.encoder, inference.generator
    context_tokens: int = inference.base.model.config.max_position_embeddings
    compute = Compute()
    engine = Engine(
        inference.batch,
        inference.tokens,
        context_tokens,
        compute.run,
        Limits(
            rows=settings.batch_rows,
            waiting=settings.waiting_requests,
            kept_tokens=settings.kept_tokens,
            deadline_s=settings.deadline_s,
        ),
        watch,
    )
    try:
        async with open_store(settings) as store, AsyncExitStack() as stack:
            cache = AdapterCache(settings.adapter_cache_mb * 1_000_000)
            recall = Recall(store.open_unit, encoder, cache)
            remember = Remember(store.open_unit, encoder, compute)
            backend = await stack.enter_async_context(
                _answering(settings, inference, compute, engine)
            )
            chat = Chat(recall, backend)
            queue = EncodeQueue(store.open_unit, remember)
            amend = Amend(store.open_unit, encoder, compute, remember)
            exchange = Exchange(
                store.open_unit,
                store.append,
                chat,
                queue,
                settings.window_tokens,
                re.compile(settings.auxiliary_pattern),
            )
            yield Service(
                store=store,
                base_model_name=inference.base_model_name,
                context_tokens=context_tokens,
                base=inference.base,
                generator=generator,
                encoder=encoder,
                reader=inference.reader,
                engine=engine,
                compute=compute,
                remember=remember,
                forget_turns=ForgetTurns(amend),
                edit=Edit(amend),
                rollback=Rollback(amend),
                merge=Merge(store.open_unit, amend, remember),
                migrate=Migrate(store.open_unit, encoder, compute, remember),
                import_memory=ImportMemory(store.open_unit, encoder, compute, remember),
                recall=recall,
                chat=chat,
                ask=Ask(recall, engine, inference.backend, compute),
                why=Why(store.open_unit, encoder, inference.backend, compute),
                export=Export(
                    store.open_unit, encoder, generator, compute, inference.base_model_name
                ),
                queue=queue,
                exchange=exchange,
                forgotten_elsewhere=ForgottenElsewhere(store.open_unit, cache, exchange.forgotten),
                jobs=Jobs(),
                expire_turns=ExpireTurns(
                    store.expiry,
                    partial(ForgetTurns(amend).turns, reason="expire"),
                    exchange.taken_back,
                ),
            )
    finally:
        await engine.drain(0)
        compute.close()


@asynccontextmanager
async def _answering(
    settings: Settings, inference: Inference, compute: "Compute", engine: "Engine"
) -> AsyncIterator[Backend]:
    """What makes the answers: the engine of this process, or the one elsewhere."""
    if settings.engine_url is None:
        yield engine
        return
    from memory_service.inference.litellm import RemoteBackend
    from memory_service.inference.remote_adapters import EngineAddress, RemoteAdapters

    key = settings.engine_key
    address = EngineAddress(
        settings.engine_url.rstrip("/"), None if key is None else key.get_secret_value()
    )
    adapters = RemoteAdapters(
        inference.generator,
        inference.base_model_name,
        address,
        settings.engine_folder,
        compute.run,
        settings.engine_adapters,
    )
    await adapters.start()
    backend = RemoteBackend(adapters, inference.tokens, address, settings.deadline_s)
    try:
        yield backend
    finally:
        await backend.stop()


def adapter_strength(settings: Settings, adapter: "StoredAdapter") -> "Strength | None":
    """How strongly an adapter changes each module; None where its read-outs are no longer kept.

    Measured against the base model's weights where generator and base model that made the adapter
    are at hand, else by the read-outs alone. Reads weights from files; loads no model.
    """
    if adapter.readouts is None:
        return None
    from memory_service.generator.checkpoint import generator_digest, load_generator
    from memory_service.generator.strength import norms_of_readouts, share_of_weights
    from memory_service.inference import base_models
    from memory_service.inference.weight_norms import weight_norms

    try:
        generator = load_generator(generator_path(settings))
        files = base_models.find(settings.base_model, cache_dir=models_folder(settings))
    except (NotFound, ConfigurationError):
        return norms_of_readouts(adapter.readouts)
    made_by = adapter.fingerprint
    if (generator_digest(generator), files.digest) == (made_by.generator, made_by.base_model):
        norms = weight_norms(files, generator.config.sites)
        if norms is not None:
            return share_of_weights(generator, adapter.readouts, norms)
    return norms_of_readouts(adapter.readouts)


def adapter_distance(
    settings: Settings, first: "StoredAdapter", second: "StoredAdapter"
) -> "Strength | None":
    """How strongly the difference of two adapters changes each module.

    None where a read-out is no longer kept, or they were not made by the same parts.
    """
    if first.readouts is None or second.readouts is None:
        return None
    if first.fingerprint != second.fingerprint:
        return None
    difference = second.readouts.float() - first.readouts.float()
    return adapter_strength(settings, replace(second, readouts=difference))


def state_fullness(settings: Settings, state: "StoredState") -> "Strength | None":
    """How full a state is in each module; None where its generator is not the configured one.

    Reads the generator's weights; loads no base model.
    """
    from memory_service.generator.checkpoint import generator_digest, load_generator
    from memory_service.generator.strength import fullness

    try:
        generator = load_generator(generator_path(settings))
    except (NotFound, ConfigurationError):
        return None
    if generator_digest(generator) != state.fingerprint.generator:
        return None
    return fullness(generator, state.total())


def make_trainer(
    settings: Settings, config: "TrainingConfig", directory: Path, report: Report
) -> "Trainer":
    """A training run in a directory, with the base model that its config names.

    Raises:
        NotFound: the base model was not pulled, or a file that the config names is missing.
        ConfigurationError: the base model does not fit the config.
    """
    from memory_service.inference import base_models

    files = base_models.find(config.base_model, cache_dir=models_folder(settings))
    report("loading torch")
    from memory_service.training.loop import Trainer

    report(f"loading {files.name}")
    base = base_models.load(files, dtype=config.generator.dtype)
    return Trainer(config, base, directory)
