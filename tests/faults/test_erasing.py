"""Deleted is gone: an asset with all that is kept of it, and a user altogether, wherever it was kept."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.constants import BREAKER_PROBE_SECONDS
from tests.contract.contracts import check_reply
from tests.factories import make_image, make_token
from tests.faults.test_deletes import REFUSES
from tests.faults.test_process import wait_until
from tests.packages import install
from tests.service import ROOT, AiService, Service

REFUSED = {"status": 400, "body": {"error": {"message": "No photo", "code": "X"}}}
GONE = "gone:7d41c0.person@example"
STAYS = "stays-5"
# A receiver that nobody runs: its events stay undelivered.
SETTINGS = {
    "QUEUE_FAIRNESS": "user",
    BREAKER_PROBE_SECONDS: "60",
    "SHUTDOWN_SECONDS": "1",
    "NOTIFIERS": "websocket,webhook",
    "PLUGIN_WEBHOOK_URL": "http://127.0.0.1:9/hook",
    "PLUGIN_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "PLUGIN_WEBHOOK_ALLOW_PRIVATE": "true",
}


def call(service: Service, method: str, path: str, sub: str = "ops-1", **params: Any) -> httpx.Response:
    """Call a route as an admin."""
    headers = service.headers(sub, role="admin")
    return httpx.request(method, service.url + path, headers=headers, params=params, timeout=60)


def erase(service: Service, sub: str) -> dict[str, Any]:
    """Erase the user and return what has gone, once all has."""
    while (answer := call(service, "DELETE", f"/api/users/{sub}")).status_code == 202:
        pass
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def upload(service: Service, sub: str, **options: Any) -> str:
    asset_id: str = service.upload(sub, **options).json()["data"]["assetId"]
    return asset_id


def fail(service: Service, ai_service: AiService, sub: str) -> str:
    """Upload a photo that the AI service refuses; return its id once its dead letter is there."""
    before = service.wait_status()["failed"]
    ai_service.order(replies=[REFUSED])
    asset_id = upload(service, sub)
    service.wait_status(failed=before + 1)
    return asset_id


def files_with(folder: Path, text: str) -> list[str]:
    """Return the files below the folder whose name or content has the text."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and _has(path, text)]


def _has(path: Path, text: str) -> bool:
    try:
        return text in str(path) or text.encode() in path.read_bytes()
    except FileNotFoundError:
        return False  # Redis has just replaced it


def redis_with(redis: Redis, text: str) -> list[str]:
    """Return the keys that have the text in their name or in what they hold."""
    read: dict[str, Callable[[str], Any]] = {
        "string": redis.get,
        "list": lambda name: redis.lrange(name, 0, -1),
        "zset": lambda name: redis.zrange(name, 0, -1),
        "hash": redis.hgetall,
    }
    # "none": one that has expired since it was listed.
    read["none"] = lambda name: ""
    return [name for name in redis.scan_iter() if text in name or text in str(read[str(redis.type(name))](name))]


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService, redis_url: str) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url, **SETTINGS, REDIS_URL=redis_url) as service:
        yield service


@pytest.mark.fault("U14")
def test_deleted_asset_takes_its_dead_letters_and_events_along(
    service: Service, ai_service: AiService, redis: Redis
) -> None:
    """Its document, images, keys, dead letter and undelivered event go; those of others stay."""
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
def test_dead_letter_of_a_deleted_asset_that_was_run_again_goes_too(
    service: Service, ai_service: AiService, redis: Redis
) -> None:
    """Two dead letters of two jobs, and one asset: both are found by what the store keeps."""
    asset_id = fail(service, ai_service, GONE)
    ai_service.order(replies=[REFUSED])
    assert call(service, "POST", f"/api/assets/{asset_id}/retry").status_code == 202
    service.wait_status(failed=2)
    assert call(service, "DELETE", f"/api/assets/{asset_id}").status_code == 204
    assert call(service, "GET", "/api/queue/failed").json()["data"]["items"] == []
    assert redis_with(redis, GONE) == []


@pytest.mark.fault("U14")
def test_running_job_of_a_deleted_asset_leaves_nothing(service: Service, ai_service: AiService, redis: Redis) -> None:
    """It is ended with its asset, and is no dead letter."""
    ai_service.order(held=True)
    asset_id = upload(service, GONE)
    service.wait_log("job_claimed")
    assert call(service, "DELETE", f"/api/assets/{asset_id}").status_code == 204
    service.wait_log("job_cancelled", assetId=asset_id)
    service.wait_status(active=0, completed=1, failed=0)
    assert redis_with(redis, GONE) == []


@pytest.mark.fault("U14")
def test_same_key_after_a_delete_is_a_new_upload(service: Service) -> None:
    """The key of a deleted asset stands for nothing any more: it neither brings the asset back nor fails."""
    key = {"Idempotency-Key": "k-1"}
    first = upload(service, STAYS, headers=key)
    assert upload(service, STAYS, headers=key) == first
    assert httpx.delete(f"{service.url}/api/assets/{first}", headers=service.headers(STAYS)).status_code == 204
    second = upload(service, STAYS, headers=key, category="lego")
    assert second != first
    assert upload(service, STAYS, headers=key, category="lego") == second


@pytest.mark.fault("U15")
def test_admin_reads_retries_cancels_and_removes_any_asset(service: Service, ai_service: AiService) -> None:
    """What its owner may do an admin may; another user still finds nothing, and may not ask for others' lists."""
    failed = fail(service, ai_service, GONE)
    ai_service.order(held=True)
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
    ai_service.order(held=True)
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
    nobody = call(service, "GET", "/api/users/nobody").json()["data"]
    assert (nobody["assets"]["total"], nobody["oldest"]) == (0, None)


