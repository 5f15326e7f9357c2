"""litellm on both sides: an engine elsewhere answers for us, and we answer litellm's callers.

The only importer of litellm, which costs seconds and 160 MB; imported where it is used.
"""

import asyncio
import os
import queue
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import BlockingPortal

from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import AppliedAdapter, Ending, Generation, Message, Sampling
from memory_service.errors import (
    InvalidInput,
    MemoryServiceError,
    NotFound,
    Overloaded,
    Rejected,
    StateConflict,
    Timeout,
    Unavailable,
)
from memory_service.inference.remote_adapters import EngineAddress, RemoteAdapters
from memory_service.inference.tokens import Tokens

# Its import would fetch a table of prices from the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
import litellm  # after the variable that it reads
from litellm import CustomLLM
from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
from litellm.types.utils import GenericStreamingChunk, ModelResponse, Usage

litellm.suppress_debug_info = True  # it prints hints to standard output
litellm.telemetry = False
litellm.disable_aiohttp_transport = True  # it leaves sockets open

PROVIDER = "memory"
"""What litellm's model names begin with that are answered here: `memory/<base model>`."""

Piece = str | Generation


# --- generation through litellm ------------------------------------------------------------------


@dataclass(eq=False)
class _Running:
    """An answer in the making, and whose memory it reads."""

    owner: MemoryId | None
    is_withdrawn: bool = False


class RemoteBackend:
    """Answers with an engine elsewhere that applies our adapters, through litellm.

    Satisfies `services.ports.Backend`. The engine's model name is the adapter's: what a client
    calls the model never leaves. Prompts do; the engine is the operator's own.
    """

    def __init__(
        self, adapters: RemoteAdapters, tokens: Tokens, engine: EngineAddress, deadline_s: float
    ) -> None:
        self._adapters = adapters
        self._tokens = tokens
        self._engine = engine
        self._deadline_s = deadline_s
        self._http: AsyncHTTPHandler | None = None
        self._running: set[_Running] = set()
        self._dropping: set[asyncio.Task[None]] = set()

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model reads it."""
        return len(self._tokens.prompt_ids(messages))

    async def stream(
        self,
        messages: Sequence[Message],
        adapter: AppliedAdapter | None,
        sampling: Sampling,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Yield pieces of the answer as they come and, last, its `Generation`.

        A reader that stops early closes the connection, which frees the engine: use
        `contextlib.aclosing`.

        Raises:
            InvalidInput: the engine says that the prompt does not fit into its context.
            Overloaded: the engine has too much to do.
            Timeout: the deadline came first.
            StateConflict: the memory was withdrawn meanwhile.
            Unavailable: the engine cannot be reached or failed.
            Rejected: the engine refuses the adapter or the request.
        """
        end = time.perf_counter() + (deadline_s or self._deadline_s)
        running = _Running(None if adapter is None else adapter.memory_id)
        self._running.add(running)
        try:
            async with self._adapters.held(adapter) as name:
                answer = self._answer(name, messages, sampling, end)
                async with aclosing(answer) as pieces:
                    async for piece in pieces:
                        if running.is_withdrawn and running.owner is not None:
                            raise StateConflict(
                                f"memory of user {running.owner.user}",
                                "was forgotten while it answered",
                            )
                        yield piece
        finally:
            self._running.discard(running)

    def withdraw(self, memory_id: MemoryId) -> None:
        """End every answer that is being made with a memory, and take it from the engine."""
        for running in self._running:
            if running.owner == memory_id:
                running.is_withdrawn = True
        task = asyncio.get_running_loop().create_task(self._adapters.drop(memory_id))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def stop(self) -> None:
        """Take every adapter from the engine, and hang up."""
        await asyncio.gather(*self._dropping, return_exceptions=True)
        await self._adapters.stop()
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close the connection to the engine, and leave it as it is."""
        await self._adapters.hang_up()
        if self._http is not None:
            await self._http.close()

    async def _answer(
        self, name: str, messages: Sequence[Message], sampling: Sampling, end: float
    ) -> AsyncGenerator[Piece, None]:
        start = time.perf_counter()
        said: list[str] = []
        told = _Told()
        chunks = await self._open(name, messages, sampling, end)
        try:
            while (chunk := await _before(end, _next(chunks))) is not None:
                text = told.read(chunk)
                if text:
                    said.append(text)
                    told.first_token_s = told.first_token_s or time.perf_counter() - start
                    yield text
        finally:
            await chunks.aclose()
        total_s = time.perf_counter() - start
        yield Generation(
            text="".join(said),
            prompt_tokens=told.prompt_tokens or self.prompt_tokens(messages),
            completion_tokens=told.completion_tokens or len(self._tokens.ids("".join(said))),
            first_token_s=told.first_token_s or total_s,
            total_s=total_s,
            ending=told.ending,
        )

    async def _open(
        self, name: str, messages: Sequence[Message], sampling: Sampling, end: float
    ) -> Any:
        """The engine's stream; an engine that was restarted is given the adapter again."""
        try:
            return await self._completion(name, messages, sampling, end)
        except Rejected as error:
            if not isinstance(error.__cause__, litellm.NotFoundError):
                raise
            await self._adapters.load_again(name)
            return await self._completion(name, messages, sampling, end)

    async def _completion(
        self, name: str, messages: Sequence[Message], sampling: Sampling, end: float
    ) -> Any:
        if self._http is None:  # litellm's own would outlive the event loop
            self._http = AsyncHTTPHandler(timeout=self._deadline_s)
        return await _before(
            end,
            litellm.acompletion(
                client=self._http,
                model=f"hosted_vllm/{name}",
                api_base=self._engine.url,
                api_key=self._engine.key or "none",
                messages=[{"role": one.role, "content": one.content} for one in messages],
                stream=True,
                stream_options={"include_usage": True},
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                stop=[*sampling.stop] or None,
                extra_body={
                    "top_k": sampling.top_k or -1,  # the engine's word for all tokens
                    "min_p": sampling.min_p,
                    "repetition_penalty": sampling.repetition_penalty,
                },
                max_retries=0,
                num_retries=0,
            ),
        )


