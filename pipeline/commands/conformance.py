"""The suites of testing.py as `run.py plugins verify` runs them. pytest collects this file; authoring.py, which starts
it, defines the fixture `plugin`: the plugin as configured, a new one for each test.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from pipeline.demo import pictures
from pipeline.hooks import AIProvider, Notifier, StorageBackend
from pipeline.testing import AIProviderSuite, NotifierSuite, StorageBackendSuite


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing goes between pytest's own lines."""


@pytest.fixture(scope="module")
def photo_url() -> Iterator[str]:
    """The address of a real photo, for providers that fetch it: on this machine, as with the storage `local`."""
    photo, _ = pictures()[0]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(photo.parent))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{photo.name}"
        server.shutdown()


class TestProvider(AIProviderSuite):
    """An AI provider."""

    @pytest.fixture
    def provider(self, plugin: AIProvider) -> AIProvider:
        return plugin

    @pytest.fixture
    def image_url(self, photo_url: str) -> str:
        return photo_url


class TestStorage(StorageBackendSuite):
    """A storage backend."""

    @pytest.fixture
    def storage(self, plugin: StorageBackend) -> StorageBackend:
        return plugin


class TestNotifier(NotifierSuite):
    """A notifier."""

    @pytest.fixture
    def notifier(self, plugin: Notifier) -> Notifier:
        return plugin
