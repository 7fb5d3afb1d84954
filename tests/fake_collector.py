"""A collector of traces: a real OTLP/HTTP receiver that records every span.

In a test: `with running_collector() as collector: ...`. It runs in its own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Received:
    """One span.

    trace_id: in hex.
    span_id: in hex.
    parent_id: in hex; "" for the first span of a trace.
    message: of a failed span.
    resource: the attributes of the process.
    """

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    is_failed: bool
    message: str
    events: tuple[tuple[str, Mapping[str, Any]], ...]
    resource: Mapping[str, Any]

    @property
    def traceparent(self) -> str:
        """The beginning of the header `traceparent` of a call made inside this span; the flags follow."""
        return f"00-{self.trace_id}-{self.span_id}-"


class FakeCollector:
    """The collector.

    spans: all spans that arrived.
    raw: the bodies of the requests.
    url: the value for OTEL_EXPORTER_OTLP_ENDPOINT.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Received] = []
        self.raw: list[bytes] = []
        self._arrived = threading.Condition()

    def wait(self, is_enough: Callable[[list[Received]], bool]) -> list[Received]:
        """Return all spans once `is_enough` returns true."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: is_enough(self.spans), WAIT_SECONDS), [s.name for s in self.spans]
            return list(self.spans)

    def clear(self) -> None:
        """Remove all spans and bodies."""
        with self._arrived:
            self.spans, self.raw = [], []

    def add(self, body: bytes) -> None:
        """Record the spans of a request."""
        spans = parse(body)
        with self._arrived:
            self.raw.append(body)
            self.spans += spans
            self._arrived.notify_all()


@contextmanager
def running_collector() -> Iterator[FakeCollector]:
    """Run a collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                collector.add(body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = FakeCollector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def parse(body: bytes) -> list[Received]:
    """Return the spans of an ExportTraceServiceRequest."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    request = ExportTraceServiceRequest.FromString(body)
    return [
        Received(
            name=span.name,
            kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            attributes=_values(span.attributes),
            is_failed=span.status.code == Status.STATUS_CODE_ERROR,
            message=span.status.message,
            events=tuple((event.name, _values(event.attributes)) for event in span.events),
            resource=_values(of_resource.resource.attributes),
        )
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
