"""Operators' lists of jobs and what is done with many, on the running service; its replies are as the contract says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from pipeline.assets.asset import CANCELLED, AiMetadata, AssetStatus
from pipeline.assets.failures import fingerprint
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.commands.jobs import read_where
from tests.contract.contracts import check_reply
from tests.factories import make_asset
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service

JOBS, BULK = "/api/queue/jobs", "/api/queue/jobs/bulk"
UNKNOWN = f"ai-processing:{'0' * 24}"
LATER = "2100-01-01T00:00:00.000Z"


@pytest.fixture(scope="module")
def ai() -> Iterator[AiService]:
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("data"), ai.url, COLUMNS="160") as service:
        yield service


@pytest.fixture(autouse=True)
def clean(service: Service) -> Iterator[None]:
    """Each test begins with a queue that runs and has nothing."""
    yield
    call(service, "POST", "/api/queue/resume")
    for action in ("resume", "cancel", "delete"):
        bulk(service, action, {}, all=True)


def call(service: Service, method: str, path: str, role: str | None = "admin", **options: Any) -> httpx.Response:
    """Call a route with a token of that role, and hold the reply against the contract."""
    options["headers"] = service.headers("ops-1", role=role) | options.get("headers", {})
    response = httpx.request(method, service.url + path, timeout=60, **options)
    check_reply(method, path, response.status_code, response.json() if response.content else None, response.headers)
    return response


def data(service: Service, path: str, **params: Any) -> Any:
    response = call(service, "GET", path, params=params)
    assert response.status_code == 200, response.text
    return response.json()["data"]


def listed(service: Service, **params: Any) -> list[str]:
    """Return the ids of the jobs of a list; its count is the same."""
    found = data(service, JOBS, **params)
    assert found["nextCursor"] is None
    counted = data(service, f"{JOBS}/count", **params)
    assert counted == {"count": len(found["items"]), "isExact": True}
    return [job["jobId"] for job in found["items"]]


def bulk(service: Service, action: str, where: dict[str, str], **more: Any) -> dict[str, Any]:
    """Do it with all that the filter finds, in one chunk."""
    body = {"action": action, "filter": where, "until": LATER} | more
    found: dict[str, Any] = call(service, "POST", BULK, json=body).json()["data"]
    return found


def upload(service: Service, *users: str, **options: Any) -> list[str]:
    """Return the jobs of photos of these users, the newest first."""
    return [service.upload(user, **options).json()["data"]["jobId"] for user in users][::-1]


def fail(service: Service, ai: AiService, *users: str) -> list[str]:
    """Let the AI service refuse photos of these users; return their jobs, the newest first."""
    ai.order(replies=[{"status": 400, "times": len(users)}])
    jobs = upload(service, *users)
    service.wait_status(waiting=0, active=0, delayed=0)
    return jobs


def test_jobs_are_listed_by_state_and_filter(service: Service, ai: AiService) -> None:
    """Failed, completed, running, waiting, delayed: each is where it is; filters and pages combine."""
    failed = fail(service, ai, "user-1", "user-2")
    done = upload(service, "user-1", category="lego")
    service.wait_status(waiting=0, active=0)
    ai.order(held=True)
    running = upload(service, "user-3")
    service.wait_status(active=1)
    call(service, "POST", "/api/queue/pause")
    waiting = upload(service, "user-1", "user-2")
    assert bulk(service, "postpone", {"user": "user-2", "state": "waiting"}, seconds=600)["done"] == 1
    assert listed(service) == waiting + running + done + failed
    states = {"failed": failed, "completed": done, "active": running, "waiting": waiting[1:], "delayed": waiting[:1]}
    for state, jobs in states.items():
        assert listed(service, state=state) == jobs, state
        shown = data(service, JOBS, state=state)["items"]
        assert {job["state"] for job in shown} == {state}
        assert listed(service, state=state, user="user-3") == (running if state == "active" else [])
        assert listed(service, state=state, q=jobs[0]) == jobs[:1]
    assert listed(service, user="user-2") == [waiting[0], failed[0]] == listed(service, q="user-2")
    assert listed(service, q="user-") == listed(service)
    assert listed(service, category="lego") == done == listed(service, q="NIKE air", provider="http")
    assert listed(service, q=done[0].removeprefix("ai-processing:"), state="failed") == []
    (one,) = data(service, JOBS, state="waiting")["items"]
    assert (one["position"], one["reason"], one["status"]) == (1, "The queue is paused", "processing")
    (postponed,) = data(service, JOBS, state="delayed")["items"]
    assert postponed["reason"] == "Postponed by an operator" and postponed["nextAt"] is not None
    first = data(service, JOBS, limit=4)
    second = data(service, JOBS, limit=4, cursor=first["nextCursor"])
    assert [job["jobId"] for job in first["items"] + second["items"]] == listed(service)
    assert (first["searchedTo"], second["nextCursor"]) == (first["items"][-1]["createdAt"], None)
    moment = first["items"][2]["createdAt"]
    assert {*listed(service, to=moment), *listed(service, **{"from": moment})} == {*listed(service)}
    ai.order(held=False)
    service.wait_status(active=0)


def test_one_job_tells_all_that_is_known(service: Service, ai: AiService) -> None:
    """By its id, its asset's id, and the id of a retry; with the reason, attempts and what to search logs for."""
    (failed,) = fail(service, ai, "user-1")
    asset_id = failed.removeprefix("ai-processing:")
    for name in (failed, asset_id, f"ai-processing:{asset_id.upper()}", failed.replace(":", "%3A")):
        found = data(service, f"{JOBS}/{name}")
        assert (found["job"]["jobId"], found["job"]["state"], found["asset"]["id"]) == (failed, "failed", asset_id)
    assert found["job"]["reason"] == found["asset"]["aiMetadata"]["error"] == "scripted 400"
    assert found["searchFor"] == [f"jobId={failed}", f"requestId={found['requestId']}"] and found["requestId"]
    assert len(found["asset"]["attempts"]) == 1
    # Its owner sees the reason, operators what was behind it.
    (cause,) = found["causes"]
    assert "400" in cause and "cause" not in service.get(f"/api/assets/{asset_id}").text
    again = call(service, "POST", f"{JOBS}/{failed}/retry")
    assert again.status_code == 202
    new = again.json()["data"]["jobId"]
    service.wait_status(waiting=0, active=0)
    for name in (failed, new, asset_id):
        assert data(service, f"{JOBS}/{name}")["job"] | {"state": "completed"} == data(service, f"{JOBS}/{new}")["job"]
    # The retry has settled the dead letter.
    assert data(service, "/api/queue/failed")["items"] == []
    assert call(service, "POST", f"{JOBS}/{new}/retry").status_code == 409
    assert call(service, "POST", f"{JOBS}/{new}/cancel").status_code == 409
    for method, path in (("GET", ""), ("POST", "/retry"), ("POST", "/cancel")):
        assert call(service, method, f"{JOBS}/{UNKNOWN}{path}").status_code == 404
        for malformed in ("x", f"other:{'0' * 24}", f"{UNKNOWN}0", "%FF", "%00", "..%2F", f"notifications:{'0' * 24}"):
            assert call(service, method, f"{JOBS}/{malformed}{path}").status_code == 400, malformed


