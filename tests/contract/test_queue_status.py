"""GET /api/assets/queue-status of a running service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.contracts import check_reply
from tests.service import Service

PATH = "/api/assets/queue-status"


@pytest.fixture
def service(tmp_path: Path, silent_ai_service: str) -> Iterator[Service]:
    with Service(tmp_path, silent_ai_service, SHUTDOWN_SECONDS="0") as service:
        yield service


@pytest.mark.spec("T057")
def test_status_counts_jobs_by_state(service: Service) -> None:
    """Of seven jobs five are active and two wait."""
    for _ in range(7):
        assert service.upload().status_code == 202
    service.wait_log("job_claimed", count=5)
    response = service.get(PATH)
    check_reply("GET", PATH, response.status_code, response.json())
    assert response.json()["data"] == {
        "waiting": 2,
        "active": 5,
        "completed": 0,
        "failed": 0,
        "delayed": 0,
        "paused": False,
    }


@pytest.mark.spec("T058")
def test_status_needs_a_token(service: Service) -> None:
    """A request without a token gets 401."""
    response = httpx.get(service.url + PATH)
    check_reply("GET", PATH, response.status_code, response.json())
    assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHORIZED")
