"""Runs the suites of one plugin under pytest and reports each step. suite_child.py checks first that pytest exists."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.kinds import NOTIFIER, PROVIDER, STORAGE, Kind
from pipeline.settings import Settings
from pipeline.testing.findings import describe

IN_FORCE = {
    PROVIDER: "provider_timeout_seconds",
    STORAGE: "storage_timeout_seconds",
    NOTIFIER: "notifier_timeout_seconds",
    None: "hook_timeout_seconds",
}
# Of one call; a slower plugin would occupy one of few job slots.
CALL_SECONDS_AT_MOST = 20.0
# How long calls are retried after an error that asks for a retry.
PATIENCE_SECONDS = 10.0


class SuiteRun:
    """The pytest plugin that gives conformance.py its fixtures and reports the results."""

    def __init__(
        self,
        name: str,
        kind: Kind | None,
        catalogue: Catalogue,
        settings: Settings,
        seconds: float,
        send: Callable[[dict[str, Any]], None],
    ) -> None:
        """
        kind: None for observers and filters.
        seconds: for the whole run.
        send: sends the messages that suite_child.py describes.
        """
        self._name = name
        self._catalogue = catalogue
        self._kind = kind
        self._settings = settings
        self._call_seconds = min(CALL_SECONDS_AT_MOST, seconds / 3)
        self._ends_at = monotonic() + seconds
        self._send = send
        self._values: dict[type, dict[str, Any]] = {}

    def run(self, suites: Sequence[str]) -> None:
        """Run these classes of conformance.py."""
        # The author's pytest configuration and other installed pytest plugins must not change the run.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        folder = Path(__file__).parent
        options = ["-q", "--tb=no", "--no-header", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
        # Otherwise pytest searches every folder above for a conftest.py.
        options += ["-p", "no:faulthandler", "--confcutdir", str(folder)]
        file = folder / "conformance.py"
        pytest.main([*options, *(f"{file}::{suite}" for suite in suites)], plugins=[self])
        calls = {name: times for values in self._values.values() for name, times in values.get("calls", {}).items()}
        self._send({"calls": calls})

    @pytest.fixture
    def configured_settings(self) -> Settings:
        return self._settings

    @pytest.fixture
    def configured(self, loop: Any) -> Iterator[object]:
        catalogue = self._catalogue
        catalogue.rebuild()
        yield catalogue.make(self._kind, self._name) if self._kind else catalogue.hook_plugin(self._name)
        loop.run_until_complete(catalogue.sandbox.close())

    @pytest.fixture(autouse=True)
    def _hurry(self, request: pytest.FixtureRequest) -> None:
        suite: Any = request.instance
        setting = IN_FORCE[self._kind]
        suite.call_seconds, suite.stops_after_hang = self._call_seconds, True
        suite.time_limit = setting.upper(), getattr(self._settings, setting)
        suite.route_time_limit = "HOOK_TIMEOUT_SECONDS", self._settings.hook_timeout_seconds
        suite.wait_budget_seconds = PATIENCE_SECONDS
        suite.plugin_name = self._name
        self._values[type(suite)] = suite.class_state
        suite.deadline = self._ends_at - self._call_seconds - 3

    def pytest_collection_finish(self) -> None:
        gc.freeze()  # the search for objects that the plugin leaves need not look at pytest's own

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._send({"begins": _title(nodeid)})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._send({"ends": _title(nodeid)})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        error = call.excinfo.value if call.excinfo else None
        if report.skipped:
            self._send({"left_out": _title(item.nodeid), "why": str(error)})
        elif report.failed and error is not None:
            for line in _lines(error):
                self._send({"finding": line, "test": _title(item.nodeid)})
        return report


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, pytest.fail.Exception):
        return str(error).splitlines()
    return [f"the test ended with {describe(error)}"]


def _title(nodeid: str) -> str:
    return nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
