"""`/v1/memory/quota` and `/v1/memory/expiry`: what the operator set for the key's tenant."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.limit_schemas import ExpiryBody, QuotaBody
from memory_service.domain.keys import Scope
from memory_service.domain.quotas import Quota, Usage
from memory_service.errors import NotFound

router = APIRouter(prefix="/v1/memory", tags=["memory"])


Reader = Annotated[Caller, Depends(allowed(Scope.READ, "reading memories"))]
Made = Annotated[Parts, Depends(parts)]


@router.get("/quota")
async def show_quota(who: Reader, made: Made) -> QuotaBody:
    """What the tenant keeps, and its limits; the operator sets them: `memory tenants quota`."""
    try:
        limits, kept = await made.service.store.quotas.show(who.tenant)
    except NotFound:  # nothing was ever stored of it
        limits, kept = Quota(), Usage(0, 0, 0)
    return QuotaBody.model_validate({"kept": asdict(kept), "limits": asdict(limits)})


@router.get("/expiry")
async def show_expiry(who: Reader, made: Made) -> ExpiryBody:
    """How long the tenant's turns are kept; the operator sets it: `memory tenants expiry`."""
    try:
        days = await made.service.store.expiry.rule(who.tenant)
    except NotFound:  # nothing was ever stored of it
        days = None
    return ExpiryBody(expire_after_days=days)
