"""Conformance suites for plugin authors: subclass one, give it one fixture, run pytest.

    class TestMyProvider(AIProviderSuite):
        @pytest.fixture
        def provider(self) -> AIProvider:
            return MyProvider(...)

The fixture `sandbox` is what the service passes to a `register_` hook, `context` what it passes to `start`, which is
called before each test, as `close` is after it. Each test calls the plugin as the pipeline does, be its methods
`async def` or plain `def`. What is wrong is said in one line, with the cure. Needs pytest, no server.
`run.py plugins verify` runs the same suites on a plugin as it is configured.
"""

from pipeline.testing.hook_suites import FilterSuite, ObserverSuite
from pipeline.testing.notifiers import NotifierSuite
from pipeline.testing.providers import AIProviderSuite
from pipeline.testing.samples import FAILURE_EVENT, GIF, SUCCESS_EVENT, RecordingRooms
from pipeline.testing.storages import StorageBackendSuite
from pipeline.testing.suite import Call, PluginSuite

__all__ = [
    "FAILURE_EVENT",
    "GIF",
    "SUCCESS_EVENT",
    "AIProviderSuite",
    "Call",
    "FilterSuite",
    "NotifierSuite",
    "ObserverSuite",
    "PluginSuite",
    "RecordingRooms",
    "StorageBackendSuite",
]
