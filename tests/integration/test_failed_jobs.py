"""JobQueue's dead letters on a real Redis: the list, its pages, damaged records, removal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.queue.job import FailedJob
from pipeline.queue.queue import JobQueue

BASE = "pipeline:{ai-processing}:"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOON_MS = 1_769_860_800_000


@pytest.fixture
def queue(io_loop: IOLoop, redis_url: str) -> Iterator[JobQueue]:
    queue = JobQueue(redis_url)
    yield queue
    io_loop.run_sync(queue.close)


def job_id(number: int) -> str:
    return f"ai-processing:{number:024x}"


def add_dead_letter(redis: Redis, number: int, *, after_ms: int = 0, **fields: Any) -> str:
    """Write a dead letter as a step of the queue does.

    after_ms: how long after noon the job failed.
    """
    record = {"enqueuedAt": NOON_MS - 5000, "requestId": "r-1", "data": {"assetId": f"{number:024x}"}}
    state = {"state": "failed", "attempt": 3, "stalls": 1, "error": "no"}
    redis.set(BASE + "record:" + job_id(number), json.dumps(record))
    redis.set(BASE + "state:" + job_id(number), json.dumps(state | fields))
    redis.zadd(BASE + "failed", {job_id(number): NOON_MS + after_ms})
    return job_id(number)


def numbers(jobs: Sequence[FailedJob]) -> list[int]:
    return [int(job.id.rpartition(":")[2], 16) for job in jobs]


@pytest.mark.gen_test
async def test_failed_job_has_the_fields_of_its_record(queue: JobQueue, redis: Redis) -> None:
    """A dead letter has payload, reason, counts and times. The id of no job, or of a waiting job, gives None."""
    add_dead_letter(redis, 1, after_ms=250)
    job = await queue.failed_job(job_id(1))
    assert job == FailedJob(
        id=job_id(1),
        failed_at=NOON + timedelta(milliseconds=250),
        data={"assetId": f"{1:024x}"},
        error="no",
        attempts=3,
        stalls=1,
        enqueued_at=NOON - timedelta(seconds=5),
        request_id="r-1",
    )
    await queue.enqueue(job_id(2), {})
    assert await queue.failed_job(job_id(2)) is None
    assert await queue.failed_job(job_id(3)) is None


@pytest.mark.gen_test
async def test_failed_jobs_come_newest_first_in_pages(queue: JobQueue, redis: Redis) -> None:
    """Each page starts where the previous page ended, also between jobs that failed in one millisecond."""
    assert (await queue.failed_jobs(2)).next_after is None
    for number, after_ms in enumerate([0, 1, 1, 1, 1, 1, 2]):
        add_dead_letter(redis, number, after_ms=after_ms)
    after, seen, left = None, [], []
    while True:
        page = await queue.failed_jobs(2, after)
        seen.append(numbers(page.jobs))
        left.append(page.older)
        if (after := page.next_after) is None:
            break
    assert seen == [[6, 5], [4, 3], [2, 1], [0]]
    assert left == [5, 3, 1, 0]


@pytest.mark.gen_test
@pytest.mark.parametrize("equal", [True, False], ids=["one millisecond", "apart"])
async def test_failed_jobs_keep_their_place_while_the_list_changes(queue: JobQueue, redis: Redis, equal: bool) -> None:
    """No job is skipped or repeated when listed and unlisted jobs are removed and newer jobs are added."""
    for number in range(1, 13):
        add_dead_letter(redis, number, after_ms=0 if equal else number)
    first = await queue.failed_jobs(4)
    assert numbers(first.jobs) == [12, 11, 10, 9]
    assert await queue.remove_failed(job_id(11), job_id(9), job_id(7)) == 3
    add_dead_letter(redis, 20, after_ms=20)
    second = await queue.failed_jobs(4, first.next_after)
    assert numbers(second.jobs) == [8, 6, 5, 4]
    for number in (12, 10, 8, 6, 5, 4):
        await queue.remove_failed(job_id(number))
    third = await queue.failed_jobs(4, second.next_after)
    assert (numbers(third.jobs), third.older) == ([3, 2, 1], 0)


@pytest.mark.gen_test
async def test_damaged_records_are_listed_with_what_is_known(queue: JobQueue, redis: Redis) -> None:
    """A record may be missing, of another type, no JSON, no UTF-8, or have broken numbers: it can still be removed."""
    expected = [add_dead_letter(redis, number, after_ms=-number) for number in range(1, 6)]
    missing, other_type, no_json, no_text, no_numbers = expected
    for job in (missing, other_type):
        redis.delete(BASE + "record:" + job, BASE + "state:" + job)
    redis.lpush(BASE + "record:" + other_type, "x")
    redis.lpush(BASE + "state:" + other_type, "x")
    redis.set(BASE + "record:" + no_json, "{broken")
    redis.set(BASE + "record:" + no_text, b'{"data": {"\xff": "\xfe"')
    redis.set(BASE + "state:" + no_text, b'{"state": "failed", "attempt": 3, "error": "caf\xe9"}')
    redis.set(BASE + "record:" + no_numbers, json.dumps({"enqueuedAt": 10**30, "data": [], "requestId": {}}))
    redis.set(BASE + "state:" + no_numbers, '{"state": "failed", "attempt": "-", "stalls": 1.5, "error": "no"}')
    jobs = list((await queue.failed_jobs(10)).jobs)
    assert [job.id for job in jobs] == expected
    nothing = ({}, "", 0, 0, None, "")
    for job in jobs[:2]:
        assert (job.data, job.error, job.attempts, job.stalls, job.enqueued_at, job.request_id) == nothing
    assert [(dict(job.data), job.error) for job in jobs[2:4]] == [({}, "no"), ({}, "caf\N{REPLACEMENT CHARACTER}")]
    assert (jobs[4].attempts, jobs[4].stalls, jobs[4].enqueued_at, jobs[4].error) == (0, 0, None, "no")
    assert await queue.remove_failed(*(job.id for job in jobs)) == 5
    assert redis.keys("*") == []


@pytest.mark.gen_test
async def test_only_dead_letters_are_removed(queue: JobQueue, redis: Redis) -> None:
    """A dead letter is removed once, with its record. A waiting job stays, also one with the id of a dead letter."""
    add_dead_letter(redis, 1)
    assert (await queue.remove_failed(job_id(1)), await queue.remove_failed(job_id(1))) == (1, 0)
    assert redis.keys("*") == []
    await queue.enqueue(job_id(2), {})
    assert await queue.remove_failed(job_id(2)) == 0
    # Its record was lost, and then the job was enqueued a second time.
    redis.zadd(BASE + "failed", {job_id(2): NOON_MS})
    assert await queue.remove_failed(job_id(2)) == 1
    assert (await queue.fields(job_id(2)))["state"] == "waiting"
    assert (await queue.stats()).failed == 0