def test_failures_are_grouped_retried_and_cancelled_again(service: Service, ai: AiService) -> None:
    """All of one kind run again, newer ones are left alone; what is cancelled is a kind too: a retry undoes it."""
    failed = fail(service, ai, "user-1", "user-2", "user-1")
    (kind,) = data(service, "/api/queue/failures")["items"]
    assert (kind["count"], kind["isExact"], kind["reason"]) == (3, True, "scripted 400")
    where = {"failure": kind["failure"], "user": "user-1"}
    dry = call(service, "POST", BULK, json={"action": "retry", "filter": where, "dryRun": True}).json()["data"]
    assert (dry["count"], dry["isExact"], [job["jobId"] for job in dry["sample"]]) == (2, True, [failed[0], failed[2]])
    (newer,) = fail(service, ai, "user-1")
    call(service, "POST", "/api/queue/pause")
    done = bulk(service, "retry", where, until=dry["until"])
    assert (done["done"], done["skipped"], done["refused"], done["nextCursor"]) == (2, 0, [], None)
    assert bulk(service, "retry", where, until=dry["until"])["done"] == 0
    assert sorted(listed(service, failure=kind["failure"])) == sorted([newer, failed[1]])
    assert bulk(service, "cancel", {"user": "user-1"})["done"] == 2
    cancelled = fingerprint(CANCELLED)
    assert {each["failure"] for each in data(service, "/api/queue/failures")["items"]} == {cancelled, kind["failure"]}
    assert bulk(service, "retry", {"failure": cancelled, "from": kind["firstAt"]})["done"] == 2
    call(service, "POST", "/api/queue/resume")
    service.wait_status(waiting=0, active=0)
    assert len(listed(service, state="completed")) == 2
    assert data(service, "/api/queue/failures", to="2026-01-01T00:00:00Z") == {"items": []}


