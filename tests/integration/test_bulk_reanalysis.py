"""Reanalysis of many assets on a running service: requested by `reanalyze` and a bulk action, listed and cancelled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.constants import RENEWALS_PER_LEASE
from tests.contract.contracts import check_reply
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service

QUICK = {"LEASE_SECONDS": "2", RENEWALS_PER_LEASE: "4"}
JOBS = "/api/queue/jobs"


class Operator:
    """An operator's calls to the service; each reply is checked by the contract."""

    def __init__(self, service: Service) -> None:
        self.service, self.headers = service, service.headers("ops-1", role="admin")

    def bulk(self, action: str, where: dict[str, str], **more: Any) -> dict[str, Any]:
        """Return the reply to a bulk action on the jobs that match."""
        body = {"action": action, "filter": where, "until": "2100-01-01T00:00:00.000Z"} | more
        path = f"{JOBS}/bulk"
        reply = self.post(path, json=body)
        check_reply("POST", path, reply.status_code, reply.json(), reply.headers)
        content: dict[str, Any] = reply.json()
        return content

    def background(self, path: str, **query: str) -> dict[str, Any]:
        """Return the data of a list or a count, of background jobs unless the query says otherwise."""
        params = {"state": "background"} | query
        reply = httpx.get(self.service.url + path, params=params, headers=self.headers)
        check_reply("GET", path, reply.status_code, reply.json(), reply.headers)
        data: dict[str, Any] = reply.json()["data"]
        return data

    def post(self, path: str, **options: Any) -> httpx.Response:
        """Return the reply to a POST."""
        return httpx.post(self.service.url + path, headers=self.headers, **options)


def test_wipe_and_kill_lose_no_reanalysis_and_repeat_none(tmp_path: Path, ai_service: AiService) -> None:
    """`reanalyze` shows a preview and then enqueues; each asset is analyzed once, in spite of a wipe and a kill.

    Waiting uploads are claimed before background jobs, a cancelled reanalysis does not run, and the audit list names
    the operator's actions.
    """
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url, **QUICK) as service:
        ids = [service.upload().json()["data"]["assetId"] for _ in range(8)]
        service.wait_status(waiting=0, active=0)
        before = {each: service.asset(each) for each in ids}
        operator = Operator(service)
        _request_all(operator, ai_service)
        service.wait_status(active=4)
        assert all(service.asset(each)["status"] == "active" for each in ids)
        _upload_wipe_and_kill(service, redis)
        ai_service.configure(paused=False)
        service.wait_log("asset_reanalyzed", count=8, outcome="changed")
        service.wait_status(waiting=0, active=0, delayed=0)
        _check_new_results(service, before)
        operator.post("/api/queue/pause")
        assert operator.bulk("reanalyze", {}, all=True)["data"]["done"] == 9
        listed = _check_lists(operator, ids)
        _cancel_jobs_of_first_user(operator, listed[0]["jobId"], before)
        assert all(service.asset(each)["aiMetadata"]["brand"]["value"] == "Puma" for each in ids)
        assert {service.asset(each)["status"] for each in ids} == {"active"}
        operator.post("/api/queue/resume")
        service.wait_log("asset_reanalyzed", outcome="unchanged")
        _check_audit(operator)


def _request_all(operator: Operator, ai_service: AiService) -> None:
    """Request a reanalysis of six assets by the command line and of the other two by a bulk action."""
    refused = operator.bulk("reanalyze", {"user": "user-1"}, provider="unknown", dryRun=True)
    assert refused["error"]["details"] == [{"field": "provider", "message": "Must be one of: http"}]
    found = {"brand": "Puma", "model": "Suede", "colorway": "Red"}
    body = {name: {"value": value, "confidence": 0.9} for name, value in found.items()}
    ai_service.configure(paused=True, replies=[{"body": body, "times": 1000}])
    line = [sys.executable, "run.py", "reanalyze", "--where", "user=user-1", "--provider", "http", "--limit", "6"]
    environment = operator.service.environment
    done = subprocess.run([*line, "--yes", "--json"], cwd=ROOT, env=environment, capture_output=True, text=True)
    preview, chunk = map(json.loads, done.stdout.splitlines())
    assert (preview["count"], len(preview["sample"]), chunk["done"]) == (6, 5, 6)
    assert operator.bulk("reanalyze", {"user": "user-1"})["data"] | {"nextCursor": None} == {
        **{"done": 2, "skipped": 6, "refused": []},
        **{"nextCursor": None, "searchedTo": None},
    }


