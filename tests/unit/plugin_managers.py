"""Managers of plugins that a test defines: a provider, a storage and notifiers as functions of the test."""

from __future__ import annotations

import io
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, Notification, hookimpl
from pipeline.hooks.manager import PluginManager, assemble
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import RecordingRooms
from tests.fake_plugins import Provider, count, make_catalogue

REQUEST = AnalyzeRequest(
    image_url="https://images.example/original.jpg",
    category="sneaker",
    asset_id="65f0c0ffee65f0c0ffee65f0",
    job_id="ai-processing:65f0c0ffee65f0c0ffee65f0",
    request_id="request-1",
    attempt=1,
    timeout_seconds=1,
)
FOUND = Analysis(brand=Attribute("Nike", 0.9))


async def no_image() -> bytes:
    """Fail the test: for providers that do not request the image."""
    raise AssertionError("the provider must not request the image")


class Storage:
    """A storage in memory. If `failure` is set, every method first raises it or calls it."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.url: Any = "https://images.example/x"
        self.failure: Exception | Callable[[], Any] | None = None

    def save(self, public_id: str, file: io.BytesIO, content_type: str) -> Any:
        self._fail()
        self.images[public_id] = file.read()
        return self.url

    def open(self, public_id: str) -> io.BytesIO:
        self._fail()
        return io.BytesIO(self.images[public_id])

    def delete(self, public_id: str) -> None:
        self._fail()
        self.images.pop(public_id, None)

    def check(self) -> None:
        self._fail()

    def _fail(self) -> None:
        if isinstance(self.failure, Exception):
            raise self.failure
        if self.failure:
            self.failure()


class Notifier:
    """A notifier whose method `notify` is the given function."""

    def __init__(self, notify: Callable[[Notification], Any], is_durable: bool = False) -> None:
        self.notify = notify
        self.durable = is_durable


class ManagerFactory:
    """Builds managers from the functions of a test."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.rooms = RecordingRooms()
        self.released = threading.Event()
        self.managers: list[PluginManager] = []

    def hang(self, *_: Any) -> None:
        """Block the calling thread until the test is over."""
        self.released.wait(60)

    def open(
        self,
        analyze: Callable[[AnalyzeRequest], Any] = lambda request: FOUND,
        storage: Any = None,
        notifiers: Mapping[str, Callable[[Notification], Any]] | None = None,
        max_concurrency: int | None = None,
        is_durable: bool = False,
        **settings: Any,
    ) -> PluginManager:
        """Return a manager of a provider, a storage and notifiers that are all named or built from these arguments.

        is_durable: applies to all notifiers.
        """
        provider = Provider(analyze)
        if max_concurrency:
            provider.max_concurrency = max_concurrency  # type: ignore[attr-defined]
        named = notifiers or {}
        module = make_module(
            "tested",
            providers=[("tested", lambda: provider)],
            storages=[("tested", lambda: storage or Storage())],
            notifiers=[(name, lambda notify=notify: Notifier(notify, is_durable)) for name, notify in named.items()],
        )
        chosen = Settings(ai_provider="tested", storage_backend="tested", notifiers=tuple(named), **settings)
        manager = build(chosen, module, self)
        self.managers.append(manager)
        return manager

    def count(self, name: str, kind: str, plugin: str = "tested") -> float:
        """Return the value of a plugin's metric, summed over its methods."""
        return count(self.metrics, name, kind, plugin)


def make_module(
    name: str, providers: Any = (), storages: Any = (), notifiers: Any = (), tryfirst: bool = False
) -> types.ModuleType:
    """Return a plugin module as a package author would write it."""
    module = types.ModuleType(name)

    @hookimpl(tryfirst=tryfirst)
    def register_ai_providers(settings: Settings) -> Any:
        yield from providers

    @hookimpl
    def register_storage_backends(settings: Settings) -> Any:
        yield from storages

    @hookimpl
    def register_notifiers() -> Any:
        yield from notifiers

    for implementation in (register_ai_providers, register_storage_backends, register_notifiers):
        setattr(module, implementation.__name__, implementation)
    return module


def build(settings: Settings, module: types.ModuleType, factory: ManagerFactory) -> PluginManager:
    """Return a manager of this module, with the metrics and rooms of the factory."""
    return assemble(make_catalogue(settings, module), settings, factory.metrics, factory.rooms)


@contextmanager
def manager_factory(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """Yield a factory of managers; at the end close the managers that the test has built."""
    factory = ManagerFactory()
    with capture_logs():  # the console prints exceptions slowly
        yield factory
    factory.released.set()
    for manager in factory.managers:
        io_loop.run_sync(manager.close)
