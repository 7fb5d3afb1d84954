"""The running service for tests of the routes of jobs: uploads with a known end, and calls that check the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.contracts import check_reply
from tests.service import AiService, Service

JOBS, BULK = "/api/queue/jobs", "/api/queue/jobs/bulk"
LATER = "2100-01-01T00:00:00.000Z"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("data"), ai.url, COLUMNS="160") as service:
        yield service


@pytest.fixture(autouse=True)
def clean(service: Service) -> Iterator[None]:
    """Empty and resume the queue after each test."""
    yield
    call(service, "POST", "/api/queue/resume")
    for action in ("resume", "cancel", "delete"):
        bulk(service, action, {}, all=True)


def call(service: Service, method: str, path: str, role: str | None = "admin", **options: Any) -> httpx.Response:
    """Call a route with a token of that role, and check the reply against the contract."""
    options["headers"] = service.headers("ops-1", role=role) | options.get("headers", {})
    response = httpx.request(method, service.url + path, timeout=60, **options)
    check_reply(method, path, response.status_code, response.json() if response.content else None, response.headers)
    return response


def data(service: Service, path: str, **params: Any) -> Any:
    response = call(service, "GET", path, params=params)
    assert response.status_code == 200, response.text
    return response.json()["data"]


def listed(service: Service, **params: Any) -> list[str]:
    """Return the ids of the jobs of a list, and check that the count is its length."""
    found = data(service, JOBS, **params)
    assert found["nextCursor"] is None
    counted = data(service, f"{JOBS}/count", **params)
    assert counted == {"count": len(found["items"]), "isExact": True}
    return [job["jobId"] for job in found["items"]]


def bulk(service: Service, action: str, where: dict[str, str], **more: Any) -> dict[str, Any]:
    """Change one chunk of the jobs that the filter finds, and return the reply."""
    body = {"action": action, "filter": where, "until": LATER} | more
    found: dict[str, Any] = call(service, "POST", BULK, json=body).json()["data"]
    return found


def upload(service: Service, *users: str, **options: Any) -> list[str]:
    """Upload a photo for each user and return the jobs, the newest first."""
    return [service.upload(user, **options).json()["data"]["jobId"] for user in users][::-1]


def fail(service: Service, ai: AiService, *users: str) -> list[str]:
    """Let the AI service refuse a photo of each user; return the jobs, the newest first."""
    ai.configure(replies=[{"status": 400, "times": len(users)}])
    jobs = upload(service, *users)
    service.wait_status(waiting=0, active=0, delayed=0)
    return jobs


def waiting_with_positions(service: Service) -> list[dict[str, Any]]:
    """Return the waiting jobs once each has a position."""
    while True:
        found: list[dict[str, Any]] = data(service, JOBS, state="waiting")["items"]
        if all(job["position"] for job in found):
            return found