def test_postponed_jobs_wait_and_come_back_in_order(service: Service, ai: AiService) -> None:
    """Others pass them; resume puts them in front, the oldest first; without it they are ready after their time."""
    call(service, "POST", "/api/queue/pause")
    jobs = upload(service, "user-1", "user-1", "user-2")
    assert bulk(service, "postpone", {"user": "user-1"}, seconds=3600)["done"] == 2
    assert bulk(service, "postpone", {"user": "user-1"}, seconds=3600)["done"] == 0
    assert service.wait_status(waiting=1, delayed=2)
    assert bulk(service, "resume", {"user": "user-1", "q": jobs[0]})["done"] == 0
    assert bulk(service, "resume", {"user": "user-1"})["done"] == 2
    service.wait_log("jobs_changed", action="resume", done=2)
    service.wait_status(waiting=3, delayed=0)
    positions = {job["jobId"]: job["position"] for job in until_fresh(service)}
    assert [positions[job] for job in reversed(jobs)] == [1, 2, 3]
    assert bulk(service, "postpone", {"user": "user-1"}, seconds=1)["done"] == 2
    call(service, "POST", "/api/queue/resume")
    service.wait_status(waiting=0, delayed=0, active=0)
    assert len(listed(service, state="completed")) == 3


def until_fresh(service: Service) -> list[dict[str, Any]]:
    """Return the waiting jobs once a snapshot of the line knows them all."""
    while True:
        found: list[dict[str, Any]] = data(service, JOBS, state="waiting")["items"]
        if all(job["position"] for job in found):
            return found


def test_bulk_goes_on_chunk_by_chunk(service: Service) -> None:
    """250 failed assets without an original: a chunk of 200 is refused one by one, the rest with its cursor; all go."""

    async def fill() -> None:
        store = SqliteAssetStore(service.data_dir / "assets.sqlite")
        await store.open()
        meta, start = AiMetadata(error="no"), utc_now() - timedelta(hours=1)
        for number in range(250):
            asset = make_asset("old", status=AssetStatus.FAILED, ai_metadata=meta, created_at=start)
            asset = replace(asset, original=replace(asset.original, backend="local"))
            await store.create(asset)
            if number % 2:
                await store.drop_original(asset.id, asset.processing_job_id)
        await store.close()

    asyncio.run(fill())
    where = {"user": "old"}
    call(service, "POST", "/api/queue/pause")
    first = bulk(service, "retry", where)
    assert first["done"] + len(first["refused"]) < 200 and len(first["refused"]) == 20
    assert "original" in first["refused"][0]["message"]
    second = bulk(service, "retry", where, cursor=first["nextCursor"])
    assert second["nextCursor"] is None and first["done"] + second["done"] == 125
    assert bulk(service, "retry", where)["done"] == 0
    command = [sys.executable, "run.py", "jobs", "retry", "--where", "user=old", "--yes"]
    told = subprocess.run(command, cwd=ROOT, env=service.environment, capture_output=True, text=True)
    # Each chunk names twenty only.
    assert (told.returncode, told.stdout.splitlines()[-1]) == (1, "0 done, 0 had moved on")
    assert told.stderr.splitlines()[-1] == "Error: at least 20 refused"
    # A chunk that takes long ends early, and the next one goes on there.
    gone, cursor = 0, None
    while True:
        chunk = bulk(service, "delete", where, cursor=cursor)
        gone += chunk["done"]
        if (cursor := chunk["nextCursor"]) is None:
            break
    assert gone == 250 and listed(service, user="old") == []


