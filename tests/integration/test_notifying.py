"""Durable notifiers on their own queue: a real service tells a real receiver, whatever happens to either."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from pipeline.client import Client
from tests.constants import BREAKER_FAILURES, BREAKER_PROBE_SECONDS, NOTIFIER_BACKOFF_MS
from tests.factories import make_token
from tests.fake_receiver import FakeReceiver, Reply
from tests.integration.webhook_service import WAIT_SECONDS, admin, depth, finished, webhook_ids, upload, wait_metric, webhook
from tests.packages import install
from tests.slowdown import slowdown
from tests.service import AiService, Service


def test_each_event_is_delivered_once_by_a_job_of_its_own(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """The receiver hears once of each photo, also of the one that failed; the two queues' numbers are told apart."""
    ai_service.order(replies=[{"status": 422}])
    with Service(tmp_path, ai_service.url, **webhook(receiver.url)) as service:
        ids = upload(service, 3)
        receiver.wait_for_requests(3)
        wait_metric(service, depth("completed"), 3.0)
        events = [json.loads(request.body)["data"] for request in receiver.requests]
        assert sorted(event["assetId"] for event in events) == sorted(ids)
        assert sorted(event["status"] for event in events) == ["active", "active", "failed"]
        for event in events:
            asset = service.asset(event["assetId"])
            assert (event["status"], event["userId"]) == (asset["status"], "user-1")
            assert event.get("error") == asset["aiMetadata"].get("error")
        assert len(set(webhook_ids(receiver))) == 3
        page = httpx.get(f"{service.url}/metrics").text
        for queue, completed in {"ai-processing": 2.0, "notifications": 3.0}.items():
            assert f'pipeline_jobs_enqueued_total{{queue="{queue}"}} 3.0\n' in page
            assert f'pipeline_slots{{queue="{queue}"}} 5.0\n' in page
            assert f"{finished('completed', queue)} {completed}\n" in page
            assert f'pipeline_job_seconds_count{{outcome="completed",queue="{queue}"}} {completed}\n' in page
        service.wait_status(completed=2, failed=1, waiting=0)  # the AI's jobs alone
    assert len(receiver.requests) == 3


