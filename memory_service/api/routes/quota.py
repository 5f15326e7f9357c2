"""`/v1/memory/quota`: what the key's tenant keeps and may keep."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.memory_schemas import QuotaBody
from memory_service.domain.keys import Scope
from memory_service.domain.quotas import Quota, Usage
from memory_service.errors import NotFound

router = APIRouter(prefix="/v1/memory", tags=["memory"])


@router.get("/quota")
async def show_quota(
    who: Annotated[Caller, Depends(allowed(Scope.READ, "reading memories"))],
    made: Annotated[Parts, Depends(parts)],
) -> QuotaBody:
    """What the tenant keeps, and its limits; the operator sets them: `memory tenants quota`."""
    try:
        limits, kept = await made.service.store.quotas.show(who.tenant)
    except NotFound:  # nothing was ever stored of it
        limits, kept = Quota(), Usage(0, 0, 0)
    return QuotaBody.model_validate({"kept": asdict(kept), "limits": asdict(limits)})
