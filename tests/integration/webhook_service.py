"""A service with the notifier `webhook`: its settings, uploads, admin routes and metrics."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx

from tests.constants import NOTIFIER_BACKOFF_MS
from tests.fake_receiver import FakeReceiver
from tests.service import Service

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
WAIT_SECONDS = 20.0


def webhook(url: str, **settings: str) -> dict[str, str]:
    """Return the settings of a service that sends its events to the receiver at this URL."""
    own = {"PLUGIN_WEBHOOK_URL": url, "PLUGIN_WEBHOOK_SECRET": SECRET, "PLUGIN_WEBHOOK_ALLOW_PRIVATE": "true"}
    return {"NOTIFIERS": "websocket,webhook", NOTIFIER_BACKOFF_MS: "20"} | own | settings


def upload(service: Service, count: int = 1) -> list[str]:
    """Upload `count` photos and return their asset ids."""
    ids = []
    with httpx.Client() as client:
        for _ in range(count):
            response = service.upload(client=client)
            assert response.status_code == 202, response.text
            ids.append(response.json()["data"]["assetId"])
    return ids


def admin(service: Service, method: str, path: str, **params: str) -> Any:
    """Call a route as an admin and return its data."""
    headers = service.headers("boss", role="admin")
    response = httpx.request(method, service.url + path, headers=headers, params=params, timeout=WAIT_SECONDS)
    assert response.is_success, response.text
    return response.json()["data"] if response.content else None


def wait_metric(service: Service, sample: str, value: float) -> None:
    """Wait until /metrics shows the sample with that value. An acknowledgement is visible in no other place."""
    deadline = time.monotonic() + WAIT_SECONDS
    while f"{sample} {value}\n" not in (page := httpx.get(f"{service.url}/metrics").text):
        assert time.monotonic() < deadline, [line for line in page.splitlines() if line.startswith(sample[:20])]
        time.sleep(0.02)


def depth(state: str, queue: str = "notifications") -> str:
    """Return the sample that counts the jobs of the queue in this state."""
    return f'pipeline_queue_depth{{queue="{queue}",state="{state}"}}'


def finished(outcome: str, queue: str = "notifications") -> str:
    """Return the sample that counts the attempts that ended with this outcome."""
    return f'pipeline_jobs_finished_total{{outcome="{outcome}",queue="{queue}"}}'


def webhook_ids(receiver: FakeReceiver) -> list[str]:
    """Return the webhook-id of each request, in the order of arrival."""
    return [request.headers["Webhook-Id"] for request in receiver.requests]