@dataclass
class _Told:
    """What the chunks of a stream say besides text."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0
    ending: Ending = Ending.STOP

    def read(self, chunk: Any) -> str:
        """Take note of a chunk; its text."""
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            self.prompt_tokens = usage.prompt_tokens or 0
            self.completion_tokens = usage.completion_tokens or 0
        if not chunk.choices:
            return ""
        if chunk.choices[0].finish_reason == "length":
            self.ending = Ending.LENGTH
        return chunk.choices[0].delta.content or ""


async def _next(chunks: Any) -> Any:
    return await anext(chunks, None)


async def _before(end: float, waiting: Any) -> Any:
    """Wait until a time of `time.perf_counter`; what litellm raises becomes ours."""
    try:
        return await asyncio.wait_for(waiting, max(0.0, end - time.perf_counter()))
    except TimeoutError as error:
        raise Timeout("engine", "the deadline came before the answer's end") from error
    except Exception as error:
        ours = _as_ours(error)
        if ours is None:
            raise
        raise ours from error


def _as_ours(error: Exception) -> MemoryServiceError | None:
    """The engine's error as one of ours. Its text may hold a prompt, so it is not repeated."""
    said = f"{type(error).__name__}, status {getattr(error, 'status_code', None)}"
    ours: MemoryServiceError | None = None
    match error:
        case litellm.ContextWindowExceededError():
            ours = InvalidInput(
                "messages", "", "do not fit into the engine's context; shorten them"
            )
        case litellm.Timeout():
            ours = Timeout("engine", f"took too long ({said})")
        case litellm.RateLimitError():
            ours = Overloaded("engine", f"has too much to do ({said})", retry_after_s=1)
        case litellm.AuthenticationError() | litellm.PermissionDeniedError():
            remedy = "correct MEMORY_SERVICE_ENGINE_KEY"
            ours = Rejected("engine", f"refused the key ({said})", remedy)
        case litellm.NotFoundError() | litellm.BadRequestError():
            ours = Rejected("engine", f"refused the request ({said})")
        case _ if hasattr(error, "llm_provider"):  # all of litellm's: they have no root of its own
            remedy = "see that it runs, and MEMORY_SERVICE_ENGINE_URL"
            ours = Unavailable("engine", f"cannot answer ({said})", remedy)
    return ours


# --- a provider for litellm ----------------------------------------------------------------------

Answer = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[AsyncGenerator[Piece, None]]]
"""Opens the answer to a request, whose fields are those of OpenAI's chat API and `memory`."""


@dataclass(eq=False)
class _Reading:
    """An answer that is made on the service's event loop and read elsewhere."""

    portal: BlockingPortal
    answer: Answer
    request: Mapping[str, Any]
    put: Callable[[Piece | BaseException], None]
    making: Future[None] = field(init=False)

    def __post_init__(self) -> None:
        self.making = self.portal.start_task_soon(self._make)

    async def _make(self) -> None:
        try:
            async with self.answer(self.request) as pieces:
                async for piece in pieces:
                    self.put(piece)
        except BaseException as error:
            self.put(error)
            raise

    def stop(self) -> None:
        """The reader has left, or has it all."""
        self.making.cancel()


