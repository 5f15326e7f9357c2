"""The HTTP API over a tiny model and a real database, as clients use it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from memory_service.api.app import create_app
from memory_service.api.metrics import Metrics
from memory_service.domain.keys import Scope
from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import new_turn
from tests.helpers.api import Api, error

FACTS = "My dog is called Rex."


# The openai SDK, unmodified


async def test_the_openai_sdk_answers_and_remembers(api: Api) -> None:
    made = await api.openai.chat.completions.create(
        model=api.model,
        messages=[{"role": "user", "content": FACTS}],
        max_tokens=8,
        temperature=0,
        user="ann",
    )
    assert made.object == "chat.completion"
    assert made.choices[0].finish_reason in {"stop", "length"}
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    answer = made.choices[0].message.content
    expected = [FACTS, answer] if answer else [FACTS]
    assert await api.texts("ann") == expected


async def test_the_openai_sdk_streams_the_same_answer(api: Api) -> None:
    ask = {
        "model": api.model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = await api.openai.chat.completions.create(**ask)
    stream = await api.openai.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_openai_sdk_lists_models_and_understands_errors(api: Api) -> None:
    assert [model.id async for model in api.openai.models.list()] == [api.model]
    assert (await api.openai.models.retrieve(api.model)).id == api.model
    with pytest.raises(openai.NotFoundError, match="no model named"):
        await api.openai.chat.completions.create(
            model="gpt-4", messages=[{"role": "user", "content": "Hi"}]
        )


# Memory


async def test_the_next_session_answers_with_the_adapter_and_says_what_it_saved(api: Api) -> None:
    await api.chat(FACTS * 10, user="ann", memory={"session": "monday"})
    response = await api.chat("What is my dog called?", user="ann", memory={"session": "tuesday"})
    assert response.headers["X-Memory-Version"] == "1"
    assert response.headers["X-Memory-Session"] == "tuesday"
    assert int(response.headers["X-Memory-Prompt-Tokens-Saved"]) > 100
    assert response.json()["usage"]["prompt_tokens"] < 80


async def test_a_conversation_sent_whole_is_stored_once(api: Api) -> None:
    first = (await api.chat("Hi", user="ann")).json()["choices"][0]["message"]["content"]
    sent = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first or "-"},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    for _ in range(2):  # the same again, as a client does after a lost answer
        assert (await api.chat(sent, user="ann")).status_code == 200
    texts = await api.texts("ann")
    assert texts.count("Hi") == texts.count("And?") == 1


@pytest.mark.parametrize("mode", ["read", "off"])
async def test_nothing_is_stored_where_nothing_may_be(api: Api, mode: str) -> None:
    response = await api.chat("Hi", user="ann", memory={"mode": mode})
    assert response.status_code == 200
    assert (await api.http.get("/v1/memory/users")).json() == {"data": [], "next": None}


async def test_the_user_and_session_of_a_front_ends_headers(api: Api) -> None:
    headers = {"X-OpenWebUI-User-Id": "ann", "X-OpenWebUI-Chat-Id": "42"}
    response = await api.chat("Hi", headers=headers)
    assert response.headers["X-Memory-Session"] == "42"
    assert (await api.texts("ann"))[0] == "Hi"


async def test_turns_adapters_and_forgetting(api: Api) -> None:
    users = "/v1/memory/users"
    body = {"turns": [{"text": FACTS, "id": "1"}, {"text": "Nice.", "role": "assistant"}]}
    made = (await api.http.post(f"{users}/ann/turns", json=body)).json()
    assert (made["new"], made["known"], made["ids"][0]) == (2, 0, "1")
    again = {"turns": [{"text": FACTS, "id": "1"}]}
    assert (await api.http.post(f"{users}/ann/turns", json=again)).json()["known"] == 1
    other = {"turns": [{"text": "A cat.", "id": "1"}]}
    error(await api.http.post(f"{users}/ann/turns", json=other), 409, "conflict")
    assert await api.service.queue.settled(MemoryId("ann"), 60)
    listed = (await api.http.get(f"{users}/ann/turns?limit=1")).json()["data"]
    assert [(one["text"], one["pending"]) for one in listed] == [("Nice.", False)]
    (adapter,) = (await api.http.get(f"{users}/ann/adapters")).json()["data"]
    shown = (await api.http.get(f"{users}/ann/adapters/{adapter['version']}")).json()
    assert shown["recipe"][0]["turn_ids"][0] == "1"
    assert (await api.http.get(f"{users}/ann")).json()["turns"] == 2
    assert (await api.http.delete(f"{users}/ann")).json()["deleted"]["turns"] == 2
    error(await api.http.get(f"{users}/ann"), 404, "not_found")


# Bad input


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        (
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "?"},
                ]
            },
            "messages",
        ),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}], "user": "ann"}, "text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 2}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"user": " ann"}, "user"),
        ({"user": "ann@1"}, "user"),
        ({"memory": {"mode": "sometimes"}}, "memory.mode"),
        ({"memory": {"session": "a\nb"}, "user": "ann"}, "session"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
    ],
)
async def test_bad_fields_are_named(api: Api, fields: dict, param: str) -> None:
    body = error(await api.chat(**({"text": "Hi"} | fields)), 400, "invalid_input")
    assert str(body["param"]).startswith(param)
    assert await api.service.store.inspect.users("default") == []


async def test_unknown_fields_are_ignored(api: Api) -> None:
    response = await api.chat("Hi", logit_bias={"5": 1}, tools=None, metadata={"a": "b"})
    assert response.status_code == 200


async def test_bodies_that_are_none(api: Api) -> None:
    path = "/v1/chat/completions"
    json_type = {"Content-Type": "application/json"}
    error(await api.http.post(path, content=b"{", headers=json_type), 400, "invalid_input")
    error(await api.http.post(path, content=b"[]", headers=json_type), 400, "invalid_input")
    error(
        await api.http.post(path, content=b"x" * 200_000, headers=json_type), 413, "invalid_input"
    )

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 10_000

    error(await api.http.post(path, content=chunks(), headers=json_type), 413, "invalid_input")


async def test_what_is_not_ours_is_404_in_the_same_form(api: Api) -> None:
    error(await api.http.post("/v1/embeddings", json={}), 404, "not_found")
    error(await api.http.get("/v1/models/gpt-4"), 404, "not_found")
    error(await api.http.get("/v1/memory/users/nobody"), 404, "not_found")
    error(await api.chat("Hi", user="ann", memory={"version": 7}), 404, "not_found")


async def test_a_full_queue_is_429_with_retry_after(api: Api) -> None:
    api.service.engine._limits = type(api.service.engine._limits)(rows=1, waiting=0)
    response = await api.chat("Hi")
    assert error(response, 429, "overloaded")["type"] == "invalid_request_error"
    assert int(response.headers["Retry-After"]) >= 1


async def test_many_at_once_are_answered_in_one_batch(api: Api) -> None:
    responses = await asyncio.gather(
        *(api.chat(FACTS, user=f"user{number}", max_tokens=16) for number in range(6))
    )
    assert [response.status_code for response in responses] == [200] * 6
    metrics = (await api.http.get("/metrics")).text
    assert "memory_answers_total" in metrics
    assert "user0" not in metrics


# Keys


async def test_with_a_key_nobody_comes_in_without(api: Api) -> None:
    assert (await api.chat("Hi")).status_code == 200
    token = await api.key("acme")
    error(await api.chat("Hi"), 401, "unauthenticated")
    error(await api.chat("Hi", key=token[:-1] + "-"), 401, "unauthenticated")
    error(await api.chat("Hi", key="sk-anything"), 401, "unauthenticated")
    assert (await api.chat("Hi", key=token)).status_code == 200
    assert (await api.http.get("/healthz")).status_code == 200


async def test_a_revoked_key_is_refused_at_once(api: Api) -> None:
    token, other = await api.key("acme"), await api.key("acme")
    await api.service.store.keys.revoke(token.split("_")[1])
    error(await api.chat("Hi", key=token), 401, "unauthenticated")
    assert (await api.chat("Hi", key=other)).status_code == 200


async def test_a_key_reaches_its_own_tenant_only(api: Api) -> None:
    ours, theirs = await api.key("ours"), await api.key("theirs")
    assert (await api.chat(FACTS, user="ann", key=ours)).status_code == 200
    assert (await api.texts("ann", "ours"))[0] == FACTS
    headers = {"Authorization": f"Bearer {theirs}"}
    assert (await api.http.get("/v1/memory/users", headers=headers)).json()["data"] == []
    for path in ("ann", "ann/turns", "ann/adapters", "ann/adapters/1"):
        response = await api.http.get(f"/v1/memory/users/{path}", headers=headers)
        error(response, 404, "not_found")
    error(await api.http.delete("/v1/memory/users/ann", headers=headers), 404, "not_found")
    refused = await api.chat("Hi", user="ann", key=theirs, memory={"version": 1})
    error(refused, 404, "not_found")


async def test_scopes(api: Api) -> None:
    reader = await api.key("acme", Scope.READ)
    writer = await api.key("acme", Scope.READ, Scope.WRITE)
    error(await api.chat("Hi", user="ann", key=reader), 403, "forbidden")
    assert (await api.chat("Hi", user="ann", key=writer)).status_code == 200
    read = await api.chat("Hi", user="ann", key=reader, memory={"mode": "read"})
    assert read.status_code == 200
    headers = {"Authorization": f"Bearer {writer}"}
    error(await api.http.delete("/v1/memory/users/ann", headers=headers), 403, "forbidden")


async def test_without_keys_only_this_machine_is_answered(api: Api) -> None:
    response = await api.http.get("http://evil.example/v1/models")
    error(response, 403, "forbidden")


async def test_the_end_of_the_last_key_lets_nobody_in(api: Api) -> None:
    token = await api.key("acme")
    assert (await api.chat("Hi", key=token)).status_code == 200
    await api.service.store.keys.revoke(token.split("_")[1])
    error(await api.chat("Hi"), 401, "unauthenticated")
    await api.service.store.forget.tenant("acme")  # its keys go with it
    assert await api.service.store.keys.list() == []
    error(await api.chat("Hi"), 401, "unauthenticated")


async def test_beyond_this_machine_a_key_is_needed_even_where_there_is_none(api: Api) -> None:
    app = create_app(api.service, api.settings, Metrics())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as elsewhere:
        error(await elsewhere.get("/v1/models"), 401, "unauthenticated")


async def test_what_another_process_took_back_is_let_go_of(api: Api) -> None:
    for user in ("ann", "bob"):
        await api.chat(FACTS, user=user)
        assert await api.service.queue.settled(MemoryId(user), 60)
        await api.chat("Hi", user=user, memory={"mode": "read"})
    cache = api.service.recall.cache
    watch = api.service.forgotten_elsewhere
    await watch.look(used_only=False)
    assert {key.memory_id.user for key in cache.keys(used_only=False)} == {"ann", "bob"}
    await api.service.store.append.turns(MemoryId("bob"), [new_turn("I am Bob.")])
    await api.service.remember.encode_pending(MemoryId("bob"))
    await api.service.store.forget.user(MemoryId("ann"))  # as `memory users delete` does
    await watch.look(used_only=False)
    assert {key.memory_id.user for key in cache.keys(used_only=False)} == {"bob"}
    (turn, *_) = await api.service.store.inspect.turns(MemoryId("bob"))
    await api.service.forget_turns.turns(MemoryId("bob"), [turn.turn.id])  # `turns forget`
    await watch.look(used_only=False)
    assert cache.keys(used_only=False) == []
    assert cache.size_bytes == 0


async def test_the_rate_of_a_key_is_bounded(api: Api) -> None:
    token = await api.key("acme")
    parts = api.transport.app.state.parts  # type: ignore[attr-defined]
    parts.rates.most_per_minute = 2
    headers = {"Authorization": f"Bearer {token}"}
    statuses = [(await api.http.get("/v1/models", headers=headers)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429] or 200 in statuses[2:]  # a minute may just have begun


# The document


async def test_the_document_names_every_route(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/memory/users/{user}/turns"} <= set(document["paths"])
    assert "422" not in json.dumps(document)
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "404", "429", "503"} <= set(chat["responses"])
    assert chat["security"] == [{"HTTPBearer": []}]


async def test_no_answer_of_a_random_request_is_a_5xx(api: Api) -> None:
    """Every documented operation, with values of the right type and with others."""
    document = (await api.http.get("/openapi.json")).json()
    bodies = [
        *(None, {}, [], "x", {"turns": 5}, {"turns": [{"text": "\x00"}]}, {"model": 5}),
        {"turns": [{"text": "Hi", "time": "yesterday"}]},
        {"turns": [{"text": "Hi", "role": "robot"}]},
        {"turns": [{"text": "\ud800", "id": "a" * 500}]},
        {"text": "\ud800", "new_id": "\x00"},
        {"turn_ids": ["\ud800"], "session": "\x00"},
        {"since": "yesterday", "until": "0001-01-01T00:00:00+14:00"},
        {"version": 1, "as_of": "2026-01-01"},
        {"as_of": "9999-12-31T23:59:59-14:00"},
        {"question": "\ud800", "max_tokens": 8},
        {"model": api.model, "messages": [{"role": "user", "content": "\ud800"}]},
        {"model": api.model, "messages": [{"role": "user", "content": []}], "user": "\ud800"},
        {"model": "\ud800", "messages": [{"role": "user", "content": "Hi"}]},
    ]
    values = ["ann", "0", "-1", "%00", "%20", "a" * 300, "%F0%9F%98%80", "..%2F", "9" * 40]
    for path, operations in document["paths"].items():
        for method in operations:
            asked = [(value, {}) for value in values]
            asked += [("ann", body) for body in bodies] if method in {"post", "patch"} else []
            for value, body in asked:
                response = await api.http.request(
                    method.upper(),
                    re.sub(r"\{.*?\}", value, path)
                    + f"?limit={value}&before={value}&after={value}&session={value}",
                    content=json.dumps(body),
                    headers={"Content-Type": "application/json"},
                )
                assert response.status_code < 500, (method, path, value, body, response.text)


async def test_ready(api: Api) -> None:
    assert (await api.http.get("/readyz")).json() == {"status": "ready", "model": api.model}
