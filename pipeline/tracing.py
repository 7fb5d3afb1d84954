"""The spans of a trace: request, enqueue, each attempt, plugin calls, commit. otel.py sends them to a collector.

Tracing is off unless OTEL_EXPORTER_OTLP_ENDPOINT is set: the methods here return a span that does nothing. A trace goes
from process to process as a W3C `traceparent`, stored beside the data of a job, never in it. Spans begin and end on the
event loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pipeline.queue.job import Job

TRACEPARENT = "traceparent"
TRACE = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)

# The `traceparent` that the current request or job came with.
inherited_trace: ContextVar[str] = ContextVar("inherited_trace", default="")


class Request(Protocol):
    """The part of a BaseHandler that a request span uses."""

    route: ClassVar[str]
    request: Any

    def add_log_fields(self, **names: str) -> None:
        """Add fields to the log lines of the request."""

    def get_status(self) -> int:
        """Return the status of the reply."""


class Span:
    """A running span; this class does nothing.

    trace_context: the `traceparent` for other processes, or "".
    """

    def __init__(self, trace_context: str = "") -> None:
        self.trace_context = trace_context

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the span; an exception that passes through marks it as failed."""

    def record(self, error: BaseException) -> None:
        """Record an exception that was handled."""

    def fail(self, message: str) -> None:
        """Mark the span as failed.

        message: the reason, without secrets.
        """


NO_SPAN = Span()


def valid_traceparent(header: str) -> str:
    """Return the `traceparent` of a request's header, "" for an invalid one (W3C Trace Context, section 3.2)."""
    matched = TRACE.fullmatch(header)
    return header if matched and matched[1].strip("0") and matched[2].strip("0") else ""


def trace_id(trace_context: str) -> str | None:
    """Return the trace id of a `traceparent`, None for an invalid one."""
    matched = TRACE.fullmatch(trace_context)
    return matched[1] if matched else None


class Tracing:
    """Makes spans. This class is off: it makes none, but passes a caller's `traceparent` on to the job."""

    def request(self, handler: Request) -> Span:
        """Return the span of the current request, in the caller's trace or in a new one."""
        return NO_SPAN

    def enqueue(self, queue: str, job_id: str, data: Mapping[str, Any]) -> Span:
        """Return the span of enqueueing a job; its trace_context is stored beside the job's data."""
        return Span(trace) if (trace := inherited_trace.get()) else NO_SPAN

    def process(self, queue: str, job: Job) -> Span:
        """Return the span of an attempt; the attempts of a job are siblings under its enqueue span."""
        return NO_SPAN

    def call(self, kind: str, plugin: str, method: str) -> Span:
        """Return the span of a plugin call. Outside a trace it does nothing: probes call plugins for ever."""
        return NO_SPAN

    def step(self, name: str) -> Span:
        """Return the span of a part of an attempt."""
        return NO_SPAN

    async def close(self) -> None:
        """Send the remaining spans."""


OFF = Tracing()
