"""`/healthz`, `/readyz`, `/metrics`: for whoever watches the server. They need no key."""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from memory_service.api.deps import Parts, parts

router = APIRouter(tags=["health"])

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz")
async def is_alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def is_ready(made: Annotated[Parts, Depends(parts)]) -> dict[str, str]:
    """Model and database answer too."""
    await made.service.store.keys.are_required()
    return {"status": "ready", "model": made.service.base_model_name}


@router.get("/metrics")
async def metrics(made: Annotated[Parts, Depends(parts)]) -> Response:
    """Prometheus's text format."""
    return Response(made.metrics.text(made.service), media_type=TEXT_FORMAT)
