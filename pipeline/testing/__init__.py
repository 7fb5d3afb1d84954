"""Conformance suites for plugin authors: subclass one, give it one fixture, run pytest.

    class TestMyProvider(AIProviderSuite):
        @pytest.fixture
        def provider(self) -> AIProvider:
            return MyProvider(...)

The fixture `sandbox` is the argument of the `register_` hooks, `context` the argument of `start`. The suite calls
`start` before each test and `close` after it. Each test calls the plugin as the service does, `async def` or plain
`def`. A failed test prints one line with the fault and the cure. Needs pytest, no server. `run.py plugins verify` runs
the same suites on a configured plugin.
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
