"""`/v1/memory/users/...`: what the services offer about memories."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.schemas import TurnsBody
from memory_service.domain.keys import Scope
from memory_service.domain.records import Head, StoredAdapter
from memory_service.domain.turns import new_turn

router = APIRouter(prefix="/v1/memory/users", tags=["memory"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "reading memories"))]
Writer = Annotated[Caller, Depends(allowed(Scope.WRITE, "appending turns"))]
Admin = Annotated[Caller, Depends(allowed(Scope.ADMIN, "deleting memories"))]
Made = Annotated[Parts, Depends(parts)]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("")
async def list_users(who: Reader, made: Made, after: str = "", limit: Limit = 100) -> Any:
    """Users by name; the next page begins after `next`."""
    heads = await made.service.store.inspect.users(who.tenant, after=after, limit=limit)
    return {
        "data": [_head(head) for head in heads],
        "next": heads[-1].memory_id.user if len(heads) == limit else None,
    }


@router.get("/{user}")
async def show_user(user: str, who: Reader, made: Made) -> Any:
    """One user's memory in numbers."""
    overview = await made.service.store.inspect.user(who.memory(user))
    return _head(overview.head) | asdict(overview.sizes)


@router.delete("/{user}")
async def forget_user(user: str, who: Admin, made: Made) -> Any:
    """Delete turns, state and adapters of a user; answers that use them end. Tells what went."""
    memory_id = who.memory(user)
    deleted = await made.service.store.forget.user(memory_id)
    made.service.exchange.forgotten(memory_id)
    return {"user": user, "deleted": dict(deleted)}


@router.post("/{user}/turns")
async def append_turns(user: str, body: TurnsBody, who: Writer, made: Made) -> Any:
    """Store turns, all or none. They are durable when this answers, and encoded after it."""
    memory_id = who.memory(user)
    turns = [
        new_turn(one.text, role=one.role, session=one.session, time=one.time, turn_id=one.id)
        for one in body.turns
    ]
    undated = {turn.id for turn, one in zip(turns, body.turns, strict=True) if one.time is None}
    stored = await made.service.store.append.turns(memory_id, turns, undated)
    await made.service.queue.add(memory_id)
    return {"user": user, "new": stored.new, "known": stored.known, "ids": [t.id for t in turns]}


@router.get("/{user}/turns")
async def list_turns(
    user: str, who: Reader, made: Made, session: str | None = None, limit: Limit = 100
) -> Any:
    """The newest turns in the order in which they were said."""
    kept = await made.service.store.inspect.turns(who.memory(user), session=session, limit=limit)
    return {
        "data": [
            {
                "id": one.turn.id,
                "session": one.turn.session,
                "role": one.turn.role,
                "time": one.turn.time,
                "text": one.turn.text,
                "pending": one.is_pending,
            }
            for one in kept
        ]
    }


@router.get("/{user}/adapters")
async def list_adapters(
    user: str,
    who: Reader,
    made: Made,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    limit: Limit = 100,
) -> Any:
    """Versions, newest first; the next page begins before `next`."""
    adapters = await made.service.store.inspect.adapters(
        who.memory(user), before=before, limit=limit
    )
    return {
        "data": [_adapter(adapter) for adapter in adapters],
        "next": adapters[-1].version if len(adapters) == limit else None,
    }


@router.get("/{user}/adapters/{version}")
async def show_adapter(user: str, version: int, who: Reader, made: Made) -> Any:
    """One version and the chunks it was made from."""
    recipe = await made.service.store.inspect.adapter(who.memory(user), version)
    return _adapter(recipe.adapter) | {"recipe": [asdict(chunk) for chunk in recipe.chunks]}


def _head(head: Head) -> dict[str, Any]:
    return {
        "user": head.memory_id.user,
        "version": head.version,
        "turns": head.turns,
        "pending_turns": head.pending_turns,
        "created_at": head.created_at,
    }


def _adapter(adapter: StoredAdapter) -> dict[str, Any]:
    return {
        "version": adapter.version,
        "reason": adapter.reason,
        "created_at": adapter.created_at,
        "fingerprint": adapter.fingerprint.digest,
        "state_digest": adapter.state_digest,
        "chunks": adapter.chunks,
        "turns": adapter.turns,
        "size_bytes": adapter.size_bytes,
    }
