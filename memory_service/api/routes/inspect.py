"""`/v1/memory/users/{user}/...`: what a memory looks like inside, and what could not get in."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.inspect_schemas import (
    InspectionBody,
    ProfileBody,
    QuarantineBody,
    ReasonsBody,
    RetriedBody,
    WhyBody,
)
from memory_service.api.routes.memory import head_fields, session_fields
from memory_service.bootstrap import Service
from memory_service.domain.keys import Scope
from memory_service.domain.records import QuarantinedChunk, StoredState
from memory_service.domain.turns import Turn
from memory_service.generator.strength import Strength, fullness
from memory_service.services.exchange import SETTLE_S

router = APIRouter(prefix="/v1/memory/users/{user}", tags=["inspect"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "inspecting memories"))]
Writer = Annotated[Caller, Depends(allowed(Scope.WRITE, "changing memories"))]
Made = Annotated[Parts, Depends(parts)]


@router.get("/inspect")
async def inspect_memory(
    user: str, who: Reader, made: Made, strongest: Annotated[int, Query(ge=0, le=100)] = 0
) -> InspectionBody:
    """What a memory is made of: sessions, bytes, how full its state is, what could not get in.

    With `strongest` so many turns with the largest shares in the adapter, too; the base model reads
    every chunk for that.
    """
    memory_id = who.memory(user)
    found = await made.service.store.inspect.memory(memory_id)
    weights = []
    if strongest and found.state is not None:
        weights = await made.service.why.strongest(memory_id, strongest)
    used = None if found.state is None else await _fullness(made.service, found.state)
    made_by = None if found.adapter is None else found.adapter.fingerprint
    return InspectionBody.model_validate(
        {
            **head_fields(found.overview.head),
            **asdict(found.overview.sizes),
            "fingerprint": made_by and {"digest": made_by.digest, **asdict(made_by)},
            "fullness": used and asdict(used),
            "by_session": [session_fields(one) for one in found.sessions],
            "quarantined": [quarantined_fields(chunk) for chunk in found.quarantined],
            "strongest": [_said(one.turn) | {"share": one.share} for one in weights],
        }
    )


@router.post("/why")
async def why(user: str, body: WhyBody, who: Reader, made: Made) -> ReasonsBody:
    """Which turns an answer rests on: what it loses when they are left out one by one.

    The base model reads every chunk of the memory for that, some of them several times.
    """
    memory_id, answer = who.memory(user), body.answer
    await made.service.queue.settled(memory_id, SETTLE_S)
    if answer is None:
        answer = (await made.service.ask.question(memory_id, body.question)).answer
    found = await made.service.why.claim(memory_id, body.question, answer)
    told = found.turns[: body.turns]
    return ReasonsBody.model_validate(
        {
            "user": user,
            "question": body.question,
            "answer": answer,
            "version": found.version,
            "log_likelihood": found.log_likelihood,
            "log_likelihood_without_memory": found.without_memory,
            "turns": [
                _said(one.turn)
                | {"loss": one.loss, "chunk_loss": one.chunk_loss, "share": one.share}
                for one in told
            ],
        }
    )


@router.get("/profile")
async def show_profile(user: str, who: Reader, made: Made) -> ProfileBody:
    """What the memory says it knows about the person, each line with the turn that says so.

    The adapter is asked some thirty questions; an answer is told where a turn of the person names
    the topic and holds the answer. Takes seconds.
    """
    lines = await made.service.profile.of(who.memory(user))
    data = [asdict(line) | {"turn": _said(line.turn)} for line in lines]
    return ProfileBody.model_validate({"user": user, "lines": data})


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


def _said(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "session": turn.session,
        "role": turn.role.value,
        "time": turn.time,
        "text": turn.text,
    }


def quarantined_fields(chunk: QuarantinedChunk) -> dict[str, Any]:
    """A quarantined chunk as it is told."""
    return {
        "session": chunk.session,
        "chunk": chunk.digest,
        "turn_ids": list(chunk.turn_ids),
        "reason": chunk.reason,
        "since": chunk.since,
    }


async def _fullness(service: Service, state: StoredState) -> Strength | None:
    if state.fingerprint.generator != service.encoder.fingerprint.generator:
        return None
    return await service.compute.run(fullness, service.generator, state.total())