class MemoryProvider(CustomLLM):  # type: ignore[misc]  # litellm is untyped here
    """Answers litellm's `memory/<base model>`: completion and acompletion, streaming or not.

    The service runs on the event loop of `portal`; callers may be on any thread or loop. `user`
    names the user; `memory={"mode": ..., "session": ..., "version": ...}` as in the HTTP API.
    """

    def __init__(self, portal: BlockingPortal, answer: Answer) -> None:
        super().__init__()
        self._portal = portal
        self._answer = answer

    def completion(self, **call: Any) -> ModelResponse:
        """A whole answer."""
        return _response(call["model_response"], list(self._pieces(call))[-1])

    def streaming(self, **call: Any) -> Iterator[GenericStreamingChunk]:
        """An answer in pieces."""
        yield from map(_chunk, self._pieces(call))

    async def acompletion(self, **call: Any) -> ModelResponse:
        """A whole answer."""
        return _response(call["model_response"], [one async for one in self._apieces(call)][-1])

    async def astreaming(self, **call: Any) -> AsyncIterator[GenericStreamingChunk]:
        """An answer in pieces."""
        async with aclosing(self._apieces(call)) as pieces:
            async for piece in pieces:
                yield _chunk(piece)

    def _pieces(self, call: Mapping[str, Any]) -> Iterator[Piece]:
        came: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        reading = _Reading(self._portal, self._answer, _request(call), came.put)
        piece: Piece = ""
        try:
            while not isinstance(piece, Generation):
                piece = _checked(came.get(), call["model"])
                yield piece
        finally:
            reading.stop()

    async def _apieces(self, call: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        came: asyncio.Queue[Piece | BaseException] = asyncio.Queue()

        def put(piece: Piece | BaseException) -> None:
            loop.call_soon_threadsafe(came.put_nowait, piece)

        reading = _Reading(
            self._portal,
            self._answer,
            _request(call),
            put,
        )
        piece: Piece = ""
        try:
            while not isinstance(piece, Generation):
                piece = _checked(await came.get(), call["model"])
                yield piece
        finally:
            reading.stop()


def register(provider: MemoryProvider) -> None:
    """Make litellm answer `memory/...` with a provider, instead of an earlier one."""
    unregister()
    litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": provider})


def unregister() -> None:
    """Take the provider out of litellm again."""
    litellm.custom_provider_map = [
        one for one in litellm.custom_provider_map if one["provider"] != PROVIDER
    ]


def _request(call: Mapping[str, Any]) -> dict[str, Any]:
    """Litellm's call as a request of the chat API.

    litellm takes `user` out of the options of providers it does not know, and keeps it beside.
    """
    request: dict[str, Any] = {"model": call["model"], "messages": call["messages"]} | call[
        "optional_params"
    ]
    user = call["logging_obj"].model_call_details.get("user")
    return request if user is None else {"user": user} | request


def _response(response: ModelResponse, answer: Piece) -> ModelResponse:
    if not isinstance(answer, Generation):
        raise RuntimeError("an answer ended without its generation")
    response.choices[0].message.content = answer.text
    response.choices[0].finish_reason = answer.ending.value
    response.usage = Usage(**_usage(answer))
    return response


def _chunk(piece: Piece) -> GenericStreamingChunk:
    last = piece if isinstance(piece, Generation) else None
    return GenericStreamingChunk(
        text=piece if isinstance(piece, str) else "",
        is_finished=last is not None,
        finish_reason=last.ending.value if last else "",
        usage=_usage(last) if last else None,
        index=0,
        tool_use=None,
    )


def _usage(answer: Generation) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _checked(piece: Piece | BaseException, model: str) -> Piece:
    """A piece, or the error as the class that litellm's callers catch."""
    if not isinstance(piece, BaseException):
        return piece
    if not isinstance(piece, MemoryServiceError):
        raise piece
    where = {"message": str(piece), "model": model, "llm_provider": PROVIDER}
    match piece:
        case InvalidInput():
            raise litellm.BadRequestError(**where) from piece
        case NotFound():
            raise litellm.NotFoundError(**where) from piece
        case Overloaded():
            raise litellm.RateLimitError(**where) from piece
        case Timeout():
            raise litellm.Timeout(**where) from piece
        case Unavailable():
            raise litellm.ServiceUnavailableError(**where) from piece
    raise litellm.APIError(status_code=500, **where) from piece
