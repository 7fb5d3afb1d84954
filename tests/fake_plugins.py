"""Plugins as other authors write them, built in the test: modules with hooks, and managers of these modules."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from pipeline.clock import utc_now
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, JobEvent, hookimpl
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.manager import PluginManager, assemble
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import RecordingRooms
from tests.constants import BREAKER_FAILURES, BREAKER_PROBE_SECONDS, LEAST_THREADS, THREADS_PER_SLOT

Analyze = Callable[[AnalyzeRequest], Any]


class Provider:
    """A provider whose method `analyze` is the given function."""

    def __init__(self, analyze: Analyze) -> None:
        self.analyze = analyze
        self.needs_image = getattr(analyze, "needs_image", False)


class Storage:
    """A storage that stores nothing."""

    def save(self, public_id: str, file: Any, content_type: str) -> str:
        return "https://images.example/x"

    def open(self, public_id: str) -> Any:
        raise FileNotFoundError(public_id)

    def delete(self, public_id: str) -> None:
        pass

    def check(self) -> None:
        pass


def make_module(name: str, **hooks: Callable[..., Any]) -> ModuleType:
    """Return a plugin module that implements these hooks."""
    module = ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    return module


def make_catalogue(settings: Settings, *modules: ModuleType) -> Catalogue:
    """Return the catalogue of these modules and of the installed plugins."""
    sys.modules.update({module.__name__: module for module in modules})
    try:
        return Catalogue(settings, [module.__name__ for module in modules])
    finally:
        for module in modules:
            del sys.modules[module.__name__]


class ManagerFactory:
    """Builds managers from modules and functions; `close` ends the managers and the calls of `hang`."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.released = threading.Event()
        self._managers: list[PluginManager] = []
        self._constants = pytest.MonkeyPatch()

    def hang(self, *_: Any) -> None:
        """Block the calling thread until the test is over."""
        self.released.wait(60)

    def open(
        self,
        *modules: ModuleType,
        providers: Mapping[str, Analyze] | None = None,
        variables: Mapping[str, str] = {},
        breaker_failures: int | None = None,
        breaker_probe_seconds: float | None = None,
        pool_threads: int | None = None,
        **settings: Any,
    ) -> PluginManager:
        """Return a manager of the modules' hooks and of the providers.

        providers: the functions by name; by default all form one chain, in this order.
        variables: the environment variables PLUGIN_...
        breaker_failures: the value of the constant BREAKER_FAILURES.
        breaker_probe_seconds: the value of the constant BREAKER_PROBE_SECONDS.
        pool_threads: the number of threads of each plugin.
        settings: fields of Settings.
        """
        self._constants.undo()
        if breaker_failures is not None:
            self._constants.setattr(BREAKER_FAILURES, breaker_failures)
        if breaker_probe_seconds is not None:
            self._constants.setattr(BREAKER_PROBE_SECONDS, breaker_probe_seconds)
        if pool_threads is not None:
            self._constants.setattr(LEAST_THREADS, pool_threads)
            self._constants.setattr(THREADS_PER_SLOT, 0)
        offered = {name: partial(Provider, function) for name, function in (providers or {"only": find}).items()}
        parts = make_module(
            "parts",
            register_ai_providers=lambda: offered.items(),
            register_storage_backends=lambda: [("tested", Storage)],
        )
        chosen = Settings(
            **{"ai_provider": tuple(offered), "storage_backend": "tested", "notifiers": ()} | settings
        ).with_plugin_variables(variables)
        catalogue = make_catalogue(chosen, *modules, parts)
        manager = assemble(catalogue, chosen, self.metrics, RecordingRooms())
        self._managers.append(manager)
        return manager

    def count(self, name: str, kind: str, plugin: str) -> float:
        """Return the value of a plugin's metric, summed over its methods."""
        return count(self.metrics, name, kind, plugin)

    async def close(self) -> None:
        """End all managers."""
        self.released.set()
        self._constants.undo()
        for manager in self._managers:
            await manager.close()


def count(metrics: Metrics, name: str, kind: str, plugin: str) -> float:
    """Return the value of a plugin's metric, summed over its methods."""
    wanted = {"kind": kind, "plugin": plugin}.items()
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return sum(each.value for each in samples if each.name == name and wanted <= each.labels.items())


def find(request: AnalyzeRequest) -> Analysis:
    """Return the same analysis for every photo: the function of the default provider."""
    return make_analysis()


def make_analysis(brand: str = "Nike") -> Analysis:
    """Return an analysis with that brand."""
    return Analysis(brand=Attribute(brand, 0.9))


def make_request(category: str = "sneaker", **fields: Any) -> AnalyzeRequest:
    """Return a request to analyze a photo."""
    asset_id = "65f0c0ffee65f0c0ffee65f0"
    standard: dict[str, Any] = {"asset_id": asset_id, "job_id": f"ai-processing:{asset_id}", "request_id": "request-1"}
    rest = {"image_url": "https://images.example/original.jpg", "attempt": 1, "timeout_seconds": 90}
    return AnalyzeRequest(category=category, **standard | rest | fields)


def make_job_event(number: int = 0, **fields: Any) -> JobEvent:
    """Return an event of the job with that number."""
    asset_id = f"{number:024x}"
    return JobEvent(
        f"ai-processing:{asset_id}", asset_id, "user-1", "sneaker", f"request-{number}", utc_now(), **fields
    )
