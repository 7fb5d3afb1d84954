"""Tracing that is off, not installed, without a collector, or set up twice in one process."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.settings import Settings
from pipeline.otel import build_tracing
from pipeline.tracing import NO_SPAN
from tests.factories import SECRET
from tests.fake_collector import FakeCollector, running_collector
from tests.integration.received_spans import FAST
from tests.requirements import require
from tests.service import ROOT, AiService, Service


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Skip these tests without OpenTelemetry."""
    require(find_spec("opentelemetry") is not None, "the extra [otel] is not installed")


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    """A collector for one test."""
    with running_collector() as collector:
        yield collector


def test_text_of_a_foreign_exception_is_not_sent(collector: FakeCollector) -> None:
    """The text of a library's exception may have secrets, so only its type is sent."""
    tracing = build_tracing(Settings(otel_exporter_otlp_endpoint=collector.url))
    with suppress(OSError), tracing.step("commit"):
        raise OSError("https://user:Zx81@storage.example is away")
    asyncio.run(tracing.close())
    (span,) = collector.spans
    assert span.is_failed and span.events == (("exception", {"exception.type": "OSError"}),)
    assert b"Zx81" not in b"".join(collector.raw)


def test_collector_that_does_not_reply_harms_nothing(tmp_path: Path, ai_service: AiService) -> None:
    """Uploads work, the log has one warning for all lost spans, and the shutdown waits two seconds at most."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)  # accepts connections and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = FAST | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "10"}
        environment |= {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}  # without a limit: ten times 0.5 s at the end
        with Service(tmp_path, ai_service.url, **environment) as service:
            for _ in range(6):
                asset_id = service.upload().json()["data"]["assetId"]
                service.wait_log("job_completed", assetId=asset_id)
            service.wait_log("traces_lost")
            started_at = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - started_at < 4
        faults = [line for line in service.lines if "trace" in line["event"] or "exception" in line]
        assert len(faults) == 1, service.lines


def test_two_apps_send_to_their_own_collectors(collector: FakeCollector) -> None:
    """Two apps in one process send their spans to different collectors; close sends the remaining spans."""
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
    """An address for a gRPC exporter is refused at the start."""
    with pytest.raises(ValueError, match="OTEL_EXPORTER_OTLP_ENDPOINT: must be an http"):
        Settings(otel_exporter_otlp_endpoint="collector:4317")


def test_service_without_an_endpoint_imports_nothing(tmp_path: Path) -> None:
    """A service without an endpoint never imports OpenTelemetry, and its spans are one object that does nothing."""
    code = (
        "import sys\n"
        "import redis.asyncio\n"  # it imports the metrics of OpenTelemetry if these are installed
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