class Late(BaseHTTPRequestHandler):
    """Takes whatever is posted."""

    ids: list[str] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.ids.append(self.headers["webhook-id"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def listening(port: int) -> Iterator[list[str]]:
    """Run a receiver on that very port; yields the webhook-ids it gets."""
    ids: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Receiver", (Late,), {"ids": ids}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield ids
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_receiver_that_is_down_costs_no_try_until_it_is_back(tmp_path: Path, ai_service: AiService) -> None:
    """Nobody listens: single deliveries try it, the others wait aside; when it comes each event is delivered once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = webhook(f"http://127.0.0.1:{port}/hook?token=t0ken", **{BREAKER_PROBE_SECONDS: "1"})
    with Service(tmp_path, ai_service.url, **settings) as service:
        ids = upload(service)
        held = service.wait_log("plugin_held", plugin="webhook")
        assert f"127.0.0.1:{port}" in held["cause"] and "t0ken" not in str(service.lines)
        ids += upload(service, 3)
        service.wait_status(completed=4)  # the assets do not wait for it
        service.wait_log("notifier_failed", 3, plugin="webhook")
        wait_metric(service, depth("waiting"), 4.0)
        with listening(port) as delivered:
            service.wait_log("plugin_released", plugin="webhook")
            done = [service.wait_log("job_completed", assetId=each, notifier="webhook") for each in ids]
            assert sorted(delivered) == sorted(line["jobId"] for line in done)
        assert {line["attempt"] for line in done} == {1}
        assert not service.find("job_retrying") + service.find("job_failed")


def test_answers_that_are_no_success_are_tried_again_with_the_same_id(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """500, a hang-up and 404 are tried again, each wait twice the one before; all tries carry one webhook-id."""
    receiver.script(Reply(500), Reply(raw=b""), Reply(404), Reply(429, {"Retry-After": "1"}))
    settings = webhook(receiver.url, **{NOTIFIER_BACKOFF_MS: "30"})
    with Service(tmp_path, ai_service.url, **settings) as service:
        upload(service)
        receiver.wait_for_requests(5)
        wait_metric(service, finished("completed"), 1.0)
        wait_metric(service, finished("retried"), 3.0)
        wait_metric(service, finished("parked"), 1.0)
        assert [line["delayMs"] for line in service.find("job_retrying")] == [30, 60, 120]
        assert [line["attempt"] for line in service.find("job_claimed", notifier="webhook")] == [1, 2, 3, 4, 4]
        causes = [line["cause"] for line in service.find("notifier_failed")]
        host = receiver.url.split("/")[2]
        expected = [f"Answer: HTTP {status} from {host}" for status in (500, 404, 429)]
        assert [causes[0], *causes[2:]] == expected and causes[1].startswith("ConnectionError: ServerDisc")
    assert len(set(webhook_ids(receiver))) == 1


def test_receiver_that_hangs_holds_no_slot_of_the_ai(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """While every notifier slot waits for the receiver, uploads are finished as fast as before; then all is told."""
    count = 20
    with Service(tmp_path, ai_service.url, **webhook(receiver.url, NOTIFIER_TIMEOUT_SECONDS="60")) as service:
        started_at = time.monotonic()
        upload(service, count)
        service.wait_status(completed=count)
        normal_seconds = time.monotonic() - started_at
        receiver.wait_for_requests(count)
        receiver.hold()
        started_at = time.monotonic()
        upload(service, count)
        service.wait_status(completed=2 * count, active=0, waiting=0)
        assert time.monotonic() - started_at < (2 * normal_seconds + 2) * slowdown()
        wait_metric(service, depth("active"), 5.0)
        wait_metric(service, depth("waiting"), float(count - 5))
        receiver.release()
        wait_metric(service, depth("completed"), 2.0 * count)
    assert len(receiver.requests) == len(set(webhook_ids(receiver))) == 2 * count


def test_event_survives_a_service_killed_while_it_delivers(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """kill -9 between commit and the receiver's answer: told again after the start, under the same id."""
    receiver.hold()
    with Service(tmp_path, ai_service.url, **webhook(receiver.url)) as service:
        (asset_id,) = upload(service)
        receiver.wait_for_requests(1)
        assert service.asset(asset_id)["status"] == "active"
        service.kill()
        receiver.release()
        service.start()
        receiver.wait_for_requests(2)
        wait_metric(service, finished("completed"), 1.0)
        wait_metric(service, depth("active"), 0.0)
    assert len(webhook_ids(receiver)) == 2 and len(set(webhook_ids(receiver))) == 1
    assert receiver.requests[0].body == receiver.requests[1].body


def test_event_survives_a_service_killed_before_it_delivers(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """A committed result whose event has not left yet is not forgotten; a paused queue stays so over the restart."""
    with Service(tmp_path, ai_service.url, **webhook(receiver.url)) as service:
        assert admin(service, "POST", "/api/queue/pause", queue="notifications") == {"paused": True}
        upload(service)
        service.wait_status(completed=1, paused=False)
        wait_metric(service, depth("waiting"), 1.0)
        service.kill()
        service.start()
        wait_metric(service, depth("waiting"), 1.0)
        assert receiver.requests == []
        admin(service, "POST", "/api/queue/resume", queue="notifications")
        receiver.wait_for_requests(1)
        wait_metric(service, depth("completed"), 1.0)
    assert len(receiver.requests) == 1


PACKAGE = """
import asyncio, time
from pipeline.hooks import hookimpl

class Waits:
    async def notify(self, notification):
        await asyncio.Event().wait()

class Blocks:
    def notify(self, notification):
        time.sleep(3600)

class Ignores:
    async def notify(self, notification):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

@hookimpl
def register_notifiers():
    for name, kind in {"a": Waits, "b": Blocks, "c": Waits, "d": Blocks, "e": Ignores}.items():
        yield "hangs-" + name, kind
"""
HANGING = tuple(f"hangs-{letter}" for letter in "abcde")


def test_hanging_plain_notifiers_delay_no_event_and_are_held(tmp_path: Path, ai_service: AiService) -> None:
    """Five that never return: the owner's event comes at once, and after BREAKER_FAILURES events slots are free again,
    but for single jobs that try them.
    """
    settings = install(tmp_path / "packages", hangs=PACKAGE) | {
        "NOTIFIERS": ",".join((*HANGING, "websocket")),
        "NOTIFIER_TIMEOUT_SECONDS": "1.5",
        BREAKER_FAILURES: "2",
        "CONCURRENCY": "2",
    }
    with Service(tmp_path / "data", ai_service.url, **settings) as service:

        async def follow() -> list[float]:
            """Return how long after each of two uploads its event came."""
            waits = []
            async with Client(service.url, make_token()) as client:
                await client.listen()
                events = client.events()
                for _ in range(2):
                    started_at = time.monotonic()
                    (asset_id,) = await asyncio.to_thread(upload, service)
                    event = await asyncio.wait_for(anext(events), WAIT_SECONDS)
                    assert event["assetId"] == asset_id
                    waits.append(time.monotonic() - started_at)
            return waits

        assert max(asyncio.run(follow())) < 1.4, "an event waited for a notifier that hangs"
        for name in HANGING:
            service.wait_log("plugin_held", plugin=name)
        service.wait_log("job_completed", 2)
        held_ms = [line["durationMs"] for line in service.find("job_completed")]
        assert min(held_ms) >= 1400, "these two held their slots for the notifiers' time"
        upload(service, 10)
        service.wait_log("job_completed", 12)
        slow = [line for line in service.find("job_completed")[2:] if line["durationMs"] >= 1000]
        assert len(slow) <= 2, "those that try them, 1 s and 2 s later"
        page = httpx.get(f"{service.url}/metrics").text
        for name in HANGING:
            tries = len(service.find("notifier_failed", plugin=name))
            assert 2 <= tries <= 4
            labels = f'{{kind="notifier",method="notify",plugin="{name}"}}'
            assert f"pipeline_plugin_skipped_total{labels} {12.0 - tries}\n" in page
            assert f"pipeline_plugin_held{labels} 1.0\n" in page
        expected = service.errors()
        assert {line["event"] for line in expected} == {"notifier_failed"}
        assert all("PluginOverrun" in line["cause"] for line in expected)
        service.remove_lines(*expected)
