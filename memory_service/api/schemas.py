"""Bodies of the chat routes, in OpenAI's form. Unknown fields are ignored: clients send many."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from memory_service.api.memory_schemas import shown
from memory_service.domain.messages import Message, Sampling
from memory_service.services.exchange import Mode

MOST_MESSAGES = 2_000
SYSTEM_ROLES = {"developer": "system"}

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        """As the services know it."""
        text = self.content
        if not isinstance(text, str):
            text = "\n".join(part.text for part in text)
        return Message(SYSTEM_ROLES.get(self.role, self.role), text)


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class MemoryOptions(BaseModel):
    """What the request does with the memory; our extension."""

    mode: Mode = Mode.READ_WRITE
    version: int | None = Field(default=None, ge=1, le=2**31 - 1)
    session: str | None = None
    window_tokens: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Prompt tokens for the last messages; MEMORY_SERVICE_WINDOW_TOKENS otherwise",
    )


class ChatRequest(BaseModel):
    """A request for an answer."""

    model_config = shown(
        model="smollm2-135m-instruct",
        user="ana",
        messages=[{"role": "user", "content": "What is my dog called?"}],
        stream=False,
        memory={"mode": "read_write", "session": "monday"},
    )

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    seed: Seed | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    user: str | None = None
    memory: MemoryOptions = MemoryOptions()

    def sampling(self, most_new_tokens: int, seed: int) -> Sampling:
        """How to answer; what is not said is OpenAI's default.

        Raises:
            InvalidInput: there are too many stop strings, or one is empty or too long.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or most_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed if self.seed is None else self.seed,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            stop=tuple(stop),
        )


class Usage(BaseModel):
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """The answer's text."""

    role: Literal["assistant"]
    content: str


class AnswerChoice(BaseModel):
    """The one answer; `length` means that it has as many tokens as were allowed."""

    index: Literal[0]
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """An answer, as OpenAI's."""

    model_config = shown(
        id="chatcmpl-5d3c0a8e",
        object="chat.completion",
        created=1_772_389_800,
        model="smollm2-135m-instruct",
        choices=[
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Biscuit."},
                "finish_reason": "stop",
            }
        ],
        usage={"prompt_tokens": 18, "completion_tokens": 4, "total_tokens": 22},
    )

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: Usage


class ModelBody(BaseModel):
    """The base model; `max_model_len` is its context in tokens."""

    model_config = shown(
        id="smollm2-135m-instruct",
        object="model",
        created=0,
        owned_by="memory-service",
        max_model_len=8192,
    )

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelsBody(BaseModel):
    """All models: one."""

    object: Literal["list"]
    data: list[ModelBody]
