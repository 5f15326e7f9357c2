"""`/v1/memory/jobs`, and what begins one: import, migrate, rebuild."""

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from memory_service.api.deps import Caller, Parts, allowed, parts
from memory_service.api.downloads import ZIP
from memory_service.api.errors import body_of
from memory_service.api.job_schemas import JobBody, JobsBody
from memory_service.domain.keys import Scope
from memory_service.domain.memory import MemoryId
from memory_service.errors import InvalidInput, MemoryServiceError, Unavailable
from memory_service.services.jobs import Job, Report, Work

router = APIRouter(prefix="/v1/memory", tags=["jobs"])

Reader = Annotated[Caller, Depends(allowed(Scope.READ, "reading jobs"))]
Writer = Annotated[Caller, Depends(allowed(Scope.WRITE, "importing memories"))]
Admin = Annotated[Caller, Depends(allowed(Scope.ADMIN, "encoding memories anew"))]
Made = Annotated[Parts, Depends(parts)]

PAGE_USERS = 500
BEGUN: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "The job has begun",
        "headers": {"Location": {"description": "its status", "schema": {"type": "string"}}},
    }
}


@router.get("/jobs")
async def list_jobs(who: Reader, made: Made) -> JobsBody:
    """The tenant's running jobs and the last ended ones, newest first; of this process."""
    return JobsBody(data=[_told(job) for job in made.service.jobs.all(who.tenant)])


@router.get("/jobs/{job_id}")
async def show_job(job_id: str, who: Reader, made: Made) -> JobBody:
    """Where a job stands, and what came of it."""
    return _told(made.service.jobs.find(who.tenant, job_id))


@router.delete("/jobs/{job_id}")
async def cancel_job(job_id: str, who: Admin, made: Made) -> JobBody:
    """End a job; what it has not finished is undone, or done when it is started again."""
    return _told(await made.service.jobs.cancel(who.tenant, job_id))


@router.post(
    "/users/{user}/import",
    status_code=202,
    responses=BEGUN,
    openapi_extra={"requestBody": {"required": True, "content": ZIP}},
)
async def import_memory(
    user: str, request: Request, response: Response, who: Writer, made: Made
) -> JobBody:
    """Make a memory of an archive of `export`; the user must be new. A job.

    The archive is checked before this answers: one that is damaged, hostile or of another tenant is
    refused whole.
    """
    memory_id, service = who.memory(user), made.service
    folder = Path(tempfile.mkdtemp(prefix="memory-import-"))
    try:
        file = folder / "memory.zip"
        await _received(request, file)
        archive = await asyncio.to_thread(service.store.read_archive, file)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if archive.memory_id.tenant != memory_id.tenant:
        raise InvalidInput("archive", "the archive", "is not of the key's tenant")

    async def work(report: Report) -> Mapping[str, object]:
        imported = await service.import_memory.archive(archive, memory_id, report)
        return {
            "user": user,
            "version": imported.version,
            "turns": imported.turns,
            "state_digest": imported.state_digest,
            "encoded_anew": imported.is_reencoded,
        }

    return _begun(made, who, response, "import", user, work)


@router.post("/users/{user}/migrate", status_code=202, responses=BEGUN)
async def migrate_memory(user: str, response: Response, who: Admin, made: Made) -> JobBody:
    """Encode a user's kept turns for the running generator and base model. A job.

    Until it is done the old version stays; nothing is done where there is such a version already.
    """
    memory_id = who.memory(user)
    await made.service.store.inspect.user(memory_id)

    async def work(report: Report) -> Mapping[str, object]:
        return {"user": user, **asdict(await made.service.migrate.user(memory_id, report))}

    return _begun(made, who, response, "migrate", user, work)


@router.post("/users/{user}/rebuild", status_code=202, responses=BEGUN)
async def rebuild_memory(user: str, response: Response, who: Admin, made: Made) -> JobBody:
    """Make a user's state and adapter anew from the kept turns. A job."""
    memory_id = who.memory(user)
    await made.service.store.inspect.user(memory_id)

    async def work(report: Report) -> Mapping[str, object]:
        return {"user": user, "version": await made.service.remember.rebuild(memory_id, report)}

    return _begun(made, who, response, "rebuild", user, work)


@router.post("/migrate", status_code=202, responses=BEGUN)
async def migrate_everybody(response: Response, who: Admin, made: Made) -> JobBody:
    """Migrate all users of the tenant, one after the other. A job.

    Whoever cannot be is told in its result and keeps nobody else waiting; started again, it goes on
    where it was.
    """

    async def work(report: Report) -> Mapping[str, object]:
        ids = await _everybody(made, who.tenant)
        done, failed = 0, []
        for number, memory_id in enumerate(ids, start=1):
            try:
                done += not (await made.service.migrate.user(memory_id)).was_done
            except MemoryServiceError as error:
                failed.append({"user": memory_id.user, **_reason(error)})
            report(number, len(ids))
        return {"users": len(ids), "migrated": done, "failed": failed}

    return _begun(made, who, response, "migrate", "all users", work)


def _begun(  # one parameter per part of a job
    made: Parts, who: Caller, response: Response, kind: str, subject: str, work: Work
) -> JobBody:
    job = made.service.jobs.start(who.tenant, kind, subject, work)
    response.headers["Location"] = f"/v1/memory/jobs/{job.id}"
    return _told(job)


def _told(job: Job) -> JobBody:
    return JobBody.model_validate(
        {
            "id": job.id,
            "kind": job.kind,
            "subject": job.subject,
            "status": job.status.value,
            "done": job.done,
            "total": job.total,
            "result": job.result,
            "error": None if job.error is None else _reason(job.error),
            "started_at": job.started_at,
            "ended_at": job.ended_at,
        }
    )


def _reason(error: MemoryServiceError) -> dict[str, object]:
    told: Any = body_of(error)["error"]
    return {"code": told["code"], "message": told["message"]}


async def _received(request: Request, file: Path) -> None:
    """Write a body to a file as it comes."""
    try:
        with file.open("wb") as target:
            async for part in request.stream():
                await asyncio.to_thread(target.write, part)
    except OSError as error:
        raise Unavailable("disk", f"no room for the archive ({error.strerror})") from error


async def _everybody(made: Parts, tenant: str) -> list[MemoryId]:
    ids: list[MemoryId] = []
    while True:
        after = ids[-1].user if ids else ""
        inspect = made.service.store.inspect
        page = await inspect.users(tenant, after=after, limit=PAGE_USERS)
        ids += [head.memory_id for head in page]
        if len(page) < PAGE_USERS:
            return ids
