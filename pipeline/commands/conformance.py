"""The suites of pipeline.testing as `run.py plugins verify` runs them. pytest collects this file. suite_run.py starts
pytest and defines two fixtures: `configured`, a new instance of the configured plugin for each test, and
`configured_settings`, the settings of the service.
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
    """Serves files without log lines, which would stand between those of pytest."""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def photo_url() -> Iterator[str]:
    """The URL of a photo on this machine, as with the storage `local`, for providers that fetch it."""
    photo, _ = pictures()[0]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(photo.parent))) as server:
        # `shutdown` waits for the end of one poll.
        Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{photo.name}"
        server.shutdown()


class AsConfigured:
    """The plugin gets the service's own settings, DATA_DIR included: its downloaded models may be there."""

    # The suite must not change what the service's admin routes change.
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
