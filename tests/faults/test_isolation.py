"""A photo, provider, receiver or storage with a fault does not affect others, in the real service."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests.constants import BREAKER_PROBE_SECONDS, NOTIFIER_ATTEMPTS
from tests.faults.processes import wait_until
from tests.faults.uploads import attempts, statuses, statuses_of, upload
from tests.packages import install
from tests.service import AiService, Service


# photos


@pytest.mark.fault("E1")
@pytest.mark.fault("E25")
def test_photos_that_fail_cost_a_good_one_nothing(tmp_path: Path, ai_service: AiService) -> None:
    """Twenty photos that the provider answers with 500 fail after three attempts each.

    A good photo of another user, sent after them, is done meanwhile. Each failure is logged once, with its trace,
    status and host.
    """
    ai_service.configure(poison="lego")
    with Service(tmp_path, ai_service.url) as service:
        bad = upload(service, 20, "anna", category="lego")
        started_at = time.monotonic()
        (good,) = upload(service, 1, "ben")
        service.wait_log("asset_finished", assetId=good, status="active")
        assert time.monotonic() - started_at < 5
        service.wait_log("job_failed", 20)
        assert time.monotonic() - started_at < 20
        errors = {service.asset(asset_id, "anna")["aiMetadata"]["error"] for asset_id in bad}
        assert errors == {"AI service unavailable after 3 attempts"}
        assert attempts(service, bad) == {1, 2, 3} and attempts(service, [good]) == {1}
        assert not service.find("plugin_held") + service.find("job_parked") + service.find("job_postponed")
        failed = service.find("provider_failed")
        assert len(failed) == ai_service.state()["calls"] - 1 == 60
        cause = f"Answer: HTTP 500 from {ai_service.url.removeprefix('http://')}: scripted 500"
        assert {(line["plugin"], line["category"], line["cause"]) for line in failed} == {("http", "lego", cause)}
        assert all(line["exception"] and line["jobId"] and line["attempt"] for line in failed)
        assert {line["cause"] for line in service.find("job_retrying") + service.find("job_failed")} == {cause}


# threads


ONE_THREAD = """
import time
from pipeline.hooks import Analysis, Attribute, hookimpl

class OneThread:
    max_concurrency = 1

    def __init__(self, folder):
        self.folder = folder

    def analyze(self, request):
        while request.category == "lego" and not (self.folder / "released").exists():
            time.sleep(0.02)
        time.sleep(0.3)
        return Analysis(Attribute("Nike", 0.9), Attribute("Air", 0.9))

@hookimpl
def register_ai_providers(settings):
    yield "one-thread", lambda: OneThread(settings.data_dir)
"""


@pytest.fixture
def one_thread(tmp_path: Path) -> dict[str, str]:
    """The settings of a provider with one thread, in which photos of the category lego hang; each has one attempt."""
    return install(tmp_path / "packages", one_thread=ONE_THREAD) | {
        "AI_PROVIDER": "one-thread",
        "JOB_ATTEMPTS": "1",
        "PROVIDER_TIMEOUT_SECONDS": "1",
        "JOB_TIMEOUT_SECONDS": "2.5",
        BREAKER_PROBE_SECONDS: "1",
    }


@pytest.mark.fault("E5")
def test_photos_wait_for_the_thread_of_a_hanging_photo(tmp_path: Path, one_thread: dict[str, str]) -> None:
    """The hanging photo fails; the others lose no attempt, and are done once the thread is free."""
    with Service(tmp_path / "data", **one_thread) as service:
        (hanging,) = upload(service, 1, "anna", category="lego")
        service.wait_log("job_claimed", assetId=hanging)
        others = upload(service, 8, "ben")
        service.wait_log("job_failed", assetId=hanging)
        held = service.wait_log("plugin_held", plugin="one-thread")
        assert held["reason"] == "AI service is busy" and held["cause"].startswith("PluginBusy: ")
        service.wait_log("provider_failed", 3, error="AI service is busy")
        (tmp_path / "data" / "released").touch()
        service.wait_log("plugin_released", plugin="one-thread")
        wait_until(lambda: statuses_of("ben", service, others) == {"active"})
        assert attempts(service, others) == {1}
        assert [line["assetId"] for line in service.find("job_failed")] == [hanging]


@pytest.mark.fault("E5")
def test_photos_wait_for_a_busy_thread(tmp_path: Path, one_thread: dict[str, str]) -> None:
    """Twelve photos of a third of a second each; five slots wait for the thread, longer than a photo may take."""
    with Service(tmp_path / "data", **one_thread) as service:
        ids = upload(service, 12)
        wait_until(lambda: statuses(service, ids) == {"active"})
        assert attempts(service, ids) == {1}
        assert not service.find("job_failed") + service.find("job_retrying")


# providers


STEADY = """
from pipeline.hooks import Analysis, Attribute, hookimpl

