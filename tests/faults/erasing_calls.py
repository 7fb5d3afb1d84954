"""Requests of an administrator and uploads of two users: GONE is erased, STAYS is not."""

from __future__ import annotations

from typing import Any

import httpx

from tests.constants import BREAKER_PROBE_SECONDS
from tests.service import AiService, Service

REFUSED = {"status": 400, "body": {"error": {"message": "No photo", "code": "X"}}}
GONE = "gone:7d41c0.person@example"
STAYS = "stays-5"
# The receiver of webhooks does not run, so its events stay undelivered.
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
    """Erase the user; return the answer once all data is removed."""
    while (answer := call(service, "DELETE", f"/api/users/{sub}")).status_code == 202:
        pass
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def upload(service: Service, sub: str, **options: Any) -> str:
    """Upload a photo of the user and return its asset id."""
    asset_id: str = service.upload(sub, **options).json()["data"]["assetId"]
    return asset_id


def fail(service: Service, ai_service: AiService, sub: str) -> str:
    """Upload a photo that the AI service refuses; return its asset id once it is a dead letter."""
    before = service.wait_status()["failed"]
    ai_service.configure(replies=[REFUSED])
    asset_id = upload(service, sub)
    service.wait_status(failed=before + 1)
    return asset_id