def _upload_wipe_and_kill(service: Service, redis: RedisServer) -> None:
    """Upload a photo of another user, wipe Redis, and restart the service after a kill."""
    # Background jobs leave the fifth slot free for an upload.
    service.upload("user-2")
    service.wait_status(active=5, waiting=0)
    redis.client().flushall()
    service.wait_log("jobs_reconciled")
    # The upload and three background jobs are active; one slot is free for an upload.
    service.wait_status(active=4)
    service.kill()
    service.start()


def _check_new_results(service: Service, before: dict[str, dict[str, Any]]) -> None:
    """Check that each asset has the new result, and that each was analyzed once."""
    for asset_id, earlier in before.items():
        after = service.asset(asset_id)
        assert after["aiMetadata"]["brand"]["value"] == "Puma" and after["provenance"]["provider"] == "http"
        assert after["finishedAt"] > earlier["finishedAt"]
        assert after["processingJobId"] == earlier["processingJobId"]
    assert len(service.find("asset_reanalyzed")) == 8


def _check_lists(operator: Operator, ids: list[str]) -> list[dict[str, Any]]:
    """Return the listed jobs of the first user: they come page by page, and are counted."""
    where = {"user": "user-1", "limit": "5"}
    page = operator.background(JOBS, **where)
    rest = operator.background(JOBS, **where, cursor=page["nextCursor"])
    listed = [*page["items"], *rest["items"]]
    assert (len(page["items"]), sorted(each["assetId"] for each in listed)) == (5, sorted(ids))
    assert {(each["state"], each["status"], each["provider"]) for each in listed} == {("waiting", "active", "http")}
    count = f"{JOBS}/count"
    counted = [operator.background(count, **query)["count"] for query in ({}, {"user": "user-1"}, {"user": "user-2"})]
    assert counted == [9, 8, 1] and operator.background(count, provider="http")["count"] == 0
    assert operator.background(count, state="waiting")["count"] == 0
    return listed


def _cancel_jobs_of_first_user(operator: Operator, job_id: str, before: dict[str, dict[str, Any]]) -> None:
    """Cancel one reanalysis by its id, and the other seven by a bulk action."""
    assert operator.bulk("retry", {"state": "background"})["error"]["details"][0]["field"] == "state"
    assert job_id not in {each["processingJobId"] for each in before.values()}
    replies = [operator.post(f"{JOBS}/{job_id}/cancel").status_code for _ in range(2)]
    assert replies[0] == 200 and replies[1] in (404, 409)
    where = {"state": "background", "user": "user-1"}
    preview = operator.bulk("cancel", where, dryRun=True)["data"]
    assert (preview["count"], len(preview["sample"])) == (7, 5)
    assert operator.bulk("cancel", where)["data"]["done"] == 7
    assert operator.bulk("keep", {"user": "user-1"})["data"]["done"] == 0


def _check_audit(operator: Operator) -> None:
    """Check that the audit list has the cancellation and the reanalysis."""
    reply = httpx.get(f"{operator.service.url}/api/queue/audit", headers=operator.headers)
    audit = reply.json()["data"]["items"]
    actions = {(each["action"], each["target"], each["count"]) for each in audit}
    assert ("cancel jobs", "state=background user=user-1", 7) in actions
    assert ("reanalyze jobs", 6) in {(each["action"], each["count"]) for each in audit}
