"""Bodies of what the operator set for a tenant."""

from pydantic import BaseModel

from memory_service.api.memory_schemas import shown


class UsageBody(BaseModel):
    """What a tenant keeps."""

    users: int
    turns: int
    text_bytes: int


class LimitsBody(BaseModel):
    """The most that a tenant may keep; null is no limit."""

    users: int | None
    turns: int | None
    text_bytes: int | None


class QuotaBody(BaseModel):
    """What a tenant keeps and may keep."""

    model_config = shown(
        kept={"users": 12, "turns": 3410, "text_bytes": 402113},
        limits={"users": None, "turns": 100000, "text_bytes": None},
    )

    kept: UsageBody
    limits: LimitsBody


class ExpiryBody(BaseModel):
    """How many days after it was said a turn without a date of its own is forgotten."""

    model_config = shown(expire_after_days=90)

    expire_after_days: int | None
