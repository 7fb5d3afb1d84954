"""All data of a deleted asset and of an erased user is removed from every place that stores it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.contract.contracts import check_reply
from tests.factories import make_image
from tests.faults.erasing_calls import GONE, REFUSED, SETTINGS, STAYS, call, erase, fail, upload
from tests.faults.processes import wait_until
from tests.faults.refusing_storage import REFUSES
from tests.packages import install
from tests.service import AiService, Service


def files_with(folder: Path, text: str) -> list[str]:
    """Return the files below the folder whose name or content has the text."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and _has(path, text)]


def _has(path: Path, text: str) -> bool:
    try:
        return text in str(path) or text.encode() in path.read_bytes()
    except FileNotFoundError:
        return False  # Redis has just replaced it


def redis_with(redis: Redis, text: str) -> list[str]:
    """Return the keys that have the text in their name or in their value."""
    read: dict[str, Callable[[str], Any]] = {
        "string": redis.get,
        "list": lambda name: redis.lrange(name, 0, -1),
        "zset": lambda name: redis.zrange(name, 0, -1),
        "hash": redis.hgetall,
    }
    # "none": the type of a key that has expired since it was listed.
    read["none"] = lambda name: ""
    return [name for name in redis.scan_iter() if text in name or text in str(read[str(redis.type(name))](name))]


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService, redis_url: str) -> Iterator[Service]:
    """A service with a Redis of the test and a receiver that does not run."""
    with Service(tmp_path, ai_service.url, **SETTINGS, REDIS_URL=redis_url) as service:
        yield service


@pytest.mark.fault("U14")
def test_delete_removes_dead_letters_and_events_of_the_asset(
    service: Service, ai_service: AiService, redis: Redis
) -> None:
    """Its document, images, keys, dead letter and undelivered event are removed; those of other users stay."""
    asset_id, other = fail(service, ai_service, GONE), fail(service, ai_service, STAYS)
    assert len(call(service, "GET", "/api/queue/failed").json()["data"]["items"]) == 2
    answer = httpx.delete(f"{service.url}/api/assets/{asset_id}", headers=service.headers(GONE))
    assert answer.status_code == 204
    (left,) = call(service, "GET", "/api/queue/failed").json()["data"]["items"]
    assert left["assetId"] == other
    assert redis_with(redis, GONE) == []
    with closing(sqlite3.connect(service.data_dir / "assets.sqlite")) as connection:
        text = "\n".join(connection.iterdump())
    assert GONE not in text and STAYS in text
    assert not (service.data_dir / "media" / asset_id).exists()
    assert service.wait_log("asset_deleted", assetId=asset_id)


@pytest.mark.fault("U14")
def test_delete_removes_all_dead_letters_of_an_asset_that_was_run_again(
    service: Service, ai_service: AiService, redis: Redis
) -> None:
    """Both dead letters of the two jobs of an asset are found by the records of the store."""
    asset_id = fail(service, ai_service, GONE)
    ai_service.configure(replies=[REFUSED])
    assert call(service, "POST", f"/api/assets/{asset_id}/retry").status_code == 202
    service.wait_status(failed=2)
    assert call(service, "DELETE", f"/api/assets/{asset_id}").status_code == 204
    assert call(service, "GET", "/api/queue/failed").json()["data"]["items"] == []
    assert redis_with(redis, GONE) == []


@pytest.mark.fault("U14")
def test_running_job_of_a_deleted_asset_leaves_nothing(service: Service, ai_service: AiService, redis: Redis) -> None:
    """The job is cancelled with its asset, and is no dead letter."""
    ai_service.configure(paused=True)
    asset_id = upload(service, GONE)
    service.wait_log("job_claimed")
    assert call(service, "DELETE", f"/api/assets/{asset_id}").status_code == 204
    service.wait_log("job_cancelled", assetId=asset_id)
    service.wait_status(active=0, completed=1, failed=0)
    assert redis_with(redis, GONE) == []


