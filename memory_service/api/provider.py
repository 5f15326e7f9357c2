"""The memory inside a program that calls litellm: `model="memory/<base model>"`, no server."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from anyio.from_thread import start_blocking_portal
from pydantic import ValidationError

from memory_service.api.schemas import ChatRequest
from memory_service.bootstrap import Report, Service, open_service
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Generation
from memory_service.errors import InvalidInput, NotFound
from memory_service.services.exchange import Asked
from memory_service.settings import Settings


@contextmanager
def litellm_provider(settings: Settings, report: Report = lambda _: None) -> Iterator[str]:
    """Let litellm answer with the memory while the block runs; yields the model's name.

    `litellm.completion(model=name, user="ann", messages=...)`, async and streaming too. Both sides
    of the exchange are stored as in the HTTP API; `memory={"mode": "off"}` and the other fields of
    its extension are understood.

    Raises:
        NotFound: the base model was not pulled, or there is no generator.
        ConfigurationError: the database or a checkpoint cannot be used.
    """
    from memory_service.inference import litellm  # noqa: PLC0415  # costs seconds

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_running(settings, report)) as service,
    ):

        def answer(
            request: Mapping[str, Any],
        ) -> AbstractAsyncContextManager[AsyncGenerator[str | Generation, None]]:
            return _answer(service, settings, request)

        litellm.register(litellm.MemoryProvider(portal, answer))
        try:
            yield f"{litellm.PROVIDER}/{service.base_model_name}"
        finally:
            litellm.unregister()


@asynccontextmanager
async def _running(settings: Settings, report: Report) -> AsyncIterator[Service]:
    """The service and its background encoding; what is pending at the end is encoded next time."""
    async with open_service(settings, report) as service:
        await service.queue.start()
        try:
            yield service
        finally:
            await service.queue.stop()


@asynccontextmanager
async def _answer(
    service: Service, settings: Settings, request: Mapping[str, Any]
) -> AsyncIterator[AsyncGenerator[str | Generation, None]]:
    try:
        body = ChatRequest.model_validate(request)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(field, first["input"], first["msg"]) from None
    if body.model != service.base_model_name:
        raise NotFound("model", body.model, f"this memory answers as {service.base_model_name}")
    asked = Asked(
        messages=[message.message() for message in body.messages],
        sampling=body.sampling(settings.most_new_tokens, secrets.randbits(62)),
        memory_id=MemoryId(body.user, settings.tenant) if body.user else None,
        mode=body.memory.mode,
        version=body.memory.version,
        session=body.memory.session,
    )
    async with service.exchange.begin(asked) as begun:
        yield begun.pieces
