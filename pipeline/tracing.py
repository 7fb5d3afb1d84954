"""One trace per upload, sent by OTLP/HTTP to a collector: request, enqueue, each attempt, plugin calls, commit.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set; then every method here returns one span that does nothing, and
OpenTelemetry is not even imported. A trace goes from process to process as a W3C `traceparent`, beside the data of a
job and never in it. One Tracing belongs to one app; there is no global provider. A span begins and ends on the event
loop; sending is done by a thread of the SDK's. Names and attributes are those of OpenTelemetry's semantic conventions
for HTTP and messaging; what these do not know is called `pipeline.*`. No user id, no token, no text of a foreign
exception.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import structlog

from pipeline import __version__
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanKind

    from pipeline.queue.job import Job

log = structlog.get_logger(__name__)

SERVICE_NAME = "ai-queue-pipeline"
TRACEPARENT = "traceparent"
TRACE = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)
CLOSE_SECONDS = 2.0
# A collector that is away for a night is one line a minute.
SAY_AGAIN_SECONDS = 60.0
# They write a line for every batch and every span that is lost; _Exporter says it instead.
NOISY_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
NOT_INSTALLED = "OTEL_EXPORTER_OTLP_ENDPOINT needs OpenTelemetry: pip install 'ai-queue-pipeline[otel]'"


# The trace of the request or the job that is under way, as it came from elsewhere.
inherited_trace: ContextVar[str] = ContextVar("inherited_trace", default="")


class Request(Protocol):
    """What is needed of an HTTP handler; Tornado's have it."""

    route: ClassVar[str]
    request: Any

    def add_log_fields(self, **names: str) -> None:
        """Have the log say so."""

    def get_status(self) -> int:
        """Return the status of the reply."""


class Span:
    """A span while it lasts; this one is none. trace_context: the `traceparent` of what it causes elsewhere, or ""."""

    def __init__(self, trace_context: str = "") -> None:
        self.trace_context = trace_context

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; an exception that passes through makes it failed."""

    def record(self, error: BaseException) -> None:
        """Tell of an exception that is handled inside."""

    def fail(self, message: str) -> None:
        """Mark it failed for that reason, which is fit for anybody to read."""


NO_SPAN = Span()


def valid_traceparent(header: str) -> str:
    """Return the `traceparent` that a caller sent, "" for what is none (W3C Trace Context, section 3.2)."""
    found = TRACE.fullmatch(header)
    return header if found and found[1].strip("0") and found[2].strip("0") else ""


def trace_id(trace_context: str) -> str | None:
    """Return the trace id of a `traceparent`, None when there is none."""
    found = TRACE.fullmatch(trace_context)
    return found[1] if found else None


class Tracing:
    """Makes spans, or none at all: this one is off. It only passes on a trace that a caller has begun."""

    def request(self, handler: Request) -> Span:
        """Return the span of a request that is being answered: of the caller's trace, or the first of a new one."""
        return NO_SPAN

    def enqueue(self, queue: str, job_id: str, data: Mapping[str, Any]) -> Span:
        """Return the span of putting a job in the queue; its trace_context goes beside the data."""
        return Span(trace) if (trace := inherited_trace.get()) else NO_SPAN

    def process(self, queue: str, job: Job) -> Span:
        """Return the span of one attempt; those of a job are siblings under its enqueue span."""
        return NO_SPAN

    def call(self, kind: str, plugin: str, method: str) -> Span:
        """Return the span of a plugin's call, none outside a trace: probes call plugins for ever."""
        return NO_SPAN

    def step(self, name: str) -> Span:
        """Return the span of a part of an attempt."""
        return NO_SPAN

    async def close(self) -> None:
        """Send what is not sent yet, within CLOSE_SECONDS."""


OFF = Tracing()


def build_tracing(settings: Settings) -> Tracing:
    """Return what the settings ask for; ConfigurationError when it is not installed."""
    if not settings.otel_exporter_otlp_endpoint:
        return OFF
    try:
        return _Otel(settings.otel_exporter_otlp_endpoint)
    except ImportError as error:
        raise ConfigurationError(NOT_INSTALLED) from error


class _Otel(Tracing):
    """Tracing that is on. Sampler, batches, headers and timeouts are read by the SDK from its own variables."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: of the collector, without /v1/traces."""
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
        # The detector again, so that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
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
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(closed.set)

        # A thread of its own, and a daemon: the SDK waits up to 30 s for a collector that does not answer.
        threading.Thread(target=shut_down, name="traces-close", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await closed.wait()

    def trace_context(self, span: OtelSpan) -> str:
        """Return the `traceparent` of what the span causes."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self.trace.set_span_in_context(span, self.context.Context()))
        return carrier.get(TRACEPARENT, "")

    def _start(
        self, name: str, kind: SpanKind, attributes: Mapping[str, Any], parent: str | None = None, at_ns: int = 0
    ) -> OtelSpan:
        """parent: a `traceparent`, "" or an invalid one for a new trace, None for the current span."""
        context = None if parent is None else self._propagator.extract({TRACEPARENT: parent})
        return self._tracer.start_span(name, context, kind, attributes, start_time=at_ns or None)


class _OtelSpan(Span):
    def __init__(self, tracing: _Otel, span: OtelSpan) -> None:
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
        # Not Span.record_exception: that sends messages and source lines of whatever was raised.
        event = {"exception.type": _type(error)} | ({"exception.message": text} if (text := _text(error)) else {})
        self._span.add_event("exception", event)
        # What is behind an error of ours says more than that one.
        self._span.set_attribute("error.type", _type(error.__cause__ or error))

    def fail(self, message: str) -> None:
        self._span.set_status(self._tracing.trace.StatusCode.ERROR, message or None)


class _RequestSpan(_OtelSpan):
    """Failed by 5xx only: what a client did wrong is no failure of ours."""

    def __init__(self, tracing: _Otel, span: OtelSpan, handler: Request) -> None:
        super().__init__(tracing, span)
        self._handler = handler
        if found := trace_id(self.trace_context):
            handler.add_log_fields(traceId=found)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self._handler.get_status() if error is None else getattr(error, "http_status", 500)
        self._span.set_attribute("http.response.status_code", status)
        super().__exit__(kind, error if status >= 500 else None, trace)


class _Exporter:
    """The SDK's exporter, with one line a minute for all that it could not send. Runs in the SDK's thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0
        self._said_at = -SAY_AGAIN_SECONDS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result.value:
            self._lost += len(spans)
            if time.monotonic() - self._said_at >= SAY_AGAIN_SECONDS:
                log.warning("traces_lost", spans=self._lost)
                self._lost, self._said_at = 0, time.monotonic()
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
    # A damaged payload may hold anything.
    named = {"pipeline.asset.id": data.get("assetId"), "pipeline.asset.category": data.get("category")}
    return attributes | {name: value for name, value in named.items() if isinstance(value, str)}


def _type(error: BaseException) -> str:
    module, name = type(error).__module__, type(error).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _text(error: BaseException) -> str:
    """Return the error's message when it was written by us to be shown; any other may hold a secret."""
    return error.message if isinstance(error, PipelineError) else ""