@pytest.mark.fault("U14")
def test_same_key_after_a_delete_is_a_new_upload(service: Service) -> None:
    """The key of a deleted asset is free: an upload with it neither restores the asset nor fails."""
    key = {"Idempotency-Key": "k-1"}
    first = upload(service, STAYS, headers=key)
    assert upload(service, STAYS, headers=key) == first
    assert httpx.delete(f"{service.url}/api/assets/{first}", headers=service.headers(STAYS)).status_code == 204
    second = upload(service, STAYS, headers=key, category="lego")
    assert second != first
    assert upload(service, STAYS, headers=key, category="lego") == second


@pytest.mark.fault("U15")
def test_admin_reads_retries_cancels_and_removes_any_asset(service: Service, ai_service: AiService) -> None:
    """An admin may do what the owner may; another user gets 404 for the asset and 403 for the list."""
    failed = fail(service, ai_service, GONE)
    ai_service.configure(paused=True)
    running = upload(service, GONE)
    listed = call(service, "GET", "/api/assets", user=GONE).json()["data"]["items"]
    assert [each["id"] for each in listed] == [running, failed]
    assert call(service, "GET", "/api/assets", user=GONE, status="failed").json()["data"]["items"][0]["id"] == failed
    assert service.get("/api/assets", STAYS, user=GONE).status_code == 403
    assert service.get("/api/assets", GONE, user=GONE).status_code == 200
    assert call(service, "GET", "/api/assets", user="no spaces").status_code == 400
    assert call(service, "GET", f"/api/assets/{failed}").json()["data"]["userId"] == GONE
    assert call(service, "GET", f"/api/assets/{failed}", wait=1).status_code == 200
    assert service.get(f"/api/assets/{failed}", STAYS).status_code == 404
    for method, path in (("POST", "/retry"), ("POST", "/cancel"), ("DELETE", "")):
        answer = httpx.request(method, f"{service.url}/api/assets/{failed}{path}", headers=service.headers(STAYS))
        assert answer.status_code == 404
    assert call(service, "POST", f"/api/assets/{running}/cancel").json()["data"]["status"] == "failed"
    assert call(service, "POST", f"/api/assets/{failed}/retry").status_code == 202
    assert call(service, "DELETE", f"/api/assets/{failed}").status_code == 204
    assert service.find("asset_deleted", assetId=failed, operator="ops-1")


@pytest.mark.fault("U15")
def test_admin_sees_what_a_user_has(service: Service, ai_service: AiService) -> None:
    """Counts by status, bytes, oldest and newest, waiting jobs and dead letters; for admins only."""
    oldest = fail(service, ai_service, GONE)
    ai_service.configure(paused=True)
    waiting = [upload(service, GONE) for _ in range(7)]
    service.wait_log("job_claimed", count=6)
    user = call(service, "GET", f"/api/users/{GONE}").json()["data"]
    counts = dict.fromkeys(("draft", "partial", "active", "archived"), 0)
    assert user["assets"] == {"total": 8, "processing": 7, "failed": 1, **counts}
    assert user["bytes"] == 8 * len(make_image())
    assert user["oldest"] == service.asset(oldest, GONE)["createdAt"]
    assert user["newest"] == service.asset(waiting[-1], GONE)["createdAt"]
    assert (user["waitingJobs"], user["deadLetters"], user["isComplete"], user["erase"]) == (2, 1, True, None)
    assert service.get(f"/api/users/{GONE}", GONE).status_code == 403
    assert call(service, "GET", "/api/users/not%20a%20user").status_code == 400
    unknown = call(service, "GET", "/api/users/unknown").json()["data"]
    assert (unknown["assets"]["total"], unknown["oldest"]) == (0, None)


def fill_user(service: Service, ai_service: AiService) -> str:
    """Give the user finished, failed, damaged, running and waiting photos and an audit entry; return the damaged one.

    Afterwards the AI service does not answer until it is released.
    """
    upload(service, GONE, headers={"Idempotency-Key": "k-1"})
    fail(service, ai_service, GONE)
    damaged = upload(service, GONE)
    service.wait_status(completed=3)
    ai_service.configure(paused=True)
    for _ in range(9):
        upload(service, GONE)
    service.wait_log("job_claimed", count=10)
    with closing(sqlite3.connect(service.data_dir / "assets.sqlite")) as connection, connection:
        connection.execute("UPDATE assets SET aiMetadata = 'damaged' WHERE id = ?", (damaged,))
    call(service, "POST", "/api/queue/resume", sub=GONE)
    wait_until(lambda: len(call(service, "GET", "/api/queue/audit", who=GONE).json()["data"]["items"]) == 1)
    return damaged


