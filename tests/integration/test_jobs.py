"""Operators' lists of jobs and changes of many jobs, on the running service; its replies follow the contract."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import click
import pytest

from pipeline.assets.asset import CANCELLED, AiMetadata, AssetStatus
from pipeline.assets.failures import fingerprint
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.commands.jobs import read_where
from tests.factories import make_asset
from tests.integration.operator_jobs import (
    BULK,
    JOBS,
    LATER,
    bulk,
    call,
    clean,
    data,
    fail,
    listed,
    service,
    upload,
    waiting_with_positions,
)
from tests.service import ROOT, AiService, Service

__all__ = ["clean", "service"]  # fixtures
UNKNOWN = f"ai-processing:{'0' * 24}"


def test_jobs_are_listed_by_state_and_filter(service: Service, ai: AiService) -> None:
    """Failed, completed, active, waiting and delayed jobs are each listed by their state; filters and pages combine."""
    failed = fail(service, ai, "user-1", "user-2")
    done = upload(service, "user-1", category="lego")
    service.wait_status(waiting=0, active=0)
    ai.configure(paused=True)
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
    ai.configure(paused=False)
    service.wait_status(active=0)


def test_one_job_is_shown_with_all_its_facts(service: Service, ai: AiService) -> None:
    """Its id, its asset's id, and the id of a retry find it; it has reason, attempts and texts to search logs for."""
    (failed,) = fail(service, ai, "user-1")
    asset_id = failed.removeprefix("ai-processing:")
    for name in (failed, asset_id, f"ai-processing:{asset_id.upper()}", failed.replace(":", "%3A")):
        found = data(service, f"{JOBS}/{name}")
        assert (found["job"]["jobId"], found["job"]["state"], found["asset"]["id"]) == (failed, "failed", asset_id)
    assert found["job"]["reason"] == found["asset"]["aiMetadata"]["error"] == "scripted 400"
    assert found["searchFor"] == [f"jobId={failed}", f"requestId={found['requestId']}"] and found["requestId"]
    assert len(found["asset"]["attempts"]) == 1
    # The owner sees the reason, operators the cause too.
    (cause,) = found["causes"]
    assert "400" in cause and "cause" not in service.get(f"/api/assets/{asset_id}").text
    retried = call(service, "POST", f"{JOBS}/{failed}/retry")
    assert retried.status_code == 202
    new = retried.json()["data"]["jobId"]
    service.wait_status(waiting=0, active=0)
    for name in (failed, new, asset_id):
        assert data(service, f"{JOBS}/{name}")["job"] | {"state": "completed"} == data(service, f"{JOBS}/{new}")["job"]
    # The retry has removed the dead letter.
    assert data(service, "/api/queue/failed")["items"] == []
    assert call(service, "POST", f"{JOBS}/{new}/retry").status_code == 409
    assert call(service, "POST", f"{JOBS}/{new}/cancel").status_code == 409
    for method, path in (("GET", ""), ("POST", "/retry"), ("POST", "/cancel")):
        assert call(service, method, f"{JOBS}/{UNKNOWN}{path}").status_code == 404
        for malformed in ("x", f"other:{'0' * 24}", f"{UNKNOWN}0", "%FF", "%00", "..%2F", f"notifications:{'0' * 24}"):
            assert call(service, method, f"{JOBS}/{malformed}{path}").status_code == 400, malformed


def test_failures_are_grouped_retried_and_cancelled(service: Service, ai: AiService) -> None:
    """A retry runs all jobs of one kind, but no newer ones. Cancelled jobs are a kind too, and a retry runs them."""
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


def test_postponed_jobs_wait_and_return_in_order(service: Service, ai: AiService) -> None:
    """Resume puts postponed jobs in front, the oldest first; without it they are ready after their time."""
    call(service, "POST", "/api/queue/pause")
    jobs = upload(service, "user-1", "user-1", "user-2")
    assert bulk(service, "postpone", {"user": "user-1"}, seconds=3600)["done"] == 2
    assert bulk(service, "postpone", {"user": "user-1"}, seconds=3600)["done"] == 0
    assert service.wait_status(waiting=1, delayed=2)
    assert bulk(service, "resume", {"user": "user-1", "q": jobs[0]})["done"] == 0
    assert bulk(service, "resume", {"user": "user-1"})["done"] == 2
    service.wait_log("jobs_changed", action="resume", done=2)
    service.wait_status(waiting=3, delayed=0)
    positions = {job["jobId"]: job["position"] for job in waiting_with_positions(service)}
    assert [positions[job] for job in reversed(jobs)] == [1, 2, 3]
    assert bulk(service, "postpone", {"user": "user-1"}, seconds=1)["done"] == 2
    call(service, "POST", "/api/queue/resume")
    service.wait_status(waiting=0, delayed=0, active=0)
    assert len(listed(service, state="completed")) == 3


def test_bulk_changes_jobs_chunk_by_chunk(service: Service) -> None:
    """Of 250 failed assets half have no original: retries of two chunks refuse those; deletes remove all."""

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
    ran = subprocess.run(command, cwd=ROOT, env=service.environment, capture_output=True, text=True)
    # Each chunk names only twenty refused jobs.
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (1, "0 done, 0 had moved on")
    assert ran.stderr.splitlines()[-1] == "Error: at least 20 refused"
    # A chunk that takes long ends early, and the next chunk continues there.
    deleted, cursor = 0, None
    while True:
        chunk = bulk(service, "delete", where, cursor=cursor)
        deleted += chunk["done"]
        if (cursor := chunk["nextCursor"]) is None:
            break
    assert deleted == 250 and listed(service, user="old") == []


def test_routes_are_for_operators(service: Service) -> None:
    """Read-only operators cannot change jobs; users get 403; a page of a foreign origin cannot use an admin's token."""
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
    """The 400 names the wrong field; a misspelt or empty filter never selects all jobs."""
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
    """The 400 names the wrong parameter."""
    error = call(service, "GET", f"{JOBS}?{query}").json()["error"]
    assert [each["field"] for each in error["details"]] == [query.partition("=")[0]]


HOSTILE = ("%", "_", "'", '"', "\\", "*", "a' OR 1=1 --", "$ne", "(((", "\u0000", "\ud83d", "ß", "İ" * 200)


@pytest.mark.parametrize("q", HOSTILE)
def test_search_takes_words_literally(service: Service, q: str) -> None:
    """No character of a search is an operator of the store."""
    text = q.encode("utf-8", "surrogatepass")
    assert call(service, "GET", JOBS, params={"q": text}).status_code in (200, 400)


def test_command_lists_counts_and_changes_jobs(service: Service, ai: AiService) -> None:
    """`jobs` shows how many jobs a change has and asks; with --yes it makes the change; exit codes report refusals.

    A terminal of 80 characters has room for the words, and a user's id is shown unchanged.
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
def test_where_with_faulty_parts_is_refused(where: str) -> None:
    """Faulty are a part without a value (an empty variable), a repeated part, an unknown name, and a bare word."""
    with pytest.raises(click.BadParameter):
        read_where(where)
