"""`/v1/memory/users/{user}/export` and `/merge`: memories on the move."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import FileResponse

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.downloads import ZIP, zip_answer
from memory_service.api.memory_schemas import MergeBody, MergedBody
from memory_service.domain.keys import Scope

router = APIRouter(prefix="/v1/memory/users/{user}", tags=["memory"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "reading memories"))]
Admin = Annotated[Caller, Depends(allowed(Scope.ADMIN, "deleting memories"))]
Made = Annotated[Parts, Depends(parts)]


@router.get("/export", response_class=FileResponse, responses={200: {"content": ZIP}})
async def export_memory(user: str, who: Reader, made: Made) -> Response:
    """All of a memory in one archive: turns, tombstones, newest state and adapter.

    Any program can read it; `memory users import FILE` makes the same memory of it, bit for bit.
    """
    folder = Path(tempfile.mkdtemp(prefix="memory-export-"))
    try:
        file = folder / "memory.zip"
        await made.service.store.export_memory.archive(who.memory(user), file)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return zip_answer(file, f"{user}.zip")


@router.post("/merge")
async def merge_memory(user: str, body: MergeBody, who: Admin, made: Made) -> MergedBody:
    """Add another user's turns to this one's; the other's memory stays as it is.

    Order and repetition do not matter. What one side forgot is forgotten here too: answers that use
    this memory end where that erases something. 409, and nothing is changed, where both know a turn
    with different content.
    """
    memory_id = who.memory(user)
    merged = await made.service.merge.users(memory_id, who.memory(body.other))
    if merged.erased:
        made.service.exchange.forgotten(memory_id)
    return MergedBody.model_validate({"user": user, **asdict(merged)})
