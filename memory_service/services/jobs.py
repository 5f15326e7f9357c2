"""Jobs: work that takes longer than a request should, with a status to ask for.

They live in the process that does them. A restart forgets their status, and never data: each is
done whole or not at all, or goes on where it was when it is started again.
"""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial

import structlog

from memory_service.errors import MemoryServiceError, NotFound, Overloaded, StateConflict

log = structlog.get_logger()

KEPT_JOBS = 200
"""Ended jobs whose status is still told."""

RUNNING_JOBS = 16
"""Jobs at the same time; they take turns with everybody else where they compute."""

RETRY_AFTER_S = 30

Report = Callable[[int, int], None]
"""Called with steps done and steps to do."""

Work = Callable[[Report], Awaitable[Mapping[str, object]]]
"""What a job does; what it returns is its result."""


class JobStatus(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass
class Job:
    """A job of a tenant. `subject` is what it works on: one job at a time for each.

    `error` is why it failed; None also where that is nothing to tell to callers.
    """

    tenant: str
    kind: str
    subject: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: JobStatus = JobStatus.RUNNING
    done: int = 0
    total: int = 0
    result: Mapping[str, object] | None = None
    error: MemoryServiceError | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None


class Jobs:
    """Starts jobs and knows what became of the last ones. Belongs to one event loop."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[Mapping[str, object]]] = {}

    def start(self, tenant: str, kind: str, subject: str, work: Work) -> Job:
        """Begin a job; it has begun, no more, when this returns.

        Raises:
            StateConflict: another one of the same subject is running.
            Overloaded: too many are running.
        """
        for one in self._running():
            if (one.tenant, one.subject) == (tenant, subject):
                raise StateConflict(subject, f"job {one.id} ({one.kind}) is running; wait for it")
        if len(self._tasks) >= RUNNING_JOBS:
            raise Overloaded("jobs", f"{RUNNING_JOBS} are running already", RETRY_AFTER_S)
        job = Job(tenant, kind, subject)
        self._jobs[job.id] = job
        task = asyncio.create_task(_done(job, work))
        self._tasks[job.id] = task
        task.add_done_callback(partial(self._ended, job))
        return job

    def find(self, tenant: str, job_id: str) -> Job:
        """A job of a tenant.

        Raises:
            NotFound: the tenant has no such job, or it ended long ago.
        """
        job = self._jobs.get(job_id)
        if job is None or job.tenant != tenant:
            raise NotFound("job", job_id)
        return job

    def all(self, tenant: str) -> list[Job]:
        """A tenant's jobs, newest first."""
        return [job for job in reversed(self._jobs.values()) if job.tenant == tenant]

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """End a job that is running; what it has not finished is undone or can be started again.

        Raises:
            NotFound: the tenant has no such job.
        """
        job = self.find(tenant, job_id)
        await self._end(job_id)
        return job

    async def stop(self) -> None:
        """Cancel all that is running."""
        for job_id in list(self._tasks):
            await self._end(job_id)

    def _running(self) -> list[Job]:
        return [self._jobs[job_id] for job_id in self._tasks]

    async def _end(self, job_id: str) -> None:
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _ended(self, job: Job, task: asyncio.Task[Mapping[str, object]]) -> None:
        """Note what became of a job; also of one that was cancelled before its first step."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            job.status = JobStatus.CANCELLED
        elif error is None:
            job.status, job.result = JobStatus.DONE, task.result()
        else:
            job.status = JobStatus.FAILED
            if isinstance(error, MemoryServiceError):
                job.error = error
            else:
                log.error("job_failed", kind=job.kind, error=type(error).__name__)
        job.ended_at = datetime.now(UTC)
        del self._tasks[job.id]
        self._jobs.move_to_end(job.id)
        ended = [one.id for one in self._jobs.values() if one.ended_at is not None]
        for job_id in ended[: max(0, len(ended) - KEPT_JOBS)]:
            del self._jobs[job_id]


async def _done(job: Job, work: Work) -> Mapping[str, object]:
    def report(done: int, total: int) -> None:
        job.done, job.total = done, total

    return await work(report)
