"""litellm on both sides: it asks our memory, and our memory asks an engine through it."""

import litellm
import pytest

from memory_service.api.provider import litellm_provider
from memory_service.bootstrap import open_service
from memory_service.domain.memory import MemoryId
from memory_service.domain.messages import Message, Sampling
from memory_service.domain.turns import new_turn
from memory_service.settings import read_settings
from tests.helpers.command_line import run
from tests.helpers.stub_engine import stub_engine

ASK = {"max_tokens": 6, "temperature": 0}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def texts(user: str) -> list[str]:
    return [one["text"] for one in run("turns", "list", user, "--json").json]


async def test_one_string_changes(home: object) -> None:
    with litellm_provider(read_settings()) as model:
        made = await litellm.acompletion(model=model, user="ann", messages=said("I am Ann."), **ASK)
        assert made.choices[0].finish_reason in {"stop", "length"}
        assert made.usage.completion_tokens > 0
        whole = made.choices[0].message.content or ""
        stream = await litellm.acompletion(
            model=model,
            user="bob",
            messages=said("I am Ann."),
            stream=True,
            stream_options={"include_usage": True},
            **ASK,
        )
        chunks = [chunk async for chunk in stream]
        content = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(content) == whole
        assert chunks[-1].usage.total_tokens == made.usage.total_tokens


def test_without_an_event_loop_too(home: object) -> None:
    with litellm_provider(read_settings()) as model:
        made = litellm.completion(model=model, user="ann", messages=said("Hi."), **ASK)
        chunks = [*litellm.completion(model=model, messages=said("Hi."), stream=True, **ASK)]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == (made.choices[0].message.content or "")
        litellm.completion(
            model=model, user="ann", messages=said("Secret."), memory={"mode": "off"}, **ASK
        )
        with pytest.raises(litellm.BadRequestError, match="top_p"):
            litellm.completion(model=model, messages=said("Hi."), top_p=7)
        with pytest.raises(litellm.NotFoundError, match="answers as"):
            litellm.completion(model="memory/other", messages=said("Hi."))
    assert texts("ann")[0] == "Hi."
    assert "Secret." not in texts("ann")
    with pytest.raises(Exception, match=r"(?i)provider"):
        litellm.completion(model=model, messages=said("Hi."))


async def test_the_service_answers_through_an_engine_elsewhere(
    home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub_engine() as engine:
        monkeypatch.setenv("MEMORY_SERVICE_ENGINE_URL", engine.url)
        monkeypatch.setenv("MEMORY_SERVICE_ENGINE_FOLDER", "engine")
        async with open_service(read_settings(), lambda _: None) as service:
            ann = MemoryId("ann")
            await service.store.append.turns(ann, [new_turn("My dog is called Rex.")])
            await service.remember.encode_pending(ann)
            answer = service.chat.answer(ann, [Message("user", "My dog?")], Sampling())
            pieces = [piece async for piece in answer]
            assert pieces[-1].text == "Rex."
            assert len(engine.loaded) == 1
        assert not engine.loaded
