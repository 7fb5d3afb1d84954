"""Events that could not be delivered: the dead letters of the notifier queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.constants import BREAKER_FAILURES, NOTIFIER_ATTEMPTS
from tests.fake_receiver import FakeReceiver, Reply
from tests.integration.webhook_service import admin, depth, finished, webhook_ids, upload, wait_metric, webhook
from tests.service import AiService, Service


def dead_letters(service: Service, queue: str = "notifications") -> list[dict[str, Any]]:
    """Return the dead letters of the queue, the newest first."""
    items: list[dict[str, Any]] = admin(service, "GET", "/api/queue/failed", queue=queue)["items"]
    return items


def make_dead_letters(service: Service, count: int) -> list[str]:
    """Upload photos whose events cannot be delivered, and return their asset ids."""
    ids = []
    for number in range(count):  # one at a time, so that each has two of the failures
        ids += upload(service)
        wait_metric(service, finished("failed"), number + 1.0)
    wait_metric(service, depth("failed"), float(count))
    return ids


def retry_undeliverable(service: Service, letter: dict[str, Any]) -> None:
    """Retry a dead letter for which the receiver answers 410: it fails at its first attempt."""
    answer = admin(service, "POST", f"/api/queue/failed/{letter['jobId']}/retry")
    assert (answer["assetId"], answer["jobId"]) == (letter["assetId"], letter["jobId"])
    wait_metric(service, finished("failed"), 4.0)
    wait_metric(service, depth("failed"), 3.0)
    (failed,) = [item for item in dead_letters(service) if item["assetId"] == letter["assetId"]]
    assert failed["reason"] == "Webhook receiver wants no more events (HTTP 410)" and failed["attempts"] == 1


def test_event_out_of_attempts_is_a_dead_letter_that_can_be_delivered(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """It is listed with its reason, apart from those of the AI. A retry of one or all delivers it with the same id."""
    receiver.script(*[Reply(503)] * 6, Reply(410))
    ai_service.configure(replies=[{"status": 422}])
    # So many failures in a row would hold the webhook, and with it the retries that the admin orders.
    settings = webhook(receiver.url, **{NOTIFIER_ATTEMPTS: "2", BREAKER_FAILURES: "100"})
    with Service(tmp_path, ai_service.url, **settings) as service:
        ids = make_dead_letters(service, 3)
        (refused,) = admin(service, "GET", "/api/queue/failed")["items"]
        assert (refused["assetId"], refused["jobId"]) == (ids[0], f"ai-processing:{ids[0]}")
        assert dead_letters(service, "ai-processing") == [refused]
        items = dead_letters(service)
        assert [item["assetId"] for item in items] == ids[::-1]
        assert {(item["attempts"], item["userId"]) for item in items} == {(2, "user-1")}
        assert items[0]["reason"] == "Webhook receiver answered HTTP 503 after 2 attempts"
        retry_undeliverable(service, items[0])

        # From now on the receiver accepts events: one is retried by its id, the others together.
        admin(service, "POST", f"/api/queue/failed/{items[2]['jobId']}/retry")
        wait_metric(service, finished("completed"), 1.0)
        page = admin(service, "POST", "/api/queue/failed/retry", queue="notifications")
        assert (page["retried"], page["skipped"], page["remaining"]) == (2, 0, 0)
        wait_metric(service, finished("completed"), 3.0)
        wait_metric(service, depth("failed"), 0.0)
        assert admin(service, "GET", "/api/queue/failed")["items"] == [refused], "that of the AI is not retried"
    assert set(webhook_ids(receiver)[-3:]) == {item["jobId"] for item in items}


def test_dead_letters_of_one_queue_are_removed_without_the_others(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """DELETE of one job and DELETE of a queue remove dead letters of that queue only."""
    receiver.script(*[Reply(410)] * 2)
    ai_service.configure(replies=[{"status": 422, "times": 2}])
    with Service(tmp_path, ai_service.url, **webhook(receiver.url)) as service:
        upload(service, 2)
        wait_metric(service, depth("failed"), 2.0)
        wait_metric(service, depth("failed", "ai-processing"), 2.0)
        first = dead_letters(service)[0]
        admin(service, "DELETE", f"/api/queue/failed/{first['jobId']}")
        wait_metric(service, depth("failed"), 1.0)
        removed = admin(service, "DELETE", "/api/queue/failed", queue="notifications")
        assert removed == {"removed": 1, "remaining": 0}
        assert len(admin(service, "GET", "/api/queue/failed")["items"]) == 2
        assert httpx.get(
            f"{service.url}/api/queue/failed", params={"queue": "x"}, headers=service.headers("a", role="admin")
        ).json()["error"]["code"] == "VALIDATION_ERROR"
