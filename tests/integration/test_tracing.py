"""Traces of the running service: real process, real collector protocol, AI service and receiver on real sockets."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from pipeline.settings import Settings
from pipeline.otel import build_tracing
from pipeline.tracing import NO_SPAN
from tests.constants import NOTIFIER_ATTEMPTS
from tests.factories import SECRET
from tests.fake_collector import FakeCollector, Received, running_collector
from tests.requirements import require
from tests.service import ROOT, AiService, Service

FAST = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5", "BACKOFF_MS": "50"}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


UPLOAD, RETRY = "POST /api/assets/analyze-queue", "POST /api/assets/{id}/retry"
ATTEMPT = "process ai-processing"


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    require(find_spec("opentelemetry") is not None, "the extra [otel] is not installed")


@pytest.fixture(scope="module")
def ai_service() -> Iterator[AiService]:
    """One for the whole file: its newest request is the one of the test."""
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def used_collector() -> Iterator[FakeCollector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture
def collector(used_collector: FakeCollector) -> FakeCollector:
    """The collector with nothing in it: every test has waited for the last span it caused."""
    used_collector.clear()
    return used_collector


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, ai_service: AiService, used_collector: FakeCollector
) -> Iterator[Service]:
    environment = FAST | {"OTEL_EXPORTER_OTLP_ENDPOINT": used_collector.url}
    with Service(tmp_path_factory.mktemp("data"), ai_service.url, **environment) as service:
        yield service


def has(*names: str) -> Callable[[list[Received]], bool]:
    """Tell whether spans of these names have come, each as often as it is named."""
    return lambda spans: Counter(names) <= Counter(span.name for span in spans)


def only(spans: list[Received], name: str) -> Received:
    (found,) = (span for span in spans if span.name == name)
    return found


def test_upload_is_one_trace(service: Service, collector: FakeCollector, ai_service: AiService) -> None:
    """Request, storage, enqueue, attempt, provider, commit and notifier are linked spans of one trace; the AI service
    gets the provider span's context; ids of job and asset are told, user and token are not.
    """
    answer = service.upload("user-7").json()["data"]
    spans = collector.wait(has(UPLOAD, ATTEMPT))
    assert len({span.trace_id for span in spans}) == 1
    request = only(spans, UPLOAD)
    parents = {span.span_id: span.name for span in spans}
    assert [(span.name, span.kind, parents.get(span.parent_id)) for span in sorted(spans, key=lambda s: s.name)] == [
        ("POST /api/assets/analyze-queue", "SERVER", None),
        ("analyze http", "CLIENT", "process ai-processing"),
        ("commit", "INTERNAL", "process ai-processing"),
        ("enqueue ai-processing", "PRODUCER", "POST /api/assets/analyze-queue"),
        ("notify websocket", "CLIENT", "process ai-processing"),
        ("process ai-processing", "CONSUMER", "enqueue ai-processing"),
        ("save local", "CLIENT", "POST /api/assets/analyze-queue"),
    ]
    assert request.parent_id == ""
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/api/assets/analyze-queue",
        "http.response.status_code": 202,
    }
    assert only(spans, ATTEMPT).attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "ai-processing",
        "messaging.message.id": answer["jobId"],
        "pipeline.job.id": answer["jobId"],
        "pipeline.job.attempt": 1,
        "pipeline.asset.id": answer["assetId"],
        "pipeline.asset.category": "sneaker",
    }
    assert not any(span.is_failed or span.events for span in spans)
    assert request.resource["service.name"] == "ai-queue-pipeline"
    asked = ai_service.state()["requests"][-1]
    assert asked["headers"]["Traceparent"].startswith(only(spans, "analyze http").traceparent)
    sent = b"".join(collector.raw)
    assert answer["assetId"].encode() in sent and b"user-7" not in sent and b"eyJ" not in sent


def test_callers_trace_is_continued_and_a_bad_one_is_not(service: Service, collector: FakeCollector) -> None:
    """A valid traceparent is the parent of the request; with an invalid one a new trace begins; probes make none."""
    service.get("/readyz")
    service.upload(headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    spans = collector.wait(has(UPLOAD, ATTEMPT))
    assert {span.trace_id for span in spans} == {TRACE_ID}
    assert only(spans, UPLOAD).parent_id == PARENT_ID
    service.upload(headers={"traceparent": f"00-{'0' * 32}-{PARENT_ID}-01"})
    newer = collector.wait(has(UPLOAD, UPLOAD, ATTEMPT, ATTEMPT))[len(spans) :]
    assert len({span.trace_id for span in newer}) == 1 and newer[0].trace_id != TRACE_ID
    assert only(newer, UPLOAD).parent_id == ""


def test_caller_who_does_not_sample_is_obeyed(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """Nothing of such a trace is sent, and the AI service hears that it is not sampled."""
    asset_id = service.upload(headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}).json()["data"]["assetId"]
    service.wait_log("job_completed", assetId=asset_id)
    header = ai_service.state()["requests"][-1]["headers"]["Traceparent"]
    service.upload()
    assert TRACE_ID not in {span.trace_id for span in collector.wait(has(UPLOAD, ATTEMPT))}
    assert header.startswith(f"00-{TRACE_ID}-") and header.endswith("-00")


def test_each_attempt_is_a_span_that_says_why_it_failed(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """Two attempts are siblings under one enqueue span; the failed one and its call carry status and exception."""
    ai_service.order(replies=[{"status": 503}])
    service.upload()
    spans = collector.wait(has(UPLOAD, ATTEMPT, ATTEMPT))
    first, second = (span for span in spans if span.name == ATTEMPT)
    assert first.parent_id == second.parent_id == only(spans, "enqueue ai-processing").span_id
    assert [span.attributes["pipeline.job.attempt"] for span in (first, second)] == [1, 2]
    assert (first.is_failed, second.is_failed) == (True, False)
    assert first.message == "AI service unavailable after 1 attempt"
    failed, good = (span for span in spans if span.name == "analyze http")
    assert (failed.is_failed, good.is_failed) == (True, False)
    error_type, message = "pipeline.errors.RetryableJobError", "AI service unavailable"
    event = ("exception", {"exception.type": error_type, "exception.message": message})
    assert failed.events == first.events == (event,)
    behind = "pipeline.plugins.ai_http.Answer"
    assert failed.attributes["error.type"] == behind, "the service did answer"
    assert failed.parent_id == first.span_id


def test_text_of_a_foreign_exception_is_not_sent(collector: FakeCollector) -> None:
    """What a library raises may hold anything: only its type is told."""
    tracing = build_tracing(Settings(otel_exporter_otlp_endpoint=collector.url))
    with suppress(OSError), tracing.step("commit"):
        raise OSError("https://user:Zx81@storage.example is away")
    asyncio.run(tracing.close())
    (span,) = collector.spans
    assert span.is_failed and span.events == (("exception", {"exception.type": "OSError"}),)
    assert b"Zx81" not in b"".join(collector.raw)


def test_error_is_told_with_what_is_behind_it(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """The provider's error has its own text, which its owner sees too, and the type of what a library raised."""
    ai_service.order(replies=[{"cut": True}])
    service.upload()
    spans = collector.wait(has(UPLOAD, ATTEMPT, ATTEMPT))
    failed = next(span for span in spans if span.name == "analyze http")
    assert failed.attributes["error.type"] == "aiohttp.client_exceptions.ServerDisconnectedError"
    assert failed.events[0][1]["exception.message"] == failed.message == "AI service unavailable"
    assert b"Server disconnected" not in b"".join(collector.raw)


