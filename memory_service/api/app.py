"""The application: routes over one service."""

from fastapi import FastAPI

from memory_service import __version__
from memory_service.api.body_limit import BodyLimit
from memory_service.api.deps import Door, Parts, Rates
from memory_service.api.errors import DOCUMENTED, add_handlers
from memory_service.api.metrics import Metrics
from memory_service.api.routes import (
    adapters,
    chat,
    health,
    inspect,
    jobs,
    memory,
    moving,
    page,
    quota,
    turns,
)
from memory_service.bootstrap import Service
from memory_service.settings import Settings


def create_app(
    service: Service, settings: Settings, metrics: Metrics, *, is_local: bool = False
) -> FastAPI:
    """Join routes and service; who opened the service closes it.

    `is_local` says that only this machine reaches the app: then nobody needs a key until there is
    one.
    """
    app = FastAPI(
        title="memory-service",
        version=__version__,
        description="Chat with a personal memory that lives in weights. OpenAI's API, and more.",
        # The pages load scripts from elsewhere; the document itself is /openapi.json.
        docs_url=None,
        redoc_url=None,
        responses=DOCUMENTED,
    )
    app.state.parts = Parts(
        service=service,
        settings=settings,
        door=Door(is_shut=not is_local),
        rates=Rates(settings.requests_per_minute),
        metrics=metrics,
    )
    app.add_middleware(
        BodyLimit,
        most_bytes=settings.most_body_bytes,
        most_archive_bytes=settings.most_archive_bytes,
    )
    add_handlers(app)
    for group in (chat, memory, turns, adapters, inspect, moving, jobs, quota, health, page):
        app.include_router(group.router)
    app.mount("/page", page.PageFiles())
    _tell_the_truth(app)
    return app


def _tell_the_truth(app: FastAPI) -> None:
    """Take FastAPI's own form of validation errors out of the document: ours are 400."""
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
