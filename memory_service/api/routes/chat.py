"""`/v1/chat/completions` and `/v1/models`, in OpenAI's form."""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.errors import body_of
from memory_service.api.schemas import ChatAnswer, ChatRequest, ModelBody, ModelsBody
from memory_service.domain.keys import Scope
from memory_service.domain.messages import Generation
from memory_service.errors import InvalidInput, MemoryServiceError, NotFound
from memory_service.services.exchange import Asked, Begun, Mode
from memory_service.settings import Settings

router = APIRouter(tags=["chat"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "chatting"))]

ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream` as server-sent events of OpenAI's chunks, "
        "ended by `data: [DONE]`",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"id": "chatcmpl-5d3c0a8e", "object": "chat.completion.chunk", '
                '"created": 1772389800, "model": "smollm2-135m-instruct", "choices": [{"index": 0, '
                '"delta": {"content": "Biscuit."}, "finish_reason": null}]}\n\n',
            }
        },
        "headers": {
            name: {"description": meaning, "schema": {"type": kind}}
            for name, kind, meaning in (
                ("X-Memory-Mode", "string", "read_write, read or off"),
                ("X-Memory-Version", "integer", "the adapter that answered"),
                ("X-Memory-Session", "string", "percent-encoded"),
                ("X-Memory-Cut-Messages", "integer", "left out of the prompt by the window"),
                ("X-Memory-Prompt-Tokens-Saved", "integer", "what the history would have taken"),
            )
        },
    }
}


@dataclass(frozen=True)
class _Answer:
    """What all parts of one answer have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, kind: str, choices: list[dict[str, Any]], **more: object) -> dict[str, Any]:
        """An object of the API."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }

    def chunk(self, delta: dict[str, str], ending: str | None = None, **more: object) -> bytes:
        """One event of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": ending}
        return _event(self.body("chat.completion.chunk", [choice], **more))


@router.get("/v1/models")
async def list_models(who: Reader, made: Annotated[Parts, Depends(parts)]) -> ModelsBody:
    """The base model that answers."""
    return ModelsBody(object="list", data=[_model(made)])


@router.get("/v1/models/{name:path}")
async def show_model(name: str, who: Reader, made: Annotated[Parts, Depends(parts)]) -> ModelBody:
    """One model."""
    if name != made.service.base_model_name:
        raise NotFound("model", name, f"this server answers as {made.service.base_model_name}")
    return _model(made)


@router.post("/v1/chat/completions", response_model=ChatAnswer, responses=ANSWERED)
async def complete(
    body: ChatRequest, request: Request, who: Reader, made: Annotated[Parts, Depends(parts)]
) -> Response:
    """Answer with the user's memory; both sides become turns.

    The user is the field `user`, or a header (`MEMORY_SERVICE_USER_HEADERS`); without one there is
    no memory. Response headers tell the adapter's version, what the window cut and how many prompt
    tokens the memory saved.
    """
    if body.model != made.service.base_model_name:
        hint = f"this server answers as {made.service.base_model_name}"
        raise NotFound("model", body.model, hint)
    asked = _asked(body, request, who, made.settings)
    answer = _Answer(body.model)
    stack = AsyncExitStack()
    try:
        begun = await stack.enter_async_context(made.service.exchange.begin(asked))
        first = await anext(begun.pieces)  # what is refused has a status of its own
    except BaseException:
        await _closed(stack)
        raise
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(answer, stack, first, begun.pieces, with_usage=with_usage)
        return StreamingResponse(
            events,
            media_type="text/event-stream",
            headers={**_told(begun), "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    try:
        generation = await _whole(request, first, begun.pieces)
    finally:
        await _closed(stack)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": generation.text},
        "finish_reason": generation.ending.value,
    }
    return JSONResponse(
        answer.body("chat.completion", [choice], usage=_usage(generation)), headers=_told(begun)
    )


async def _events(
    answer: _Answer,
    stack: AsyncExitStack,
    first: str | Generation,
    pieces: AsyncGenerator[str | Generation, None],
    *,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; a client that leaves ends it."""
    try:
        yield answer.chunk({"role": "assistant", "content": ""})
        piece: str | Generation = first
        while isinstance(piece, str):
            yield answer.chunk({"content": piece})
            piece = await anext(pieces)
        yield answer.chunk({}, piece.ending.value)
        if with_usage:
            yield _event(answer.body("chat.completion.chunk", [], usage=_usage(piece)))
        yield b"data: [DONE]\n\n"
    except MemoryServiceError as error:  # the status is sent already
        yield _event(body_of(error))
    finally:
        await _closed(stack)


async def _whole(
    request: Request,
    first: str | Generation,
    pieces: AsyncGenerator[str | Generation, None],
) -> Generation:
    """The finished answer.

    Raises:
        InvalidInput: nobody waits for it any more.
    """
    piece = first
    while isinstance(piece, str):
        if await request.is_disconnected():
            raise InvalidInput("connection", "closed", "the client left before the answer's end")
        piece = await anext(pieces)
    return piece


async def _closed(stack: AsyncExitStack) -> None:
    """Close also where the request is being cancelled, which would interrupt every step of it."""
    await asyncio.shield(asyncio.ensure_future(stack.aclose()))


def _asked(body: ChatRequest, request: Request, who: Caller, settings: Settings) -> Asked:
    user = body.user or _first_header(request, settings.user_headers)
    mode = body.memory.mode
    if user and mode is Mode.READ_WRITE:
        who.require(Scope.WRITE, "chatting with both sides stored")
    return Asked(
        messages=[message.message() for message in body.messages],
        sampling=body.sampling(settings.most_new_tokens, secrets.randbits(62)),
        memory_id=who.memory(user) if user else None,
        mode=mode,
        version=body.memory.version,
        window_tokens=body.memory.window_tokens,
        session=body.memory.session or _first_header(request, settings.session_headers),
    )


def _first_header(request: Request, names: str) -> str | None:
    found = (request.headers.get(name.strip()) for name in names.split(",") if name.strip())
    return next((value for value in found if value), None)


def _told(begun: Begun) -> dict[str, str]:
    """What the memory did, as headers."""
    told = {
        "X-Memory-Mode": begun.mode.value,
        "X-Memory-Cut-Messages": str(begun.cut_messages),
        "X-Memory-Prompt-Tokens-Saved": str(begun.saved_tokens),
    }
    if begun.version is not None:
        told["X-Memory-Version"] = str(begun.version)
    if begun.session is not None:
        told["X-Memory-Session"] = quote(begun.session)
    return told


def _usage(generation: Generation) -> dict[str, int]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
    }


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def _model(made: Parts) -> ModelBody:
    return ModelBody(
        id=made.service.base_model_name,
        object="model",
        created=0,
        owned_by="memory-service",
        max_model_len=made.service.context_tokens,
    )
