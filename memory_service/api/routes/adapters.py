"""`/v1/memory/users/{user}/adapters`: versions, what changed between them, and PEFT files."""

import asyncio
import hashlib
import shutil
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.downloads import ZIP, zip_answer
from memory_service.api.memory_schemas import AdaptersPage, DifferenceBody, RecipeBody
from memory_service.api.paging import etag, revalidated, tagged, unchanged
from memory_service.bootstrap import adapter_distance
from memory_service.domain.keys import Scope
from memory_service.domain.records import StoredAdapter
from memory_service.errors import Unavailable
from memory_service.services.export import Exported

router = APIRouter(prefix="/v1/memory/users/{user}/adapters", tags=["adapters"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "reading adapters"))]
Made = Annotated[Parts, Depends(parts)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[int | None, Query(ge=1, le=2**31 - 1)]


@router.get("", response_model=AdaptersPage)
async def list_adapters(  # one parameter per part of the request
    user: str,
    request: Request,
    who: Reader,
    made: Made,
    *,
    before: Before = None,
    limit: Limit = 100,
) -> Response:
    """Versions, newest first; the next page begins before `next`. With an ETag."""
    adapters = await made.service.store.inspect.adapters(
        who.memory(user), before=before, limit=limit
    )
    page = {
        "data": [adapter_fields(adapter) for adapter in adapters],
        "next": adapters[-1].version if len(adapters) == limit else None,
    }
    return tagged(request, AdaptersPage.model_validate(page))


@router.get("/{version}", response_model=RecipeBody)
async def show_adapter(
    user: str, version: int, request: Request, who: Reader, made: Made
) -> Response:
    """One version and the chunks it was made from, with an ETag."""
    recipe = await made.service.store.inspect.adapter(who.memory(user), version)
    body = adapter_fields(recipe.adapter) | {"recipe": [asdict(chunk) for chunk in recipe.chunks]}
    return tagged(request, RecipeBody.model_validate(body))


@router.get("/{first}/diff/{second}", response_model=DifferenceBody)
async def diff_adapters(  # one parameter per part of the request
    user: str, first: int, second: int, *, request: Request, who: Reader, made: Made
) -> Response:
    """Turns that only one of two versions has, and how far apart they are in each module."""
    found = await made.service.store.inspect.difference(who.memory(user), first, second)
    distance = await asyncio.to_thread(adapter_distance, made.settings, found.first, found.second)
    body = {
        "versions": [first, second],
        "added": found.added,
        "removed": found.removed,
        "distance": None if distance is None else asdict(distance),
    }
    return tagged(request, DifferenceBody.model_validate(body))


@router.get("/{version}/peft", response_class=FileResponse, responses={200: {"content": ZIP}})
async def download_peft(  # one parameter per part of the request
    user: str,
    version: int,
    *,
    request: Request,
    who: Reader,
    made: Made,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Response:
    """The newest version as a LoRA that peft and vLLM load: a zip of its two files, with an ETag.

    Only the newest version's state is kept, and LoRA factors are made from the state.
    """
    memory_id = who.memory(user)
    adapter = (await made.service.store.inspect.adapter(memory_id, version)).adapter
    made_from = f"{adapter.version} {adapter.state_digest} {dtype}"
    tag = etag(hashlib.sha256(made_from.encode()).hexdigest())
    known = unchanged(request, tag)
    if known is not None:
        return known
    folder = Path(tempfile.mkdtemp(prefix="memory-peft-"))
    try:
        target = folder / "adapter"
        exported = await made.service.export.lora(memory_id, version, target, dtype)
        file = await asyncio.to_thread(_zipped, exported)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return zip_answer(file, f"{user}@{exported.version}.zip", revalidated(tag))


def _zipped(exported: Exported) -> Path:
    """One file of an exported folder, beside it."""
    file = exported.directory.with_suffix(".zip")
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for one in sorted(exported.directory.iterdir()):
                archive.write(one, one.name)
    except OSError as error:
        raise Unavailable("disk", f"no room for the archive ({error.strerror})") from error
    return file


def adapter_fields(adapter: StoredAdapter) -> dict[str, Any]:
    """A version as it is told."""
    return {
        "version": adapter.version,
        "reason": adapter.reason,
        "created_at": adapter.created_at,
        "fingerprint": adapter.fingerprint.digest,
        "state_digest": adapter.state_digest or None,
        "chunks": adapter.chunks,
        "turns": adapter.turns,
        "size_bytes": adapter.size_bytes,
    }
