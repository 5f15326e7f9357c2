"""Jobs: begun, asked for, cancelled; a tenant sees its own."""

import asyncio
from collections.abc import Mapping

import pytest

from memory_service.errors import InvalidInput, NotFound, Overloaded, StateConflict
from memory_service.services import jobs as module
from memory_service.services.jobs import Job, Jobs, JobStatus, Report


async def ended(job: Job) -> Job:
    async with asyncio.timeout(5):
        while job.ended_at is None:
            await asyncio.sleep(0)
    return job


def returning(**result: object):
    async def work(report: Report) -> Mapping[str, object]:
        report(1, 2)
        await asyncio.sleep(0)
        return result

    return work


def failing(error: BaseException):
    async def work(report: Report) -> Mapping[str, object]:
        raise error

    return work


async def forever(report: Report) -> Mapping[str, object]:
    await asyncio.Event().wait()
    return {}


async def test_a_job_tells_where_it_stands_and_what_came_of_it():
    jobs = Jobs()
    job = jobs.start("acme", "import", "ann", returning(turns=3))
    assert (job.status, job.result) == (JobStatus.RUNNING, None)
    assert await ended(job) is jobs.find("acme", job.id)
    assert (job.status, job.done, job.total, job.result) == (JobStatus.DONE, 1, 2, {"turns": 3})


async def test_why_it_failed_is_kept_where_it_may_be_told():
    jobs = Jobs()
    known = jobs.start("acme", "import", "ann", failing(InvalidInput("archive", 1, "is bad")))
    bug = jobs.start("acme", "import", "bob", failing(ZeroDivisionError("a secret")))
    for job in (known, bug):
        assert (await ended(job)).status is JobStatus.FAILED
    assert "is bad" in str(known.error)
    assert bug.error is None


async def test_a_tenant_sees_its_own_only():
    jobs = Jobs()
    mine = jobs.start("acme", "migrate", "ann", forever)
    jobs.start("other", "migrate", "ann", forever)
    assert jobs.all("acme") == [mine]
    with pytest.raises(NotFound):
        jobs.find("other", mine.id)
    with pytest.raises(NotFound):
        await jobs.cancel("other", mine.id)
    await jobs.stop()
    assert mine.status is JobStatus.CANCELLED


async def test_one_at_a_time_for_each_subject_and_not_too_many(monkeypatch):
    monkeypatch.setattr(module, "RUNNING_JOBS", 2)
    jobs = Jobs()
    first = jobs.start("acme", "migrate", "ann", forever)
    with pytest.raises(StateConflict, match=first.id):
        jobs.start("acme", "rebuild", "ann", forever)
    jobs.start("acme", "migrate", "bob", forever)
    with pytest.raises(Overloaded):
        jobs.start("acme", "migrate", "cid", forever)
    assert (await jobs.cancel("acme", first.id)).status is JobStatus.CANCELLED
    again = jobs.start("acme", "rebuild", "ann", returning())
    assert (await ended(again)).status is JobStatus.DONE
    assert (await jobs.cancel("acme", again.id)).status is JobStatus.DONE  # ended is ended
    await jobs.stop()


async def test_only_the_last_ended_ones_are_kept(monkeypatch):
    monkeypatch.setattr(module, "KEPT_JOBS", 2)
    jobs = Jobs()
    running = jobs.start("acme", "migrate", "zoe", forever)
    some = [await ended(jobs.start("acme", "import", str(n), returning())) for n in range(4)]
    assert {one.id for one in jobs.all("acme")} == {running.id, some[2].id, some[3].id}
    await jobs.stop()