def test_refused_upload_is_no_failure_of_ours(service: Service, collector: FakeCollector) -> None:
    """Its span has the status of the reply, and neither an error nor an exception."""
    assert service.upload(category="car").status_code == 400
    (request,) = collector.wait(has(UPLOAD))
    assert request.attributes["http.response.status_code"] == 400
    assert not request.is_failed and not request.events


def test_retry_of_an_asset_is_a_trace_of_the_caller(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """Who runs a failed asset again gets a trace of that request, not the one of the upload."""
    ai_service.order(replies=[{"status": 422}])
    asset_id = service.upload().json()["data"]["assetId"]
    service.wait_log("job_failed", assetId=asset_id)
    headers = service.headers() | {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    httpx.post(f"{service.url}/api/assets/{asset_id}/retry", headers=headers).raise_for_status()
    spans = collector.wait(has(UPLOAD, ATTEMPT, RETRY, ATTEMPT))
    ours = [span for span in spans if span.trace_id == TRACE_ID]
    enqueued = only(ours, "enqueue ai-processing")
    assert enqueued.parent_id == only(ours, RETRY).span_id
    assert only(ours, ATTEMPT).parent_id == enqueued.span_id


def test_durable_notification_stays_in_the_trace(
    tmp_path: Path, collector: FakeCollector, ai_service: AiService
) -> None:
    """Its job is enqueued inside the attempt and processed as a child of that, with the notifier's call in it."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        environment = FAST | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_SERVICE_NAME": "photos",
            "NOTIFIERS": "webhook",
            NOTIFIER_ATTEMPTS: "1",
            "PLUGIN_WEBHOOK_URL": f"http://127.0.0.1:{closed.getsockname()[1]}/hook?token=Zx81",
            "PLUGIN_WEBHOOK_SECRET": "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "PLUGIN_WEBHOOK_ALLOW_PRIVATE": "true",
        }
        with Service(tmp_path, ai_service.url, **environment) as service:
            service.upload()
            spans = collector.wait(has(ATTEMPT, "process notifications"))
    assert len({span.trace_id for span in spans}) == 1
    assert spans[0].resource["service.name"] == "photos"
    enqueued, processed = only(spans, "enqueue notifications"), only(spans, "process notifications")
    assert enqueued.parent_id == only(spans, ATTEMPT).span_id
    assert (enqueued.kind, processed.kind) == ("PRODUCER", "CONSUMER")
    assert processed.parent_id == enqueued.span_id
    assert only(spans, "notify webhook").parent_id == processed.span_id
    assert processed.is_failed and b"Zx81" not in b"".join(collector.raw)


def test_collector_that_is_away_harms_nothing(tmp_path: Path, ai_service: AiService) -> None:
    """Uploads go on, the log has one warning for all lost spans, and the shutdown waits two seconds at most."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)  # takes connections and never answers
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        environment = FAST | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "10"}
        environment |= {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}  # ten times half a second at the end, if nobody stops it
        with Service(tmp_path, ai_service.url, **environment) as service:
            for _ in range(6):
                asset_id = service.upload().json()["data"]["assetId"]
                service.wait_log("job_completed", assetId=asset_id)
            service.wait_log("traces_lost")
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 4
        faults = [line for line in service.lines if "trace" in line["event"] or "exception" in line]
        assert len(faults) == 1, service.lines


def test_two_apps_do_not_see_each_other(collector: FakeCollector) -> None:
    """Each sends its spans to its own collector, also when both live in one process; close sends what is left."""
    with running_collector() as other:
        one, two = (build_tracing(Settings(otel_exporter_otlp_endpoint=each.url)) for each in (collector, other))
        with one.step("first"):
            pass
        with two.step("second"):
            pass
        asyncio.run(one.close())
        asyncio.run(two.close())
        assert [span.name for span in collector.spans] == ["first"]
        assert [span.name for span in other.spans] == ["second"]


def test_endpoint_is_an_http_address() -> None:
    """An address as gRPC exporters take it is refused at start."""
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_ENDPOINT: must be an http"):
        Settings(otel_exporter_otlp_endpoint="collector:4317")


def test_off_imports_nothing(tmp_path: Path) -> None:
    """A service without an endpoint never imports OpenTelemetry, and its spans are one object that does nothing."""
    code = (
        "import sys\n"
        "import redis.asyncio\n"  # where OpenTelemetry is installed it imports its metrics, used or not
        "before = set(sys.modules)\n"
        "from pipeline.app import App\n"
        "from pipeline.settings import Settings\n"
        "App(Settings(port=0, data_dir=sys.argv[1], redis_url='redis://127.0.0.1:1', jwt_secret=sys.argv[2]))\n"
        "print([name for name in set(sys.modules) - before if name.startswith('opentelemetry')])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), SECRET]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
    off = build_tracing(Settings())
    assert off.enqueue("q", "q:1", {}) is off.step("commit") is NO_SPAN and NO_SPAN.trace_context == ""


def test_missing_package_is_named(tmp_path: Path) -> None:
    """With an endpoint but without the package the service does not start and says what to install."""
    code = "import sys; sys.modules['opentelemetry'] = None; from pipeline.cli import main; main(['serve'])"
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "DATA_DIR": str(tmp_path), "PORT": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "pip install 'ai-queue-pipeline[otel]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
