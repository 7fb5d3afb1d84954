"""Operators' lists of jobs while Redis is away."""

from __future__ import annotations

from pathlib import Path

from tests.integration.operator_jobs import BULK, JOBS, LATER, call, data, upload
from tests.redis_server import RedisServer
from tests.service import AiService, Service


def test_lists_work_without_redis(tmp_path: Path, ai_service: AiService) -> None:
    """Without Redis its fields are left out, or the reply is 503; after its restart all lists work."""
    with RedisServer() as redis, Service(tmp_path, ai_service.url, ROLE="web", REDIS_URL=redis.url) as service:
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