def test_routes_are_for_operators(service: Service) -> None:
    """Readers read and change nothing; users do neither; a foreign page changes nothing with an admin's token."""
    reads = (JOBS, f"{JOBS}/count", f"{JOBS}/{UNKNOWN}", "/api/queue/failures")
    changes = (BULK, f"{JOBS}/{UNKNOWN}/retry", f"{JOBS}/{UNKNOWN}/cancel")
    for path in reads:
        assert call(service, "GET", path, None).status_code == 403
        assert call(service, "GET", path, "operator-read").status_code in (200, 404)
    for path in changes:
        for role in (None, "operator-read"):
            assert call(service, "POST", path, role).status_code == 403
        assert call(service, "POST", path, headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"[]", "body"),
        (b'{"action": "retry"' + b" " * 20_000 + b"}", "body"),
        (b"[" * 15_000, "body"),
        (b'{"action": "retry", "filter": {"state": "failed"}, "all": "\xff"}', "body"),
        ({}, "action"),
        ({"action": "explode", "all": True}, "action"),
        ({"action": ["retry"], "all": True}, "action"),
        ({"action": "delete"}, "filter"),
        ({"action": "delete", "filter": {}, "all": 1}, "all"),
        ({"action": "delete", "filter": {"q": "  ", "user": "", "state": None}}, "filter"),
        ({"action": "delete", "filter": [], "all": True}, "filter"),
        ({"action": "delete", "filter": {"users": "ada"}}, "users"),
        ({"action": "delete", "filter": {"\u001b[31m" * 90: "x"}, "all": True}, "body"),
        ({"action": "delete", "filter": {"user": "ada"}, "dryrun": True}, "dryrun"),
        ({"action": "delete", "filter": {"user": ["ada"]}}, "user"),
        ({"action": "delete", "filter": {"user": "a da"}}, "user"),
        ({"action": "delete", "filter": {"failure": "x"}}, "failure"),
        ({"action": "delete", "filter": {"from": "yesterday"}}, "from"),
        ({"action": "delete", "filter": {"user": "ada"}, "dryRun": "no"}, "dryRun"),
        ({"action": "delete", "filter": {"user": "ada"}, "until": None}, "until"),
        ({"action": "delete", "filter": {"user": "ada"}, "until": 1}, "until"),
        ({"action": "delete", "filter": {"user": "ada"}, "cursor": "x"}, "cursor"),
        ({"action": "delete", "filter": {"user": "ada"}, "cursor": {}}, "cursor"),
        ({"action": "postpone", "filter": {"user": "ada"}}, "seconds"),
        ({"action": "postpone", "filter": {"user": "ada"}, "seconds": True}, "seconds"),
        ({"action": "postpone", "filter": {"user": "ada"}, "seconds": 86_401}, "seconds"),
        ({"action": "postpone", "filter": {"user": "ada"}, "seconds": 1e300}, "seconds"),
        ({"action": "retry", "filter": {"state": "waiting"}}, "state"),
        ({"action": "cancel", "filter": {"state": "failed"}}, "state"),
        ({"action": "postpone", "filter": {"state": "active"}, "seconds": 1}, "state"),
    ],
)
def test_bad_bulk_request_is_refused_and_changes_nothing(service: Service, body: Any, field: str) -> None:
    """400 names what is wrong; a filter that is misspelt or empty never stands for all jobs."""
    if isinstance(body, dict):
        body = json.dumps({"until": LATER} | body).encode()
    response = call(service, "POST", BULK, content=body)
    assert response.status_code == 400
    assert field in [each["field"] for each in response.json()["error"]["details"]]


