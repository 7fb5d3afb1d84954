"""Erase, delete and the search for lost jobs with damaged records, records of version 0.1, and races."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from redis import Redis

from pipeline.assets.store import Record
from pipeline.clock import utc_now
from pipeline.queue.job import Job, NewJob
from pipeline.usecases.audit import Audit
from pipeline.usecases.erasing import KIND, Erasing
from pipeline.usecases.job_records import JobRecords
from tests.faults.asset_removal import AssetRemoval

GONE, STAYS = "a.b|c:d@e", "a.b|c:d@e2"
DEAD = {"error": "no", "attempts": 3, "stalls": 0, "enqueuedAtMs": 0}


async def nothing() -> None:
    """Take the place of the rewrite of the Redis file."""


@pytest.fixture
def erasing(removal: AssetRemoval) -> Iterator[Erasing]:
    queues = [jobs.queue for jobs in removal.removing._queues]
    yield Erasing(removal.store, removal.removing, queues, audit=Audit(removal.store), forget_history=nothing)


def job(name: str, user_id: str, *, is_named: bool, is_dead: bool) -> Record:
    """Return the record of a job of the queue `notifications`.

    is_named: the record names its user; records of version 0.1 did not.
    """
    data: dict[str, Any] = {"data": {"userId": user_id, "assetId": ""}, "requestId": "", "lane": "webhook"}
    data |= {"failed": DEAD} if is_dead else {}
    return Record("job of notifications", f"notifications:{name}", utc_now(), data, user_id if is_named else "")


@pytest.mark.fault("U15")
@pytest.mark.gen_test
async def test_erase_finds_records_without_a_user_field_and_damaged_records(
    removal: AssetRemoval, erasing: Erasing, redis: Redis
) -> None:
    """Dead letters and undelivered events of version 0.1 are erased, and so is a damaged record.

    The records of a user whose id begins with the same letters stay.
    """
    for number in range(4):
        for user_id in (GONE, STAYS):
            is_named, is_dead = bool(number & 1), bool(number & 2)
            await removal.store.put_record(job(f"{user_id}-{number}", user_id, is_named=is_named, is_dead=is_dead))
    record = [jobs.records for jobs in removal.removing._queues][1]
    later = utc_now().replace(year=9999)
    assert (await record.repair(later, None, 100))[0] == 8
    with closing(sqlite3.connect(removal.store._path)) as connection, connection:
        connection.execute("UPDATE kept SET data = '{' WHERE id = ?", (f"notifications:{GONE}-3",))
    erasure = await erasing.erase(GONE, 20)
    assert (erasure.is_done, erasure.jobs) == (True, 4)
    text = str(await removal.store.all_records(limit=100))
    assert GONE + "-" not in text and text.count(f"notifications:{STAYS}-") == 4
    names = [str(name) for name in redis.scan_iter("*notifications*:job:*")]
    assert [name for name in names if f"{GONE}-" in name] == []
    assert (await record.repair(later, None, 100))[0] == 0
    assert await removal.store.find_record(KIND, GONE) is None


@pytest.mark.fault("U14")
@pytest.mark.gen_test
async def test_damaged_record_does_not_keep_other_jobs_from_being_restored(
    removal: AssetRemoval, logs: list[Any]
) -> None:
    """Records without a payload or without the failure are skipped and logged."""
    record = JobRecords(removal.store, removal.queue, keep_failed_seconds=60, max_age_seconds=60)
    for name, data in {"1": {}, "2": {"data": {}, "failed": {}}, "3": {"data": {}, "failed": None}}.items():
        await removal.store.put_record(Record("job of ai-processing", name, utc_now(), data))
    await record.put_failed(Job("ai-processing:4", {"userId": "user-1"}, 3, 0, "lease", 0, 0), "no")
    assert (await record.repair(utc_now().replace(year=9999), None, 100)) == (1, None)
    assert [dead.id for dead in (await removal.queue.failed_jobs(10)).jobs] == ["ai-processing:4"]
    assert [line["jobId"] for line in logs if line["event"] == "kept_job_damaged"] == ["1", "2", "3"]


@pytest.mark.fault("U14")
@pytest.mark.gen_test
async def test_event_announced_during_the_delete_of_its_asset_is_removed_too(
    removal: AssetRemoval, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends after the records are read and before the document is removed."""
    asset = await removal.add()
    notifications = removal.removing._queues[1]
    event = NewJob("notifications:1", {"userId": asset.user_id, "assetId": asset.id, "notifier": "webhook"})
    delete = removal.store.delete

    async def announce_and_delete(*args: Any, **options: Any) -> Any:
        await notifications.records.put(event)
        await notifications.queue.enqueue(event.id, event.data)
        return await delete(*args, **options)

    monkeypatch.setattr(removal.store, "delete", announce_and_delete)
    await removal.removing.delete(asset.id, asset.user_id)
    assert await removal.store.records_of(asset.user_id) == []
    assert await notifications.queue.fields(event.id) == {"state": "completed"}


@pytest.mark.fault("U15")
@pytest.mark.gen_test
async def test_erase_leaves_the_record_of_a_later_erase(
    removal: AssetRemoval, erasing: Erasing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes begin to erase one user at the same moment: the record of the later one stays."""
    await removal.add()

    # Only the last pass calls this.
    async def replaced(user_id: str) -> Any:
        await removal.store.put_record(Record(KIND, user_id, utc_now(), {"id": "another"}))
        return []

    monkeypatch.setattr(removal.store, "damaged_of", replaced)
    assert not (await erasing.erase("user-1", 20)).is_done
    monkeypatch.undo()
    record = await removal.store.find_record(KIND, "user-1")
    assert record is not None and record.data["id"] == "another"
    assert (await erasing.erase("user-1", 20)).is_done
