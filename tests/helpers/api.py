"""A server without a socket, over a tiny model and a real database."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from memory_service.api.app import create_app
from memory_service.api.metrics import Metrics
from memory_service.bootstrap import Service, open_service
from memory_service.domain.keys import Scope
from memory_service.domain.memory import MemoryId
from memory_service.settings import Settings, read_settings


class Api:
    """A server without a socket, and what it works with."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service, self.settings = service, settings
        self.model = service.base_model_name
        app = create_app(service, settings, Metrics(), is_local=True)
        self.transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=self.transport, base_url="http://127.0.0.1")
        self.openai = openai.AsyncOpenAI(
            api_key="none", base_url="http://127.0.0.1/v1", http_client=self.http, max_retries=0
        )

    async def chat(self, text: str | list = "Hi", key: str = "", **fields) -> httpx.Response:
        messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "max_tokens": 8, "temperature": 0}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return await self.http.post(
            "/v1/chat/completions", json=body | fields, headers=headers | fields.pop("headers", {})
        )

    async def texts(self, user: str, tenant: str = "default") -> list[str]:
        kept = await self.service.store.inspect.turns(MemoryId(user, tenant))
        return [one.turn.text for one in kept]

    async def key(self, tenant: str, *scopes: Scope) -> str:
        _, token = await self.service.store.keys.create(tenant, frozenset(scopes or Scope))
        return token


@pytest.fixture
async def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setenv("MEMORY_SERVICE_MOST_BODY_BYTES", "100000")
    settings = read_settings()
    async with open_service(settings, lambda _: None) as service:
        await service.queue.start()
        made = Api(service, settings)
        yield made
        await made.http.aclose()
        await service.queue.stop()


def error(response: httpx.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["code"] == code
    return body
