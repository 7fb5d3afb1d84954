"""The routes of operators under /api/queue of a running service: each reply keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.contracts import check_reply
from tests.redis_server import RedisServer
from tests.service import AiService, Service

UNKNOWN = f"ai-processing:{'0' * 24}"
ROUTES = [
    ("GET", "/api/queue/failed"),
    ("DELETE", "/api/queue/failed"),
    ("POST", "/api/queue/failed/retry"),
    ("DELETE", f"/api/queue/failed/{UNKNOWN}"),
    ("POST", f"/api/queue/failed/{UNKNOWN}/retry"),
    ("POST", "/api/queue/pause"),
    ("POST", "/api/queue/resume"),
]
ONE_JOB = [("DELETE", "/api/queue/failed/{}"), ("POST", "/api/queue/failed/{}/retry")]


@pytest.fixture(scope="module", params=["all", "web"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ai: AiService
) -> Iterator[Service]:
    """A process with the role all, then one with the role web together with a worker process."""
    data_dir = tmp_path_factory.mktemp("data")
    with RedisServer() as redis, Service(data_dir, ai.url, ROLE=request.param, REDIS_URL=redis.url) as service:
        if request.param == "all":
            yield service
        else:
            with Service(data_dir, ai.url, ROLE="worker", REDIS_URL=redis.url):
                yield service


def call(service: Service, method: str, path: str, role: str | None = "admin", **options: Any) -> httpx.Response:
    """Call a route with a token of that role and check the reply against the contract."""
    options.setdefault("headers", service.headers("ops-1", role=role))
    response = httpx.request(method, service.url + path, timeout=60, **options)
    check_reply(method, path, response.status_code, response.json() if response.content else None, response.headers)
    return response


def make_dead_letters(service: Service, ai: AiService, count: int) -> list[str]:
    """Upload photos that the AI service refuses; return their job ids."""
    before = service.wait_status(waiting=0, active=0)["failed"]  # else an earlier job could get one of the refusals
    ai.configure(replies=[{"status": 400, "times": count}])
    jobs = [service.upload().json()["data"]["jobId"] for _ in range(count)]
    service.wait_status(failed=before + count)
    return jobs


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_routes_accept_admins_only(service: Service, method: str, path: str) -> None:
    """A request without a token or with a wrong one gets 401; the token of a user gets 403."""
    assert call(service, method, path, headers={}).status_code == 401
    assert call(service, method, path, headers={"Authorization": "Bearer nonsense"}).status_code == 401
    for role in (None, "user", "Admin"):
        response = call(service, method, path, role)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert service.wait_status(paused=False)


def test_dead_letters_are_listed_retried_and_removed(service: Service, ai: AiService) -> None:
    """Dead letters are listed in pages; one or all of them can be retried or removed."""
    call(service, "DELETE", "/api/queue/failed")
    jobs = make_dead_letters(service, ai, 5)
    first = call(service, "GET", "/api/queue/failed?limit=3").json()["data"]
    cursor = first["nextCursor"]
    second = call(service, "GET", "/api/queue/failed", params={"limit": 3, "cursor": cursor}).json()["data"]
    assert {item["jobId"] for item in first["items"] + second["items"]} == set(jobs)
    assert (len(first["items"]), len(second["items"]), second["nextCursor"]) == (3, 2, None)
    assert call(service, "POST", f"/api/queue/failed/{jobs[0]}/retry").status_code == 202
    assert call(service, "DELETE", f"/api/queue/failed/{jobs[1]}").status_code == 204
    rest = call(service, "POST", "/api/queue/failed/retry")
    assert (rest.status_code, rest.json()["data"]["retried"]) == (202, 3)
    make_dead_letters(service, ai, 2)
    removed = call(service, "DELETE", "/api/queue/failed")
    assert (removed.status_code, removed.json()["data"]) == (200, {"removed": 2, "remaining": 0})


def test_queue_is_paused_and_resumed(service: Service) -> None:
    """Pause and resume may be repeated, and the queue status shows the result."""
    for _ in range(2):
        assert call(service, "POST", "/api/queue/pause").json()["data"] == {"paused": True}
    assert service.wait_status(paused=True)
    for _ in range(2):
        assert call(service, "POST", "/api/queue/resume").json()["data"] == {"paused": False}
    assert service.wait_status(paused=False)


@pytest.mark.parametrize(("method", "path"), ONE_JOB)
def test_unknown_dead_letter_is_not_found(service: Service, method: str, path: str) -> None:
    """An unknown job gets 404, with the colon encoded or not; so does a job that did not fail."""
    job_id = service.upload().json()["data"]["jobId"]
    for unknown in (UNKNOWN, UNKNOWN.replace(":", "%3A"), job_id):
        response = call(service, method, path.format(unknown))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(("method", "path"), ONE_JOB)
@pytest.mark.parametrize(
    "job_id",
    ["x", "0" * 24, "ai-processing:0", f"other:{'0' * 24}", f"{UNKNOWN}0", f"{UNKNOWN}%0A", "%2F..%2F", "%FF", "%00"],
)
def test_malformed_job_id_is_refused(service: Service, method: str, path: str, job_id: str) -> None:
    """A job id of another form gets 400."""
    response = call(service, method, path.format(job_id))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("GET", "/api/queue/failed?limit=0&cursor=!", ["limit", "cursor"]),
        ("GET", "/api/queue/failed?limit=101", ["limit"]),
        ("GET", "/api/queue/failed?cursor=", ["cursor"]),
        ("GET", "/api/queue/failed?cursor=AAAA", ["cursor"]),
        ("GET", "/api/queue/failed?cursor=MS7_", ["cursor"]),
        ("POST", "/api/queue/failed/retry?cursor=%00", ["cursor"]),
    ],
)
def test_wrong_query_gets_a_detail_for_each_fault(service: Service, method: str, path: str, fields: list[str]) -> None:
    """A wrong query gets 400 with a detail for each wrong parameter."""
    error = call(service, method, path).json()["error"]
    assert (error["message"], [each["field"] for each in error["details"]]) == ("Invalid query", fields)


def test_dead_letter_of_a_retried_asset_conflicts(service: Service, ai: AiService) -> None:
    """The retry of a dead letter gets 409 after the user has retried the asset; it can still be removed."""
    (job_id,) = make_dead_letters(service, ai, 1)
    asset_id = job_id.removeprefix("ai-processing:")
    httpx.post(f"{service.url}/api/assets/{asset_id}/retry", headers=service.headers()).raise_for_status()
    response = call(service, "POST", f"/api/queue/failed/{job_id}/retry")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert call(service, "DELETE", f"/api/queue/failed/{job_id}").status_code == 204


def test_routes_get_503_while_redis_is_stopped(tmp_path: Path, ai: AiService) -> None:
    """Each route gets 503 while Redis is stopped, and 200 after Redis has started."""
    with RedisServer() as redis, Service(tmp_path, ai.url, REDIS_URL=redis.url) as service:
        redis.stop()
        for method, path in ROUTES:
            response = call(service, method, path)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "UNAVAILABLE")
        redis.start()
        assert call(service, "GET", "/api/queue/failed").status_code == 200
