"""Events that no receiver took: the dead letters of the notifier queue."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.constants import BREAKER_FAILURES, NOTIFIER_ATTEMPTS
from tests.fake_receiver import FakeReceiver, Reply
from tests.integration.webhook_service import admin, depth, finished, webhook_ids, upload, wait_metric, webhook
from tests.service import AiService, Service


def test_event_out_of_attempts_is_a_dead_letter_that_can_be_delivered(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """It is listed apart from the AI's dead letters, with its reason; retrying one or all delivers, same id."""
    receiver.script(*[Reply(503)] * 6, Reply(410))
    ai_service.order(replies=[{"status": 422}])
    # So many failures in a row would hold the webhook, and the retries by hand with it.
    settings = webhook(receiver.url, **{NOTIFIER_ATTEMPTS: "2", BREAKER_FAILURES: "100"})
    with Service(tmp_path, ai_service.url, **settings) as service:
        ids = []
        for number in range(3):  # one at a time, so that each has two of the failures
            ids += upload(service)
            wait_metric(service, finished("failed"), number + 1.0)
        wait_metric(service, depth("failed"), 3.0)
        (refused,) = admin(service, "GET", "/api/queue/failed")["items"]
        assert (refused["assetId"], refused["jobId"]) == (ids[0], f"ai-processing:{ids[0]}")
        assert admin(service, "GET", "/api/queue/failed", queue="ai-processing")["items"] == [refused]
        items = admin(service, "GET", "/api/queue/failed", queue="notifications")["items"]
        assert [item["assetId"] for item in items] == ids[::-1]
        assert {(item["attempts"], item["userId"]) for item in items} == {(2, "user-1")}
        assert items[0]["reason"] == "Webhook receiver answered HTTP 503 after 2 attempts"

        # One: the receiver now says 410, so it is dead again at the first try.
        answer = admin(service, "POST", f"/api/queue/failed/{items[0]['jobId']}/retry")
        assert (answer["assetId"], answer["jobId"]) == (ids[2], items[0]["jobId"])
        wait_metric(service, finished("failed"), 4.0)
        wait_metric(service, depth("failed"), 3.0)
        (again,) = [
            item
            for item in admin(service, "GET", "/api/queue/failed", queue="notifications")["items"]
            if item["assetId"] == ids[2]
        ]
        assert again["reason"] == "Webhook receiver wants no more events (HTTP 410)" and again["attempts"] == 1

        # Then it is well: one by its id, the rest at once.
        admin(service, "POST", f"/api/queue/failed/{items[2]['jobId']}/retry")
        wait_metric(service, finished("completed"), 1.0)
        page = admin(service, "POST", "/api/queue/failed/retry", queue="notifications")
        assert (page["retried"], page["skipped"], page["remaining"]) == (2, 0, 0)
        wait_metric(service, finished("completed"), 3.0)
        wait_metric(service, depth("failed"), 0.0)
        assert admin(service, "GET", "/api/queue/failed")["items"] == [refused], "the AI's are left alone"
    assert set(webhook_ids(receiver)[-3:]) == {item["jobId"] for item in items}


def test_dead_letters_of_one_queue_are_removed_without_the_others(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """DELETE with a queue and with a job's id touches that queue only."""
    receiver.script(*[Reply(410)] * 2)
    ai_service.order(replies=[{"status": 422, "times": 2}])
    with Service(tmp_path, ai_service.url, **webhook(receiver.url)) as service:
        upload(service, 2)
        wait_metric(service, depth("failed"), 2.0)
        wait_metric(service, depth("failed", "ai-processing"), 2.0)
        first = admin(service, "GET", "/api/queue/failed", queue="notifications")["items"][0]
        admin(service, "DELETE", f"/api/queue/failed/{first['jobId']}")
        wait_metric(service, depth("failed"), 1.0)
        removed = admin(service, "DELETE", "/api/queue/failed", queue="notifications")
        assert removed == {"removed": 1, "remaining": 0}
        assert len(admin(service, "GET", "/api/queue/failed")["items"]) == 2
        assert httpx.get(
            f"{service.url}/api/queue/failed", params={"queue": "x"}, headers=service.headers("a", role="admin")
        ).json()["error"]["code"] == "VALIDATION_ERROR"
