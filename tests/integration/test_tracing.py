"""Traces of a running service: a real process, AI service and collector on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.constants import NOTIFIER_ATTEMPTS
from tests.fake_collector import FakeCollector, Received, running_collector
from tests.integration.received_spans import ATTEMPT, FAST, RETRY, UPLOAD, has, only
from tests.requirements import require
from tests.service import AiService, Service

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Skip these tests without OpenTelemetry."""
    require(find_spec("opentelemetry") is not None, "the extra [otel] is not installed")


@pytest.fixture(scope="module")
def ai_service() -> Iterator[AiService]:
    """One AI service for all tests of this file; its newest request is the request of the current test."""
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def used_collector() -> Iterator[FakeCollector]:
    """One collector for all tests of this file."""
    with running_collector() as collector:
        yield collector


@pytest.fixture
def collector(used_collector: FakeCollector) -> FakeCollector:
    """The collector without spans: each test before has waited for its last span."""
    used_collector.clear()
    return used_collector


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, ai_service: AiService, used_collector: FakeCollector
) -> Iterator[Service]:
    environment = FAST | {"OTEL_EXPORTER_OTLP_ENDPOINT": used_collector.url}
    with Service(tmp_path_factory.mktemp("data"), ai_service.url, **environment) as service:
        yield service


def test_upload_is_one_trace(service: Service, collector: FakeCollector, ai_service: AiService) -> None:
    """Request, storage, enqueue, attempt, provider, commit and notifier are linked spans of one trace.

    The AI service gets the context of the provider's span. The spans have the ids of job and asset, but neither the
    user nor the token.
    """
    answer = service.upload("user-7").json()["data"]
    spans = collector.wait(has(UPLOAD, ATTEMPT))
    _check_links(spans)
    _check_attributes(spans, answer)
    asked = ai_service.state()["requests"][-1]
    assert asked["headers"]["Traceparent"].startswith(only(spans, "analyze http").traceparent)
    sent = b"".join(collector.raw)
    assert answer["assetId"].encode() in sent and b"user-7" not in sent and b"eyJ" not in sent


def _check_links(spans: list[Received]) -> None:
    """Check that the spans of an upload are one trace, each with the right parent."""
    assert len({span.trace_id for span in spans}) == 1
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
    assert only(spans, UPLOAD).parent_id == ""
    assert not any(span.is_failed or span.events for span in spans)


def _check_attributes(spans: list[Received], answer: dict[str, Any]) -> None:
    """Check the attributes of the request and of the attempt."""
    request = only(spans, UPLOAD)
    assert request.resource["service.name"] == "ai-queue-pipeline"
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


def test_valid_traceparent_is_continued_and_an_invalid_one_is_not(service: Service, collector: FakeCollector) -> None:
    """A valid traceparent is the parent of the request, an invalid one begins a new trace; a probe makes no trace."""
    service.get("/readyz")
    service.upload(headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    spans = collector.wait(has(UPLOAD, ATTEMPT))
    assert {span.trace_id for span in spans} == {TRACE_ID}
    assert only(spans, UPLOAD).parent_id == PARENT_ID
    service.upload(headers={"traceparent": f"00-{'0' * 32}-{PARENT_ID}-01"})
    newer = collector.wait(has(UPLOAD, UPLOAD, ATTEMPT, ATTEMPT))[len(spans) :]
    assert len({span.trace_id for span in newer}) == 1 and newer[0].trace_id != TRACE_ID
    assert only(newer, UPLOAD).parent_id == ""


def test_trace_that_is_not_sampled_is_not_sent(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """No span of such a trace is sent, and the AI service gets the flag that it is not sampled."""
    asset_id = service.upload(headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}).json()["data"]["assetId"]
    service.wait_log("job_completed", assetId=asset_id)
    header = ai_service.state()["requests"][-1]["headers"]["Traceparent"]
    service.upload()
    assert TRACE_ID not in {span.trace_id for span in collector.wait(has(UPLOAD, ATTEMPT))}
    assert header.startswith(f"00-{TRACE_ID}-") and header.endswith("-00")


def test_each_attempt_is_a_span_with_the_reason_of_its_failure(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """Two attempts are siblings under one enqueue span; the failed one and its call carry status and exception."""
    ai_service.configure(replies=[{"status": 503}])
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
    cause = "pipeline.plugins.ai_http.Answer"
    assert failed.attributes["error.type"] == cause, "the AI service did answer"
    assert failed.parent_id == first.span_id


def test_error_is_sent_with_the_type_of_its_cause(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """The span has the text of the provider's error, which users see too, and the type of the library's exception."""
    ai_service.configure(replies=[{"cut": True}])
    service.upload()
    spans = collector.wait(has(UPLOAD, ATTEMPT, ATTEMPT))
    failed = next(span for span in spans if span.name == "analyze http")
    assert failed.attributes["error.type"] == "aiohttp.client_exceptions.ServerDisconnectedError"
    assert failed.events[0][1]["exception.message"] == failed.message == "AI service unavailable"
    assert b"Server disconnected" not in b"".join(collector.raw)


def test_refused_upload_is_not_a_failed_span(service: Service, collector: FakeCollector) -> None:
    """The span of a refused upload has the status of the reply, but no error and no exception."""
    assert service.upload(category="car").status_code == 400
    (request,) = collector.wait(has(UPLOAD))
    assert request.attributes["http.response.status_code"] == 400
    assert not request.is_failed and not request.events


def test_retry_of_an_asset_is_in_the_trace_of_its_request(
    service: Service, collector: FakeCollector, ai_service: AiService
) -> None:
    """The job of a retried asset is in the trace of the retry request, not in the trace of the upload."""
    ai_service.configure(replies=[{"status": 422}])
    asset_id = service.upload().json()["data"]["assetId"]
    service.wait_log("job_failed", assetId=asset_id)
    headers = service.headers() | {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    httpx.post(f"{service.url}/api/assets/{asset_id}/retry", headers=headers).raise_for_status()
    spans = collector.wait(has(UPLOAD, ATTEMPT, RETRY, ATTEMPT))
    spans_of_retry = [span for span in spans if span.trace_id == TRACE_ID]
    enqueued = only(spans_of_retry, "enqueue ai-processing")
    assert enqueued.parent_id == only(spans_of_retry, RETRY).span_id
    assert only(spans_of_retry, ATTEMPT).parent_id == enqueued.span_id


def test_durable_notification_stays_in_the_trace(
    tmp_path: Path, collector: FakeCollector, ai_service: AiService
) -> None:
    """The job of a notification is enqueued in the attempt and processed as its child, with the notifier's call."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: each connection is refused
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
