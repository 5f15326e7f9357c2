"""`/v1/memory/users/...`: whose memories there are, their state and history, and questions."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.memory_schemas import (
    AskBody,
    DeletedBody,
    HistoryPage,
    OverviewBody,
    ReceiptBody,
    ReplyBody,
    RollbackBody,
    SessionsPage,
    StateBody,
    UsersPage,
)
from memory_service.api.paging import tagged
from memory_service.api.routes.adapters import adapter_fields
from memory_service.domain.keys import Scope
from memory_service.domain.records import Head, Removal, SessionHead
from memory_service.domain.turns import parse_time
from memory_service.errors import InvalidInput
from memory_service.services.exchange import SETTLE_S

router = APIRouter(prefix="/v1/memory/users", tags=["memory"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "reading memories"))]
Writer = Annotated[Caller, Depends(allowed(Scope.WRITE, "changing memories"))]
Admin = Annotated[Caller, Depends(allowed(Scope.ADMIN, "deleting memories"))]
Made = Annotated[Parts, Depends(parts)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[int | None, Query(ge=1, le=2**31 - 1)]


@router.get("")
async def list_users(who: Reader, made: Made, after: str = "", limit: Limit = 100) -> UsersPage:
    """Users by name; the next page begins after `next`."""
    heads = await made.service.store.inspect.users(who.tenant, after=after, limit=limit)
    return UsersPage.model_validate(
        {
            "data": [head_fields(head) for head in heads],
            "next": heads[-1].memory_id.user if len(heads) == limit else None,
        }
    )


@router.get("/{user}", response_model=OverviewBody)
async def show_user(user: str, request: Request, who: Reader, made: Made) -> Response:
    """One user's memory in numbers, with an ETag."""
    overview = await made.service.store.inspect.user(who.memory(user))
    body = head_fields(overview.head) | asdict(overview.sizes)
    return tagged(request, OverviewBody.model_validate(body))


@router.delete("/{user}")
async def forget_user(user: str, who: Admin, made: Made) -> DeletedBody:
    """Delete turns, state and adapters of a user; answers that use them end. Tells what went."""
    memory_id = who.memory(user)
    deleted = await made.service.store.forget.user(memory_id)
    made.service.exchange.forgotten(memory_id)
    return DeletedBody(user=user, deleted=dict(deleted))


@router.get("/{user}/sessions")
async def list_sessions(
    user: str, who: Reader, made: Made, after: str = "", limit: Limit = 100
) -> SessionsPage:
    """A user's sessions by name; the next page begins after `next`."""
    heads = await made.service.store.inspect.sessions(who.memory(user), after=after, limit=limit)
    following = heads[-1].name if len(heads) == limit else None
    data = [session_fields(head) for head in heads]
    return SessionsPage.model_validate({"data": data, "next": following})


@router.get("/{user}/state", response_model=StateBody)
async def show_state(user: str, request: Request, who: Reader, made: Made) -> Response:
    """What the newest adapter is read out of, with an ETag; 404 before anything was encoded."""
    memory_id, inspect = who.memory(user), made.service.store.inspect
    adapter = (await inspect.adapter(memory_id)).adapter
    sizes = (await inspect.user(memory_id)).sizes
    parts_of_it = {"digest": adapter.fingerprint.digest, **asdict(adapter.fingerprint)}
    body = StateBody(
        version=adapter.version,
        digest=adapter.state_digest,
        fingerprint=parts_of_it,
        size_bytes=sizes.state_bytes,
        chunks=adapter.chunks,
        turns=adapter.turns,
    )
    return tagged(request, body)


@router.get("/{user}/history", response_model=HistoryPage)
async def show_history(  # one parameter per part of the request
    user: str,
    request: Request,
    who: Reader,
    made: Made,
    *,
    before: Before = None,
    limit: Limit = 20,
) -> Response:
    """How a memory changed, newest version first, with an ETag."""
    entries = await made.service.store.inspect.history(who.memory(user), before=before, limit=limit)
    data = [
        adapter_fields(one.adapter) | {"added": one.added, "removed": one.removed}
        for one in entries
    ]
    following = entries[-1].adapter.version if len(entries) == limit else None
    return tagged(request, HistoryPage.model_validate({"data": data, "next": following}))


@router.post("/{user}/rollback")
async def roll_back(user: str, body: RollbackBody, who: Writer, made: Made) -> ReceiptBody:
    """Make the memory hold the turns of an earlier version, or what was said until a time.

    It is a new version. The other turns are kept but set aside; rolling back to a version that
    holds them brings them back. What was forgotten does not come back.
    """
    memory_id, roll = who.memory(user), made.service.rollback
    if body.as_of is not None and body.version is None:
        receipt = await roll.as_of(memory_id, parse_time(body.as_of))
    elif body.version is not None and body.as_of is None:
        receipt = await roll.version(memory_id, body.version)
    else:
        raise InvalidInput("version", body.version, "give a version or as_of, one of the two")
    if receipt.removal is Removal.WITHDRAWN:
        await made.service.queue.add(memory_id)
    return ReceiptBody.of(user, receipt)


@router.post("/{user}/ask")
async def ask(user: str, body: AskBody, who: Reader, made: Made) -> ReplyBody:
    """The memory's answer as plain text and how sure it is, for assistants on closed models.

    Nothing is stored. Turns appended just before are waited for, up to five seconds.
    """
    memory_id = who.memory(user)
    await made.service.queue.settled(memory_id, SETTLE_S)
    reply = await made.service.ask.question(memory_id, body.question, body.version, body.max_tokens)
    return ReplyBody(
        user=user,
        answer=reply.answer,
        confidence=reply.confidence,
        log_likelihood=reply.log_likelihood,
        log_likelihood_without_memory=reply.without_memory,
        version=reply.version,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )


def head_fields(head: Head) -> dict[str, Any]:
    """Where a memory stands, as it is told."""
    return {
        "user": head.memory_id.user,
        "version": head.version,
        "turns": head.turns,
        "pending_turns": head.pending_turns,
        "quarantined_turns": head.quarantined_turns,
        "created_at": head.created_at,
    }


def session_fields(head: SessionHead) -> dict[str, Any]:
    """A session as it is told."""
    return {
        "session": head.name,
        "turns": head.turns,
        "pending": head.is_pending,
        "first_at": head.first_at,
        "last_at": head.last_at,
    }
