"""The suites of pipeline.testing as `run.py plugins verify` runs them. pytest collects this file; suite_child.py, which
starts it, defines the fixtures `configured`: the plugin as it is set up, a new one for each test; and
`configured_settings`: those of the service.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from pipeline.demo import pictures
from pipeline.hooks import AIProvider, Notifier, StorageBackend
from pipeline.settings import Settings
from pipeline.testing import AIProviderSuite, FilterSuite, NotifierSuite, ObserverSuite, StorageBackendSuite

POLL_SECONDS = 0.02


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing goes between pytest's own lines."""


@pytest.fixture(scope="module")
def photo_url() -> Iterator[str]:
    """The address of a real photo, for providers that fetch it: on this machine, as with the storage `local`."""
    photo, _ = pictures()[0]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(photo.parent))) as server:
        # `shutdown` waits for as long as a look takes.
        Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{photo.name}"
        server.shutdown()


class AsConfigured:
    """A plugin gets the service's settings, DATA_DIR and all: it may keep there what takes long to fetch."""

    # What one changes for all belongs to the operator.
    asks_admin_routes = False

    @pytest.fixture
    def context_settings(self, configured_settings: Settings) -> Settings:
        return configured_settings

    @pytest.fixture
    def plugin_settings(self, configured_settings: Settings) -> Settings:
        return configured_settings


class TestProvider(AsConfigured, AIProviderSuite):
    """An AI provider."""

    @pytest.fixture
    def provider(self, configured: AIProvider) -> AIProvider:
        return configured

    @pytest.fixture
    def categories(self, configured_settings: Settings) -> Sequence[str]:
        return configured_settings.categories

    @pytest.fixture
    def image_url(self, photo_url: str) -> str:
        return photo_url


class TestStorage(AsConfigured, StorageBackendSuite):
    """A storage backend."""

    @pytest.fixture
    def storage(self, configured: StorageBackend) -> StorageBackend:
        return configured


class TestNotifier(AsConfigured, NotifierSuite):
    """A notifier."""

    @pytest.fixture
    def notifier(self, configured: Notifier) -> Notifier:
        return configured


class TestFilter(AsConfigured, FilterSuite):
    """A plugin that filters."""

    @pytest.fixture
    def plugin(self, configured: object) -> object:
        return configured


class TestObserver(AsConfigured, ObserverSuite):
    """A plugin that observes."""

    @pytest.fixture
    def plugin(self, configured: object) -> object:
        return configured
