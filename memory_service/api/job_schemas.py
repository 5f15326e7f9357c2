"""Bodies of the job routes."""

from typing import Any

from pydantic import AwareDatetime, BaseModel

from memory_service.api.memory_schemas import Documented, shown


class ReasonBody(BaseModel):
    """Why something failed; `code` is stable."""

    code: str
    message: str


class JobBody(Documented):
    """Work that goes on after the answer. `status` is running, done, failed or cancelled.

    `subject` is the user it works on, or "all users"; `done` of `total` steps. `error` is null too
    where the reason is the server's own.
    """

    model_config = shown(
        id="4f1d7a",
        kind="migrate",
        subject="ana",
        status="done",
        done=12,
        total=12,
        result={"user": "ana", "version": 8, "was_done": False},
        error=None,
        started_at="2026-03-01T18:30:00Z",
        ended_at="2026-03-01T18:30:04Z",
    )

    id: str
    kind: str
    subject: str
    status: str
    done: int
    total: int
    result: dict[str, Any] | None
    error: ReasonBody | None
    started_at: AwareDatetime
    ended_at: AwareDatetime | None


class JobsBody(BaseModel):
    """Jobs, newest first."""

    data: list[JobBody]