@pytest.mark.fault("U15")
def test_erased_user_is_nowhere(tmp_path: Path, ai_service: AiService) -> None:
    """Finished, failed, running and waiting photos, undelivered events, records of deliveries, entries of the audit
    list and a damaged document: nothing of the user is in the data folder, with the SQLite file and the files of the
    embedded Redis, nor in log lines since. Others keep all of theirs, and the user may come back.
    """
    with Service(tmp_path, ai_service.url, **SETTINGS) as service:
        kept = [upload(service, STAYS), fail(service, ai_service, STAYS)]
        upload(service, GONE, headers={"Idempotency-Key": "k-1"})
        fail(service, ai_service, GONE)
        damaged = upload(service, GONE)
        service.wait_status(completed=3)
        ai_service.order(held=True)
        for _ in range(9):
            upload(service, GONE)
        service.wait_log("job_claimed", count=10)
        with closing(sqlite3.connect(tmp_path / "assets.sqlite")) as connection, connection:
            connection.execute("UPDATE assets SET aiMetadata = 'damaged' WHERE id = ?", (damaged,))
        call(service, "POST", "/api/queue/resume", sub=GONE)
        wait_until(lambda: len(call(service, "GET", "/api/queue/audit", who=GONE).json()["data"]["items"]) == 1)
        assert len(call(service, "GET", "/api/queue/deliveries").json()["data"]["items"]) == 5
        assert files_with(tmp_path, GONE)
        service.forget_lines()
        gone = erase(service, GONE)
        assert (gone["assets"], gone["state"]) == (12, "done")
        assert gone["images"] >= 12
        wait_until(lambda: files_with(tmp_path, GONE) == [])
        assert call(service, "GET", f"/api/users/{GONE}").json()["data"]["assets"]["total"] == 0
        lines = service.lines
        erased_at = [line["event"] for line in lines].index("user_erased")
        # A job that waited may have been started before the erase came to it.
        assert {line["event"] for line in lines[:erased_at] if GONE in str(line)} <= {"job_claimed"}
        assert [line for line in lines[erased_at:] if GONE in str(line)] == []
        listed = call(service, "GET", "/api/queue/audit").json()["data"]["items"]
        assert [each["who"] for each in listed if each["action"] == "resume queue"] == [None]
        assert GONE not in str(listed)
        told = call(service, "GET", "/api/queue/deliveries").json()["data"]["items"]
        assert {each["assetId"] for each in told} == set(kept)
        damage = service.wait_log("asset_damaged", assetId=damaged)
        service.forget_lines(damage)
        assert {service.asset(asset_id, STAYS)["id"] for asset_id in kept} == set(kept)
        ai_service.order(held=False)
        back = upload(service, GONE)
        service.wait_log("job_completed", assetId=back)
        assert call(service, "GET", f"/api/users/{GONE}").json()["data"]["assets"]["active"] == 1
        assert erase(service, GONE)["assets"] == 1


@pytest.mark.fault("U15")
def test_erase_outlives_its_process_and_a_storage_that_is_away(
    tmp_path: Path, ai_service: AiService, redis_url: str
) -> None:
    """A storage refuses half-way: 202 with the reason, no document is lost of sight; after a kill -9 the next process
    takes the erase up by itself, as soon as the storage is back.
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


@pytest.mark.fault("O9")
def test_commands_show_list_and_remove(service: Service, ai_service: AiService) -> None:
    """`assets` and `users` over HTTP: tables, JSON, one line for an error and exit code 1."""
    failed = fail(service, ai_service, GONE)
    done = upload(service, GONE, category="lego")
    service.wait_log("job_completed", assetId=done)

    def run(*arguments: str, code: int = 0) -> str:
        environment = {**service.environment, "PIPELINE_URL": service.url, "COLUMNS": "200"}
        ended = subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, env=environment, capture_output=True)
        assert ended.returncode == code, ended
        return (ended.stdout if code == 0 else ended.stderr).decode()

    assert "No photo" in run("assets", "ls", "--user", GONE)
    lines = run("assets", "ls", "--user", GONE, "--category", "lego", "--json").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [done]
    (newest,) = run("assets", "ls", "--user", GONE, "--limit", "1", "--json").splitlines()
    assert json.loads(newest)["id"] == done
    assert "--user" in run("assets", "ls", code=2)
    own = make_token(GONE)
    assert failed in run("assets", "ls", "--token", own, "--status", "failed")
    assert json.loads(run("assets", "show", failed))["status"] == "failed"
    assert "runs again as ai-processing:" in run("assets", "retry", failed)
    service.wait_log("job_completed", assetId=failed)
    assert run("assets", "retry", done, code=1) == (
        "Error: Only failed or partial assets can be retried, this one is active\n"
    )
    assert "removed" in run("assets", "rm", failed, "--yes")
    assert run("assets", "rm", failed, "--yes", code=1).splitlines() == [
        f"{failed}: Asset not found", "Error: 1 of 1 refused"
    ]
    assert "1 (1 active)" in run("users", "show", GONE)
    assert json.loads(run("users", "show", GONE, "--json"))["assets"]["active"] == 1
    assert run("users", "show", "no such user", code=1).startswith("Error: ")
    assert run("users", "erase", GONE, "--yes").startswith("Erased: 1 assets")
    assert json.loads(run("users", "show", GONE, "--json"))["assets"]["total"] == 0
