"""`/v1/memory/users/{user}/...`: what a memory looks like inside, and what could not get in."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.memory_schemas import QuarantineBody, RetriedBody
from memory_service.domain.keys import Scope
from memory_service.domain.records import QuarantinedChunk

router = APIRouter(prefix="/v1/memory/users/{user}", tags=["inspect"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "inspecting memories"))]
Writer = Annotated[Caller, Depends(allowed(Scope.WRITE, "changing memories"))]
Made = Annotated[Parts, Depends(parts)]


@router.get("/quarantine")
async def list_quarantined(user: str, who: Reader, made: Made) -> QuarantineBody:
    """Chunks that cannot be encoded, and why; the rest of the memory goes on without them."""
    chunks = await made.service.store.inspect.quarantined(who.memory(user))
    return QuarantineBody.model_validate({"data": [quarantined_fields(chunk) for chunk in chunks]})


@router.post("/quarantine/retry")
async def retry_quarantined(user: str, who: Writer, made: Made) -> RetriedBody:
    """Try again to encode what is quarantined; what fails again stays there."""
    retried = await made.service.remember.retry(who.memory(user))
    return RetriedBody.model_validate(
        {
            "user": user,
            "tried": retried.tried,
            "version": retried.version,
            "data": [quarantined_fields(chunk) for chunk in retried.quarantined],
        }
    )


def quarantined_fields(chunk: QuarantinedChunk) -> dict[str, Any]:
    """A quarantined chunk as it is told."""
    return {
        "session": chunk.session,
        "chunk": chunk.digest,
        "turn_ids": list(chunk.turn_ids),
        "reason": chunk.reason,
        "since": chunk.since,
    }
