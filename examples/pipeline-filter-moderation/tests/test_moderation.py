"""The filter decides as the pipeline expects (the suite), against a moderation service on a real socket."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.errors import DependencyUnavailable, ValidationError
from pipeline.hooks import NotReady, UploadFacts
from pipeline.settings import Settings
from pipeline.testing import Call, FilterSuite
from pipeline_filter_moderation import Moderation, Unjudged


class Service(ThreadingHTTPServer):
    """Gives each picture the same score."""

    status, score = 200, 0.1


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Service

    def do_POST(self) -> None:
        """Send the score."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"score": self.server.score}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing between pytest's lines."""


class TestModeration(FilterSuite):
    """The tests for every filter, and those of this one."""

    @pytest.fixture
    def service(self) -> Iterator[Service]:
        """A moderation service."""
        with Service(("127.0.0.1", 0), Handler) as service:
            threading.Thread(target=service.serve_forever, args=(0.01,), name="suite-moderation", daemon=True).start()
            yield service
            service.shutdown()

    @pytest.fixture
    def plugin(self) -> Moderation:
        return Moderation()

    @pytest.fixture
    def plugin_settings(self, service: Service) -> Settings:
        url = f"http://127.0.0.1:{service.server_port}/"
        return Settings().with_plugin_variables({"PLUGIN_MODERATION_URL": url})

    def test_flagged_upload_is_refused(
        self, plugin: Moderation, service: Service, upload: UploadFacts, call: Call
    ) -> None:
        """From LEAST_SCORE on."""
        call(plugin.validate_upload, upload)
        service.score = 0.8
        with pytest.raises(ValidationError):
            call(plugin.validate_upload, upload)

    def test_service_that_fails_lets_nothing_through(
        self, plugin: Moderation, service: Service, upload: UploadFacts, call: Call
    ) -> None:
        """Neither an error nor a nonsensical answer counts as permission."""
        for status, error in ((503, DependencyUnavailable), (401, NotReady), (500, Unjudged)):
            service.status = status
            with pytest.raises(error):
                call(plugin.validate_upload, upload)
        service.status, service.score = 200, 7
        with pytest.raises(Unjudged):
            call(plugin.validate_upload, upload)
