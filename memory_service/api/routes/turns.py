"""`/v1/memory/users/{user}/turns` and what takes turns back."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.memory_schemas import (
    AppendedBody,
    EditBody,
    EditedBody,
    ForgetBody,
    FoundBody,
    FoundTurnsPage,
    KeepBody,
    KeptTurnBody,
    KeptUntilBody,
    ReceiptBody,
    TurnsBody,
    TurnsPage,
)
from memory_service.api.paging import cursor_of, place_of
from memory_service.domain.keys import Scope
from memory_service.domain.memory import MemoryId
from memory_service.domain.turns import check_name, new_turn, parse_time
from memory_service.errors import NotFound
from memory_service.services.forget import Selection
from memory_service.services.inspect import KeptTurn

router = APIRouter(prefix="/v1/memory/users/{user}", tags=["turns"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "reading turns"))]
Writer = Annotated[Caller, Depends(allowed(Scope.WRITE, "appending turns"))]
Admin = Annotated[Caller, Depends(allowed(Scope.ADMIN, "forgetting turns"))]
Made = Annotated[Parts, Depends(parts)]
Limit = Annotated[int, Query(ge=1, le=1000)]

SHOWN_TURNS = 100


@router.post("/turns")
async def append_turns(user: str, body: TurnsBody, who: Writer, made: Made) -> AppendedBody:
    """Store turns, all or none. They are durable when this answers, and encoded after it."""
    memory_id = who.memory(user)
    turns = [
        new_turn(
            one.text,
            role=one.role,
            session=one.session,
            time=one.time,
            turn_id=one.id,
            expires_at=one.expires_at,
        )
        for one in body.turns
    ]
    undated = {turn.id for turn, one in zip(turns, body.turns, strict=True) if one.time is None}
    stored = await made.service.store.append.turns(memory_id, turns, undated)
    await made.service.queue.add(memory_id)
    return AppendedBody(
        user=user,
        new=stored.new,
        known=stored.known,
        forgotten=stored.forgotten,
        ids=[turn.id for turn in turns],
    )


@router.get("/turns")
async def list_turns(  # one parameter per part of the request
    user: str,
    who: Reader,
    made: Made,
    *,
    session: str | None = None,
    before: Annotated[str | None, Query(max_length=2_000)] = None,
    limit: Limit = 100,
) -> TurnsPage:
    """The newest turns in the order in which they were said; the page before begins at `next`."""
    kept = await made.service.store.inspect.turns(
        who.memory(user),
        session=session,
        before=None if before is None else place_of(before),
        limit=limit,
    )
    following = cursor_of(kept[0].turn) if len(kept) == limit else None
    return TurnsPage.model_validate({"data": [_kept(one) for one in kept], "next": following})


@router.get("/search")
async def search_turns(  # one parameter per part of the request
    user: str,
    words: Annotated[str, Query(min_length=1, max_length=2_000)],
    who: Reader,
    made: Made,
    *,
    before: str | None = None,
    limit: Limit = 20,
) -> FoundTurnsPage:
    """Turns that hold all words, newest first: words, "phrases" and beginnings (`bisc*`)."""
    kept = await made.service.store.inspect.search(
        who.memory(user), words, before=before, limit=limit
    )
    following = kept[-1].turn.id if len(kept) == limit else None
    data = [_kept(one) for one in kept]
    return FoundTurnsPage.model_validate({"data": data, "next": following})


@router.get("/turns/{turn_id:path}")
async def show_turn(user: str, turn_id: str, who: Reader, made: Made) -> KeptTurnBody:
    """One turn."""
    memory_id = who.memory(user)
    kept = await made.service.store.inspect.turn(memory_id, check_name("id", turn_id))
    return KeptTurnBody.model_validate(_kept(kept))


@router.patch("/turns/{turn_id:path}")
async def edit_turn(user: str, turn_id: str, body: EditBody, who: Admin, made: Made) -> EditedBody:
    """Replace what a turn says: the old text is forgotten, the new one remembered, in one step.

    Session, role and time stay. The new text has a new id; the old one stays forgotten.
    """
    memory_id = who.memory(user)
    new_id = uuid.uuid4().hex if body.new_id is None else body.new_id
    check_name("id", turn_id)
    receipt = await made.service.edit.turn(memory_id, turn_id, body.text, new_id)
    await made.service.exchange.taken_back(memory_id, receipt)
    return EditedBody.model_validate(ReceiptBody.of(user, receipt).model_dump() | {"id": new_id})


@router.delete("/turns/{turn_id:path}")
async def forget_turn(user: str, turn_id: str, who: Admin, made: Made) -> ReceiptBody:
    """Forget one turn for good, with a receipt."""
    memory_id = who.memory(user)
    return await _forget(user, memory_id, Selection(frozenset({check_name("id", turn_id)})), made)


@router.post("/forget")
async def forget(user: str, body: ForgetBody, who: Admin, made: Made) -> ReceiptBody:
    """Forget turns for good: ids, a session, a time, or what is in all that is given.

    Their text, what they did to the adapter and every earlier version of them go; the adapter that
    remains is that of a memory that never saw them. Answers in the making end.
    """
    return await _forget(user, who.memory(user), _selection(body), made)


@router.post("/forget/preview")
async def preview_forgetting(user: str, body: ForgetBody, who: Reader, made: Made) -> FoundBody:
    """What forgetting would take; changes nothing."""
    memory_id, store = who.memory(user), made.service.store
    found = await store.forget.find(memory_id, _selection(body))
    first = [await store.inspect.turn(memory_id, turn.id) for turn in found[:SHOWN_TURNS]]
    return FoundBody.model_validate({"turns": len(found), "data": [_kept(one) for one in first]})


@router.post("/keep")
async def keep(user: str, body: KeepBody, who: Admin, made: Made) -> KeptUntilBody:
    """Say until when turns are kept; from then on they are forgotten, as by `forget`."""
    for turn_id in body.turn_ids:
        check_name("turn_ids", turn_id)
    until = None if body.until is None else parse_time(body.until, field="until")
    await made.service.store.expiry.keep(who.memory(user), body.turn_ids, until)
    return KeptUntilBody(user=user, turn_ids=body.turn_ids, expires_at=until)


def _selection(body: ForgetBody) -> Selection:
    for turn_id in body.turn_ids:
        check_name("turn_ids", turn_id)
    if body.session is not None:
        check_name("session", body.session)
    return Selection(
        turn_ids=frozenset(body.turn_ids),
        matching=body.matching,
        session=body.session,
        since=None if body.since is None else parse_time(body.since),
        until=None if body.until is None else parse_time(body.until),
    )


async def _forget(user: str, memory_id: MemoryId, selection: Selection, made: Parts) -> ReceiptBody:
    found = await made.service.store.forget.find(memory_id, selection)
    if not found:
        raise NotFound("turn", user, "nothing that was kept is meant by this")
    ids = [turn.id for turn in found]
    receipt = await made.service.forget_turns.turns(memory_id, ids)
    await made.service.exchange.taken_back(memory_id, receipt)
    return ReceiptBody.of(user, receipt)


def _kept(one: KeptTurn) -> dict[str, Any]:
    return {
        "id": one.turn.id,
        "session": one.turn.session,
        "role": one.turn.role,
        "time": one.turn.time,
        "text": one.turn.text,
        "expires_at": one.turn.expires_at,
        "pending": one.is_pending,
        "set_aside": one.is_aside,
        "quarantined": one.is_quarantined,
    }
