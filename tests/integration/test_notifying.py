"""Durable notifiers on their own queue: a real service, a real receiver, and faults of either of them."""

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
from tests.integration.webhook_service import WAIT_SECONDS, admin, depth, finished, upload, wait_metric
from tests.integration.webhook_service import webhook, webhook_ids
from tests.packages import install
from tests.slowdown import slowdown
from tests.service import AiService, Service


def test_each_event_is_delivered_once_by_a_job_of_its_own(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """The receiver gets one event of each photo, also of a failed one. Each queue has its own numbers in /metrics."""
    ai_service.configure(replies=[{"status": 422}])
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
        service.wait_status(completed=2, failed=1, waiting=0)  # without the notifier jobs
    assert len(receiver.requests) == 3


class AcceptingHandler(BaseHTTPRequestHandler):
    """Accepts each POST and records its webhook-id."""

    ids: list[str] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.ids.append(self.headers["webhook-id"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def receiver_at(port: int) -> Iterator[list[str]]:
    """Run a receiver at this port; yield the list of the webhook-ids that it gets."""
    ids: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Receiver", (AcceptingHandler,), {"ids": ids}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield ids
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_receiver_that_is_down_costs_no_attempt(tmp_path: Path, ai_service: AiService) -> None:
    """While no receiver runs, single deliveries try it and the others wait. Later each event is delivered once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = webhook(f"http://127.0.0.1:{port}/hook?token=t0ken", **{BREAKER_PROBE_SECONDS: "1"})
    with Service(tmp_path, ai_service.url, **settings) as service:
        ids = upload(service)
        held = service.wait_log("plugin_held", plugin="webhook")
        assert f"127.0.0.1:{port}" in held["cause"] and "t0ken" not in str(service.lines)
        ids += upload(service, 3)
        service.wait_status(completed=4)  # assets do not wait for the notifier
        service.wait_log("notifier_failed", 3, plugin="webhook")
        wait_metric(service, depth("waiting"), 4.0)
        with receiver_at(port) as delivered:
            service.wait_log("plugin_released", plugin="webhook")
            done = [service.wait_log("job_completed", assetId=each, notifier="webhook") for each in ids]
            assert sorted(delivered) == sorted(line["jobId"] for line in done)
        assert {line["attempt"] for line in done} == {1}
        assert not service.find("job_retrying") + service.find("job_failed")


def test_delivery_that_fails_is_retried_with_the_same_id(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """After 500, a closed connection and 404 the wait doubles each time. All attempts have the same webhook-id."""
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


def test_receiver_that_hangs_occupies_no_slot_of_the_ai(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """All notifier slots wait for the receiver, but photos are processed as fast as before. Later all events arrive."""
    count = 20
    with Service(tmp_path, ai_service.url, **webhook(receiver.url, NOTIFIER_TIMEOUT_SECONDS="60")) as service:
        started_at = time.monotonic()
        upload(service, count)
        service.wait_status(completed=count)
        normal_seconds = time.monotonic() - started_at
        receiver.wait_for_requests(count)
        receiver.pause()
        started_at = time.monotonic()
        upload(service, count)
        service.wait_status(completed=2 * count, active=0, waiting=0)
        assert time.monotonic() - started_at < (2 * normal_seconds + 2) * slowdown()
        wait_metric(service, depth("active"), 5.0)
        wait_metric(service, depth("waiting"), float(count - 5))
        receiver.resume()
        wait_metric(service, depth("completed"), 2.0 * count)
    assert len(receiver.requests) == len(set(webhook_ids(receiver))) == 2 * count


def test_event_survives_a_service_killed_while_it_delivers(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """kill -9 between commit and the receiver's answer: after the restart the event is sent again, with the same id."""
    receiver.pause()
    with Service(tmp_path, ai_service.url, **webhook(receiver.url)) as service:
        (asset_id,) = upload(service)
        receiver.wait_for_requests(1)
        assert service.asset(asset_id)["status"] == "active"
        service.kill()
        receiver.resume()
        service.start()
        receiver.wait_for_requests(2)
        wait_metric(service, finished("completed"), 1.0)
        wait_metric(service, depth("active"), 0.0)
    assert len(webhook_ids(receiver)) == 2 and len(set(webhook_ids(receiver))) == 1
    assert receiver.requests[0].body == receiver.requests[1].body


def test_event_survives_a_service_killed_before_it_delivers(
    tmp_path: Path, ai_service: AiService, receiver: FakeReceiver
) -> None:
    """The event of a committed result is sent after the restart. A paused queue is still paused after the restart."""
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

class Waiting:
    async def notify(self, notification):
        await asyncio.Event().wait()

class Blocking:
    def notify(self, notification):
        time.sleep(3600)

class Uncancellable:
    async def notify(self, notification):
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

@hookimpl
def register_notifiers():
    for name, kind in {"a": Waiting, "b": Blocking, "c": Waiting, "d": Blocking, "e": Uncancellable}.items():
        yield "hangs-" + name, kind
"""
HANGING = tuple(f"hangs-{letter}" for letter in "abcde")


async def seconds_until_event(service: Service) -> list[float]:
    """Upload two photos and return how many seconds after each upload its event arrived."""
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


def check_hanging_are_held(service: Service) -> None:
    """Check the metrics and the log of 12 uploads: each hanging notifier was called a few times and then skipped."""
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


def test_hanging_plain_notifiers_delay_no_event_and_are_held(tmp_path: Path, ai_service: AiService) -> None:
    """Five notifiers never return, but the owner gets each event at once.

    After BREAKER_FAILURES events the notifiers are held: only single jobs call them, to try them.
    """
    settings = install(tmp_path / "packages", hangs=PACKAGE) | {
        "NOTIFIERS": ",".join((*HANGING, "websocket")),
        "NOTIFIER_TIMEOUT_SECONDS": "3",
        BREAKER_FAILURES: "2",
        "CONCURRENCY": "2",
    }
    with Service(tmp_path / "data", ai_service.url, **settings) as service:
        assert max(asyncio.run(seconds_until_event(service))) < 2.8, "an event waited for a notifier that hangs"
        for name in HANGING:
            service.wait_log("plugin_held", plugin=name)
        service.wait_log("job_completed", 2)
        first_ms = [line["durationMs"] for line in service.find("job_completed")]
        assert min(first_ms) >= 2900, "the first two jobs wait until the notifiers time out"
        upload(service, 10)
        service.wait_log("job_completed", 12)
        slow = [line for line in service.find("job_completed")[2:] if line["durationMs"] >= 1000]
        assert len(slow) <= 2, "only the jobs that try the held notifiers, after 1 s and after 2 s"
        check_hanging_are_held(service)