@pytest.mark.fault("U15")
def test_erase_removes_all_data_of_the_user(tmp_path: Path, ai_service: AiService) -> None:
    """No file of the data folder and no later log line names the user; other users keep all, and the user may return.

    The data: finished, failed, running and waiting photos, a damaged document, undelivered events, records of
    deliveries and entries of the audit list, in the SQLite file and in the files of the embedded Redis.
    """
    with Service(tmp_path, ai_service.url, **SETTINGS) as service:
        staying = [upload(service, STAYS), fail(service, ai_service, STAYS)]
        damaged = fill_user(service, ai_service)
        assert len(call(service, "GET", "/api/queue/deliveries").json()["data"]["items"]) == 5
        assert files_with(tmp_path, GONE)
        service.remove_lines()
        erased = erase(service, GONE)
        assert (erased["assets"], erased["state"]) == (12, "done")
        assert erased["images"] >= 12
        wait_until(lambda: files_with(tmp_path, GONE) == [])
        assert call(service, "GET", f"/api/users/{GONE}").json()["data"]["assets"]["total"] == 0
        lines = service.lines
        erased_at = [line["event"] for line in lines].index("user_erased")
        # A waiting job may have been started before the erase removed it.
        assert {line["event"] for line in lines[:erased_at] if GONE in str(line)} <= {"job_claimed"}
        assert [line for line in lines[erased_at:] if GONE in str(line)] == []
        listed = call(service, "GET", "/api/queue/audit").json()["data"]["items"]
        assert [each["who"] for each in listed if each["action"] == "resume queue"] == [None]
        assert GONE not in str(listed)
        deliveries = call(service, "GET", "/api/queue/deliveries").json()["data"]["items"]
        assert {each["assetId"] for each in deliveries} == set(staying)
        service.remove_lines(service.wait_log("asset_damaged", assetId=damaged))
        assert {service.asset(asset_id, STAYS)["id"] for asset_id in staying} == set(staying)
        ai_service.configure(paused=False)
        returned = upload(service, GONE)
        service.wait_log("job_completed", assetId=returned)
        assert call(service, "GET", f"/api/users/{GONE}").json()["data"]["assets"]["active"] == 1
        assert erase(service, GONE)["assets"] == 1


@pytest.mark.fault("U15")
def test_erase_continues_after_a_kill_and_a_storage_outage(
    tmp_path: Path, ai_service: AiService, redis_url: str
) -> None:
    """While the storage refuses, the answer is 202 with the reason, and all documents stay.

    After a kill -9 the next process continues the erase by itself, once the storage works.
    """
    packages = install(tmp_path / "packages", refuses=REFUSES)
    settings = {**packages, "STORAGE_BACKEND": "refuses", "REDIS_URL": redis_url}
    data = tmp_path / "data"
    with Service(data, ai_service.url, **settings) as service:
        for _ in range(3):
            upload(service, GONE)
        service.wait_status(completed=3)
        (data / "refuse").touch()
        answer = call(service, "DELETE", f"/api/users/{GONE}")
        assert answer.status_code == 202
        check_reply("delete", f"/api/users/{GONE}", 202, answer.json())
        assert answer.json()["data"]["reason"] == "no"
        shown = call(service, "GET", f"/api/users/{GONE}")
        check_reply("get", f"/api/users/{GONE}", 200, shown.json())
        assert (shown.json()["data"]["assets"]["total"], shown.json()["data"]["erase"]["state"]) == (3, "running")
        service.kill()
        (data / "refuse").unlink()
        service.start()
        service.wait_log("user_erased")
        assert call(service, "GET", f"/api/users/{GONE}").json()["data"]["assets"]["total"] == 0
        assert files_with(data, GONE) == []