class Steady:
    async def analyze(self, request):
        return Analysis(Attribute("Leica", 0.9), Attribute("M6", 0.9))

@hookimpl
def register_ai_providers(settings):
    yield "steady", Steady
"""


@pytest.mark.fault("E6")
def test_photos_of_another_provider_pass_those_of_a_limited_one(tmp_path: Path, ai_service: AiService) -> None:
    """The provider of one category asks to wait for eight seconds: photos of the other category are done at once.

    The limited photos are done afterwards, without a lost attempt. Meanwhile their provider is not asked.
    """
    ai_service.configure(paused=True, replies=[{"status": 429, "headers": {"Retry-After": "8"}, "times": 5}])
    packages = install(tmp_path / "packages", steady=STEADY)
    settings = packages | {"AI_PROVIDER": "http", "AI_PROVIDER_BY_CATEGORY": "camera=steady"}
    with Service(tmp_path / "data", ai_service.url, **settings) as service:
        limited = upload(service, 12, "anna")
        wait_until(lambda: ai_service.state()["calls"] == 5)
        ai_service.configure(paused=False)
        service.wait_log("job_parked", 5)
        asked_to_wait_at = time.monotonic()
        others = upload(service, 6, "ben", category="camera")
        for asset_id in others:
            service.wait_log("job_completed", assetId=asset_id)
        assert time.monotonic() - asked_to_wait_at < 4
        limited += upload(service, 1, "anna")
        stats = service.get("/api/assets/queue-status").json()["data"]
        assert (stats["waiting"], stats["active"], stats["delayed"]) == (13, 0, 0)
        page = httpx.get(f"{service.url}/metrics").text
        held = 'pipeline_provider_held_seconds{provider="%s",queue="ai-processing"} '
        assert held % "steady" + "0.0\n" in page and held % "http" + "0.0\n" not in page
        for asset_id in limited:
            service.wait_log("job_completed", assetId=asset_id)
        assert time.monotonic() - asked_to_wait_at > 7
        assert attempts(service, limited + others) == {1}
        assert ai_service.state()["calls"] == 5 + len(limited)


# receivers


RECEIVERS = """
import json, time
from pipeline.errors import RetryableJobError
from pipeline.hooks import hookimpl

class Receiver:
    durable = True

    def __init__(self, path, asks_to_wait):
        self.path, self.asks_to_wait = path, asks_to_wait

    def notify(self, notification):
        takes = not self.asks_to_wait or self.path.with_name("ready").exists()
        with self.path.open("a") as file:
            file.write(json.dumps([notification.event["assetId"], takes, time.time()]) + chr(10))
        if not takes:
            raise RetryableJobError("Slow down", retry_after_seconds=3)

@hookimpl
def register_notifiers(settings):
    yield "far", lambda: Receiver(settings.data_dir / "far.jsonl", True)
    yield "near", lambda: Receiver(settings.data_dir / "near.jsonl", False)
"""


@pytest.mark.fault("E7")
def test_receiver_that_asks_to_wait_gets_its_events_afterwards(tmp_path: Path, ai_service: AiService) -> None:
    """Its deliveries wait that long, those of another receiver do not; none is dropped or loses an attempt."""
    packages = install(tmp_path / "packages", receivers=RECEIVERS)
    settings = packages | {"NOTIFIERS": "far,near", NOTIFIER_ATTEMPTS: "1"}
    with Service(tmp_path / "data", ai_service.url, **settings) as service:
        ids = upload(service, 1)
        held = service.wait_log("plugin_held", plugin="far")
        asked_to_wait_at = time.monotonic()
        assert (held["kind"], held["method"], held["reason"]) == ("notifier", "notify", "Slow down")
        ids += upload(service, 4)
        for asset_id in ids:
            service.wait_log("job_completed", assetId=asset_id, notifier="near")
        assert time.monotonic() - asked_to_wait_at < 2.5
        (tmp_path / "data" / "ready").touch()
        for asset_id in ids:
            line = service.wait_log("job_completed", assetId=asset_id, notifier="far")
            assert line["attempt"] == 1
        lines = [line.split(", ") for line in (tmp_path / "data" / "far.jsonl").read_text().splitlines()]
        calls = [(asset_id.strip('["'), takes == "true", float(at.strip("]"))) for asset_id, takes, at in lines]
        assert sorted(asset_id for asset_id, takes, _ in calls if takes) == sorted(ids)
        refused_at = max(at for _, takes, at in calls if not takes)
        assert min(at for _, takes, at in calls if takes) - refused_at > 2.8
        assert not service.find("job_failed") + service.find("notification_failed")
