"""What an erase, a delete and the search for lost jobs meet besides: damaged records, those of version 0.1, races."""

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
from tests.faults.test_job_records import House, house  # noqa: F401

GONE, STAYS = "a.b|c:d@e", "a.b|c:d@e2"
DEAD = {"error": "no", "attempts": 3, "stalls": 0, "enqueuedAtMs": 0}


async def nothing() -> None:
    """In place of Redis writing its file anew."""


@pytest.fixture
def erasing(house: House) -> Iterator[Erasing]:  # noqa: F811
    queues = [jobs.queue for jobs in house.removing._queues]
    yield Erasing(house.store, house.removing, queues, audit=Audit(house.store), forget_history=nothing)


def job(name: str, user_id: str, *, is_named: bool, is_dead: bool) -> Record:
    """Return a job of the queue of notifications as the store keeps it; version 0.1 named nobody."""
    data: dict[str, Any] = {"data": {"userId": user_id, "assetId": ""}, "requestId": "", "lane": "webhook"}
    data |= {"failed": DEAD} if is_dead else {}
    return Record("job of notifications", f"notifications:{name}", utc_now(), data, user_id if is_named else "")


@pytest.mark.fault("U15")
@pytest.mark.gen_test
async def test_erase_finds_what_names_its_user_in_its_data_alone_and_what_cannot_be_read(
    house: House, erasing: Erasing, redis: Redis  # noqa: F811
) -> None:
    """Dead letters and undelivered events that version 0.1 kept, and a damaged record; a user whose id begins alike
    keeps all.
    """
    for number in range(4):
        for user_id in (GONE, STAYS):
            is_named, is_dead = bool(number & 1), bool(number & 2)
            await house.store.put_record(job(f"{user_id}-{number}", user_id, is_named=is_named, is_dead=is_dead))
    record = [jobs.records for jobs in house.removing._queues][1]
    later = utc_now().replace(year=9999)
    assert (await record.repair(later, None, 100))[0] == 8
    with closing(sqlite3.connect(house.store._path)) as connection, connection:
        connection.execute("UPDATE kept SET data = '{' WHERE id = ?", (f"notifications:{GONE}-3",))
    erasure = await erasing.erase(GONE, 20)
    assert (erasure.is_done, erasure.jobs) == (True, 4)
    text = str(await house.store.all_records(limit=100))
    assert GONE + "-" not in text and text.count(f"notifications:{STAYS}-") == 4
    names = [str(name) for name in redis.scan_iter("*notifications*:job:*")]
    assert [name for name in names if f"{GONE}-" in name] == []
    assert (await record.repair(later, None, 100))[0] == 0
    assert await house.store.find_record(KIND, GONE) is None


@pytest.mark.fault("U14")
@pytest.mark.gen_test
async def test_damaged_record_of_a_job_keeps_no_other_job_from_coming_back(
    house: House, logs: list[Any]  # noqa: F811
) -> None:
    """One that lacks its payload, and one that lacks how it failed: both are passed over and logged."""
    record = JobRecords(house.store, house.queue, keep_failed_seconds=60, max_age_seconds=60)
    for name, data in {"1": {}, "2": {"data": {}, "failed": {}}, "3": {"data": {}, "failed": None}}.items():
        await house.store.put_record(Record("job of ai-processing", name, utc_now(), data))
    await record.put_failed(Job("ai-processing:4", {"userId": "user-1"}, 3, 0, "lease", 0, 0), "no")
    assert (await record.repair(utc_now().replace(year=9999), None, 100)) == (1, None)
    assert [dead.id for dead in (await house.queue.failed_jobs(10)).jobs] == ["ai-processing:4"]
    assert [line["jobId"] for line in logs if line["event"] == "kept_job_damaged"] == ["1", "2", "3"]


@pytest.mark.fault("U14")
@pytest.mark.gen_test
async def test_event_announced_while_its_asset_goes_goes_too(
    house: House, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """The run ends between the look at what is kept and the removal of the document."""
    asset = await house.add()
    notifications = house.removing._queues[1]
    owed = NewJob("notifications:1", {"userId": asset.user_id, "assetId": asset.id, "notifier": "webhook"})
    delete = house.store.delete

    async def announce_and_delete(*args: Any, **options: Any) -> Any:
        await notifications.records.put(owed)
        await notifications.queue.enqueue(owed.id, owed.data)
        return await delete(*args, **options)

    monkeypatch.setattr(house.store, "delete", announce_and_delete)
    await house.removing.delete(asset.id, asset.user_id)
    assert await house.store.records_of(asset.user_id) == []
    assert await notifications.queue.fields(owed.id) == {"state": "completed"}


@pytest.mark.fault("U15")
@pytest.mark.gen_test
async def test_erase_leaves_the_record_of_one_that_took_its_place(
    house: House, erasing: Erasing, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """Two processes begin to erase one user at the same moment: the record that stands is the later one's promise."""
    await house.add()

    # Asked for in the last pass alone.
    async def replaced(user_id: str) -> Any:
        await house.store.put_record(Record(KIND, user_id, utc_now(), {"id": "another"}))
        return []

    monkeypatch.setattr(house.store, "damaged_of", replaced)
    assert not (await erasing.erase("user-1", 20)).is_done
    monkeypatch.undo()
    record = await house.store.find_record(KIND, "user-1")
    assert record is not None and record.data["id"] == "another"
    assert (await erasing.erase("user-1", 20)).is_done
