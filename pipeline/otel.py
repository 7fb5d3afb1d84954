"""Tracing with OpenTelemetry: sends spans by OTLP/HTTP to a collector.

OpenTelemetry is imported only when it is used. Each app has its own OtelTracing; there is no global provider. A thread
of the SDK sends the spans. Names and attributes are those of OpenTelemetry's semantic conventions for HTTP and
messaging; others begin with `pipeline.`. Spans contain no user id, no token and no text of a foreign exception.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import structlog

from pipeline import __version__
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.settings import Settings
from pipeline.tracing import NO_SPAN, OFF, TRACEPARENT, Request, Span, Tracing, trace_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanKind

    from pipeline.queue.job import Job

log = structlog.get_logger(__name__)

SERVICE_NAME = "ai-queue-pipeline"
CLOSE_SECONDS = 2.0
# During an outage of the collector one line a minute is logged.
REPEAT_SECONDS = 60.0
# These loggers write a line for every lost batch and span; _Exporter writes one a minute instead.
NOISY_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
NOT_INSTALLED = "OTEL_EXPORTER_OTLP_ENDPOINT needs OpenTelemetry: pip install 'ai-queue-pipeline[otel]'"


def build_tracing(settings: Settings) -> Tracing:
    """Return the tracing that the settings name; ConfigurationError when OpenTelemetry is not installed."""
    if not settings.otel_exporter_otlp_endpoint:
        return OFF
    try:
        return OtelTracing(settings.otel_exporter_otlp_endpoint)
    except ImportError as error:
        raise ConfigurationError(NOT_INSTALLED) from error


class OtelTracing(Tracing):
    """Tracing that is on. The SDK reads sampler, batches, headers and timeouts from its own environment variables."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: the address of the collector, without /v1/traces."""
        from opentelemetry import context, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.context, self.trace = context, trace
        self._propagator = TraceContextTextMapPropagator()
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # Merged last, so that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override the service's own values.
        own = Resource.create({"service.name": SERVICE_NAME, "service.version": __version__})
        resource = own.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = _Exporter(OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces"))
        self._provider.add_span_processor(BatchSpanProcessor(cast("SpanExporter", exporter)))
        self._tracer = self._provider.get_tracer("pipeline", __version__)

    def request(self, handler: Request) -> Span:
        request = handler.request
        attributes = {"http.request.method": request.method, "http.route": handler.route}
        began_ns = time.time_ns() - round(request.request_time() * 1e9)
        parent = request.headers.get(TRACEPARENT, "")
        name = f"{request.method} {handler.route}"
        return _RequestSpan(self, self._start(name, self.trace.SpanKind.SERVER, attributes, parent, began_ns), handler)

    def enqueue(self, queue: str, job_id: str, data: Mapping[str, Any]) -> Span:
        attributes = _messaging("enqueue", "send", queue, job_id, data)
        return _OtelSpan(self, self._start(f"enqueue {queue}", self.trace.SpanKind.PRODUCER, attributes))

    def process(self, queue: str, job: Job) -> Span:
        attributes = _messaging("process", "process", queue, job.id, job.data) | {"pipeline.job.attempt": job.attempt}
        kind = self.trace.SpanKind.CONSUMER
        return _OtelSpan(self, self._start(f"process {queue}", kind, attributes, job.trace_context))

    def call(self, kind: str, plugin: str, method: str) -> Span:
        if not self.trace.get_current_span().get_span_context().is_valid:
            return NO_SPAN
        attributes = {"pipeline.plugin.kind": kind, "pipeline.plugin.name": plugin, "pipeline.plugin.method": method}
        return _OtelSpan(self, self._start(f"{method} {plugin}", self.trace.SpanKind.CLIENT, attributes))

    def step(self, name: str) -> Span:
        return _OtelSpan(self, self._start(name, self.trace.SpanKind.INTERNAL, {}))

    async def close(self) -> None:
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(closed.set)

        # In a daemon thread: the SDK waits up to 30 s for a collector that does not answer.
        threading.Thread(target=shut_down, name="traces-close", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await closed.wait()

    def trace_context(self, span: OtelSpan) -> str:
        """Return the `traceparent` for work that the span causes."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self.trace.set_span_in_context(span, self.context.Context()))
        return carrier.get(TRACEPARENT, "")

    def _start(
        self, name: str, kind: SpanKind, attributes: Mapping[str, Any], parent: str | None = None, at_ns: int = 0
    ) -> OtelSpan:
        """Start a span.

        parent: a `traceparent`; "" or an invalid one begins a new trace; None means the current span.
        at_ns: the start in nanoseconds since 1970, 0 for now.
        """
        context = None if parent is None else self._propagator.extract({TRACEPARENT: parent})
        return self._tracer.start_span(name, context, kind, attributes, start_time=at_ns or None)


class _OtelSpan(Span):
    def __init__(self, tracing: OtelTracing, span: OtelSpan) -> None:
        super().__init__(tracing.trace_context(span))
        self._tracing = tracing
        self._span = span

    def __enter__(self) -> Span:
        self._token = self._tracing.context.attach(self._tracing.trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracing.context.detach(self._token)
        if error is not None:
            self.record(error)
            self.fail(_text(error))
        self._span.end()

    def record(self, error: BaseException) -> None:
        # Not Span.record_exception: it sends messages and source lines of foreign exceptions.
        event = {"exception.type": _type(error)} | ({"exception.message": text} if (text := _text(error)) else {})
        self._span.add_event("exception", event)
        # The cause says more than an error of the service.
        self._span.set_attribute("error.type", _type(error.__cause__ or error))

    def fail(self, message: str) -> None:
        self._span.set_status(self._tracing.trace.StatusCode.ERROR, message or None)


class _RequestSpan(_OtelSpan):
    """Fails with a status of 5xx only, not with an error of the client."""

    def __init__(self, tracing: OtelTracing, span: OtelSpan, handler: Request) -> None:
        super().__init__(tracing, span)
        self._handler = handler
        if trace := trace_id(self.trace_context):
            handler.add_log_fields(traceId=trace)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self._handler.get_status() if error is None else getattr(error, "http_status", 500)
        self._span.set_attribute("http.response.status_code", status)
        super().__exit__(kind, error if status >= 500 else None, trace)


class _Exporter:
    """The SDK's exporter, with one log line a minute about lost spans. Runs in the SDK's thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0
        self._logged_at = -REPEAT_SECONDS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result.value:
            self._lost += len(spans)
            if time.monotonic() - self._logged_at >= REPEAT_SECONDS:
                log.warning("traces_lost", spans=self._lost)
                self._lost, self._logged_at = 0, time.monotonic()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _messaging(name: str, kind: str, queue: str, job_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
    attributes = {
        "messaging.system": "redis",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": queue,
        "messaging.message.id": job_id,
        "pipeline.job.id": job_id,
    }
    # A damaged payload may have values of any type.
    named = {"pipeline.asset.id": data.get("assetId"), "pipeline.asset.category": data.get("category")}
    return attributes | {name: value for name, value in named.items() if isinstance(value, str)}


def _type(error: BaseException) -> str:
    module, name = type(error).__module__, type(error).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _text(error: BaseException) -> str:
    """Return the message of an error of the service; another exception's message may contain a secret."""
    return error.message if isinstance(error, PipelineError) else ""
