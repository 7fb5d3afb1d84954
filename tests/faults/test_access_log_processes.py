"""The access log over two processes, and while Redis is away."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.sockets import WAIT_SECONDS

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.mark.fault("O15")
def test_one_photo_can_be_followed_through_two_processes(tmp_path: Path, redis_url: str, ai_service: AiService) -> None:
    """All lines of a photo, up to the end of its job, carry its request id, trace, owner, asset and job."""
    shared = {"REDIS_URL": redis_url, "QUEUE_PREFIX": "follow"}
    web = Service(tmp_path, ai_service.url, ROLE="web", **shared)
    with web, Service(tmp_path, ai_service.url, ROLE="worker", **shared) as worker:
        reply = web.upload("ann", headers={"X-Request-Id": "photo-7", "traceparent": TRACE})
        ids = reply.json()["data"]
        worker.wait_log("job_completed", requestId="photo-7")
        lines = [line for each in (web, worker) for line in each.lines if line.get("requestId") == "photo-7"]
    ids_of_photo = {"userId": "ann", "traceId": TRACE_ID, "assetId": ids["assetId"], "jobId": ids["jobId"]}
    events = [line["event"] for line in lines]
    assert events == ["asset_submitted", "request_completed", "job_claimed", "asset_finished", "job_completed"]
    assert all(ids_of_photo.items() <= line.items() for line in lines)


@pytest.mark.fault("O15")
def test_outage_does_not_flood_the_log(tmp_path: Path, ai_service: AiService) -> None:
    """Each warning is logged once however many requests come while Redis is away; so is the line of its return."""
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url, LOG_LEVEL="DEBUG") as service:
        redis.kill()
        service.wait_log("queue_unreachable")
        service.remove_lines()
        with httpx.Client(timeout=WAIT_SECONDS) as client:
            while client.get(service.url + "/readyz").status_code == 200:
                pass
            for _ in range(3):
                assert client.get(service.url + "/readyz").status_code == 503
                assert client.get(service.url + "/api/events?ticket=" + "x" * 43).status_code == 503
                assert service.upload("ann", client=client).status_code == 202
                wrong = {"Authorization": "Bearer wrong", "Origin": "https://evil.example"}
                assert client.get(service.url + "/api/assets", headers=wrong).status_code == 401
            loud = [line for line in service.lines if line["level"] not in ("info", "debug")]
            kinds = [(line["event"], line.get("dependency") or line.get("error") or line.get("cause")) for line in loud]
            assert len(kinds) == len(set(kinds)), loud
            changes = [line for line in service.find("request_completed", route="/readyz") if line["level"] != "debug"]
            assert [line["status"] for line in changes] == [503]
            redis.start()
            while client.get(service.url + "/readyz").status_code == 503:
                pass
        service.wait_log("check_passed", dependency="queue")
        assert service.wait_log("request_completed", route="/readyz", status=200, level="info")