@pytest.mark.parametrize(
    "query",
    [
        *("state=done", "user=%00", "user=a%20b", "category=A", "provider=a%0Ab", "failure=0", "failure=" + "0" * 13),
        *("q=" + "x" * 201, "q=" + "+a" * 11, "from=x", "to=2026-02-30", "limit=0", "limit=101", "cursor=x"),
        *("cursor=" + "A" * 9000, "cursor=OTk5OTk5OTk5OTk5OTk5LjAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMA", "from=2026-01-01"),
    ],
)
def test_bad_query_is_refused(service: Service, query: str) -> None:
    """400 names the parameter."""
    error = call(service, "GET", f"{JOBS}?{query}").json()["error"]
    assert [each["field"] for each in error["details"]] == [query.partition("=")[0]]


HOSTILE = ("%", "_", "'", '"', "\\", "*", "a' OR 1=1 --", "$ne", "(((", "\u0000", "\ud83d", "ß", "İ" * 200)


@pytest.mark.parametrize("q", HOSTILE)
def test_search_takes_words_as_they_are(service: Service, q: str) -> None:
    """No character means anything to a store."""
    text = q.encode("utf-8", "surrogatepass")
    assert call(service, "GET", JOBS, params={"q": text}).status_code in (200, 400)


def test_command_lists_counts_and_changes_jobs(service: Service, ai: AiService) -> None:
    """`jobs` shows how many it would be and asks; with --yes it does it, named jobs one by one; exit codes tell. A
    window of 80 characters has room for the words, and a user's id stays as it is.
    """
    failed = fail(service, ai, "user-1", "a:key:2")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "run.py", "jobs", *arguments]
        return subprocess.run(command, cwd=ROOT, env=service.environment, input="n\n", capture_output=True, text=True)

    shown = run("ls", "--where", "state=failed q='scripted 400'", "--json")
    assert [json.loads(line)["jobId"] for line in shown.stdout.splitlines()] == failed
    assert run("ls", "--count", "--where", "state=failed user=a:key:2").stdout == "1 job\n"
    dry = run("retry", "--where", "state=failed")
    assert dry.returncode == 1 and "2 jobs to retry" in dry.stdout and failed[0] in dry.stdout
    assert all(text in dry.stdout for text in ("  failed ", "  1  ", "  a:key:2 ", "  sneaker ", "  scripted 400"))
    done = run("retry", "--where", "state=failed", "--yes", "--json")
    assert [json.loads(line).get("done") for line in done.stdout.splitlines()] == [None, 2]
    assert run("cancel", failed[0], "x").returncode == 1


@pytest.mark.parametrize("where", ["state=waiting user=", "user=ada q='  '", "user=ada user=bob", "users=ada", "ada"])
def test_where_that_says_less_than_was_meant_is_refused(where: str) -> None:
    """A part without a value, as of an empty variable, a part that stands there twice, and what is no part."""
    with pytest.raises(click.BadParameter):
        read_where(where)


def test_lists_go_on_without_redis(tmp_path: Path, ai: AiService) -> None:
    """What only Redis knows is left out, or answered with 503; afterwards all is as before."""
    with RedisServer() as redis, Service(tmp_path, ai.url, ROLE="web", REDIS_URL=redis.url) as service:
        jobs = upload(service, "user-1", "user-1")
        redis.stop()
        assert [job["jobId"] for job in data(service, JOBS)["items"]] == jobs
        assert data(service, f"{JOBS}/{jobs[0]}")["job"]["state"] == "waiting"
        assert data(service, f"{JOBS}/count")["count"] == 2 and data(service, "/api/queue/failures")["items"] == []
        for path in (f"{JOBS}?state=waiting", f"{JOBS}?state=active", f"{JOBS}/count?state=delayed"):
            assert call(service, "GET", path).status_code == 503
        for action in ("postpone", "resume"):
            body = {"action": action, "all": True, "until": LATER, "seconds": 60}
            assert call(service, "POST", BULK, json=body).status_code == 503
        redis.start()
        while call(service, "GET", f"{JOBS}?state=waiting").status_code == 503:
            pass
        assert len(data(service, JOBS, state="waiting")["items"]) == 2
