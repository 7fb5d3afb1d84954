"""Finds the plugins there are, builds those the settings name, and calls them for the use cases.

pluggy registers, validates and orders; we call, because pluggy is synchronous and stops at the first exception. A
manager belongs to the app that built it: two in one process know nothing of each other. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pluggy
import structlog

from pipeline.errors import ConfigurationError, DependencyUnavailable, JobError, PipelineError, RetryableJobError
from pipeline.hooks import protocols, specs
from pipeline.hooks.calls import BoundPlugin, PluginOverrun
from pipeline.hooks.checks import find_fault, is_web_url
from pipeline.hooks.protocols import Analysis, AnalyzeRequest, Notification, RoomPublisher, StorageBackend

if TYPE_CHECKING:
    from pipeline.metrics import Metrics
    from pipeline.settings import Settings

ENTRY_POINT_GROUP = "ai_queue_pipeline"
BUILT_IN = "built-in"
BUILT_IN_MODULES = (
    "plugins.ai_http",
    "plugins.ai_local",
    "plugins.storage_local",
    "plugins.storage_cloudinary",
    "plugins.notify_websocket",
)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of plugin: the hook that offers it, the setting that selects it, the methods it must have."""

    name: str
    hook: str
    setting: str
    methods: tuple[str, ...]


PROVIDER = Kind("provider", "register_ai_providers", "AI_PROVIDER", ("analyze",))
STORAGE = Kind("storage", "register_storage_backends", "STORAGE_BACKEND", ("save", "open", "delete", "check"))
NOTIFIER = Kind("notifier", "register_notifiers", "NOTIFIERS", ("notify",))
KINDS = (PROVIDER, STORAGE, NOTIFIER)


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One line of `run.py plugins`.

    kind: provider | storage | notifier, or "" for a package that could not be loaded at all. origin: "built-in" or the
    distribution and its version. state: selected | available | broken; reason: why it is broken, else "".
    """

    name: str
    kind: str
    origin: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A plugin that could be built."""

    name: str
    kind: Kind
    origin: str
    build: Callable[[], Any]


class Catalogue:
    """All plugins that were found, whether they work or not."""

    def __init__(self, settings: Settings, modules: Sequence[str] = BUILT_IN_MODULES) -> None:
        self.selected = {
            PROVIDER: (settings.provider_name,),
            STORAGE: (settings.storage_name,),
            NOTIFIER: tuple(dict.fromkeys(settings.notifiers)),
        }
        self._settings = settings
        self._offers: dict[tuple[Kind, str], Offer] = {}
        self._broken: list[PluginInfo] = []
        self._registry = pluggy.PluginManager(specs.PROJECT)
        self._registry.add_hookspecs(specs)
        # pluggy asks the last registered first, and the first to offer a name keeps it: a package takes a built-in's
        # place only when it says so with `tryfirst`.
        for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda each: each.name, reverse=True):
            self._register(entry_point.name, _origin(entry_point), entry_point.load)
        for module in modules:
            self._register(module, BUILT_IN, partial(importlib.import_module, module))
        for kind in KINDS:
            for implementation in reversed(getattr(self._registry.hook, kind.hook).get_hookimpls()):
                self._ask(kind, implementation)

    def infos(self) -> list[PluginInfo]:
        """Return every plugin, by kind, then name."""
        usable = [
            PluginInfo(offer.name, kind.name, offer.origin, "selected" if name in self.selected[kind] else "available")
            for (kind, name), offer in self._offers.items()
        ]
        return sorted(usable + self._broken, key=lambda info: (info.kind, info.name, info.origin))

    def build(self, kind: Kind, metrics: Metrics) -> list[BoundPlugin]:
        """Return the selected plugins of a kind, ready to be called; ConfigurationError says what is wrong."""
        return [self._build(kind, name, metrics) for name in self.selected[kind]]

    def _register(self, name: str, origin: str, load: Callable[[], Any]) -> None:
        # SystemExit too: a package whose import gives up must not end the service.
        try:
            plugin = load()
            self._registry.register(plugin, name=f"{origin}: {name}")
            for caller in self._registry.get_hookcallers(plugin) or ():
                if not caller.has_spec():
                    raise TypeError(f"there is no hook {caller.name}")
        except (Exception, SystemExit) as error:
            self._report_broken(name, "", origin, error)
            with suppress(Exception):
                self._registry.unregister(name=f"{origin}: {name}")

    def _ask(self, kind: Kind, implementation: pluggy.HookImpl) -> None:
        origin, _, registered = implementation.plugin_name.partition(": ")
        try:
            arguments = [self._settings for _ in implementation.argnames]
            offers = [(str(name), build) for name, build in cast(Any, implementation.function)(*arguments)]
        except (Exception, SystemExit) as error:
            self._report_broken(registered, kind.name, origin, error)
            return
        for name, build in offers:
            taken = self._offers.setdefault((kind, name), Offer(name, kind, origin, build))
            if taken.build is not build:
                self._report_broken(name, kind.name, origin, ValueError(f"the name is taken by {taken.origin}"))

    def _report_broken(self, name: str, kind: str, origin: str, error: BaseException) -> None:
        self._broken.append(PluginInfo(name, kind, origin, "broken", f"{type(error).__name__}: {error}"))

    def _build(self, kind: Kind, name: str, metrics: Metrics) -> BoundPlugin:
        offer = self._offers.get((kind, name))
        if offer is None:
            raise ConfigurationError(f"{kind.setting}: there is no {kind.name} {name!r}; {self._names(kind)}")
        try:
            plugin = offer.build()
            for method in kind.methods:
                if not callable(getattr(plugin, method, None)):
                    raise TypeError(f"it has no method {method}")
            threads = int(getattr(plugin, "max_concurrency", self._settings.pool_threads))
            if threads < 1:
                raise ValueError("its max_concurrency is less than 1")
            return BoundPlugin(kind.name, name, plugin, kind.methods, threads=threads, metrics=metrics)
        except (Exception, SystemExit) as error:
            raise ConfigurationError(f"{kind.setting}: {kind.name} {name!r} cannot start: {error}") from error

    def _names(self, kind: Kind) -> str:
        names = sorted(name for offered, name in self._offers if offered is kind)
        faults = [f"{info.name} ({info.reason})" for info in self._broken if info.kind in ("", kind.name)]
        return f"there are: {', '.join(names) or 'none'}" + (f"; broken: {', '.join(faults)}" if faults else "")


class PluginManager:
    """The provider, the storage and the notifiers in use. Built by `build_plugins`; `close` when done."""

    def __init__(
        self,
        settings: Settings,
        rooms: RoomPublisher,
        *,
        provider: BoundPlugin,
        storage: BoundPlugin,
        notifiers: Sequence[BoundPlugin],
    ) -> None:
        self._settings = settings
        self._rooms = rooms
        self._provider = provider
        self._storage = storage
        self._notifiers = tuple(notifiers)

    @property
    def needs_image(self) -> bool:
        """True when the provider wants the photo's bytes in the request."""
        return bool(getattr(self._provider.plugin, "needs_image", False))

    @property
    def media_root(self) -> Path | None:
        """The folder to serve under /media, or None."""
        return protocols.media_root(cast(StorageBackend, self._storage.plugin))

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        """Return the provider's checked result; what it raises is always a RetryableJobError or PermanentJobError."""
        try:
            result = await self._provider.call("analyze", self._settings.provider_timeout_seconds, request)
        except JobError:
            raise
        except PluginOverrun as error:
            raise RetryableJobError("AI service timed out") from error
        except Exception as error:
            raise RetryableJobError("AI service failed") from error
        if fault := find_fault(result):
            raise RetryableJobError("AI service sent an invalid result", max_attempts=2) from ValueError(fault)
        return cast(Analysis, result)

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the image and return its URL; DependencyUnavailable, or the storage's own PipelineError."""
        url = await self._call_storage("save", public_id, file, content_type)
        if not is_web_url(url):
            raise DependencyUnavailable("Image storage unavailable") from ValueError(f"save returned {url!r}")
        return cast(str, url)

    async def open(self, public_id: str) -> BinaryIO:
        """Return the stored image as a file the caller closes; FileNotFoundError when there is none."""
        return cast(BinaryIO, await self._call_storage("open", public_id))

    async def delete(self, public_id: str) -> None:
        """Remove the image if it is there."""
        await self._call_storage("delete", public_id)

    async def check_storage(self) -> None:
        """Return when the storage is usable; DependencyUnavailable otherwise."""
        await self._call_storage("check")

    async def notify(self, event: Mapping[str, Any], user_id: str) -> None:
        """Hand the event to every notifier at once; return when each has delivered, failed or used up its time.

        A failure is logged and counted, never raised.
        """
        await asyncio.gather(*(self._notify(notifier, event, user_id) for notifier in self._notifiers))

    async def close(self) -> None:
        """Close the plugins and leave their threads, also the stuck ones, behind."""
        await asyncio.gather(*(plugin.close() for plugin in (self._provider, self._storage, *self._notifiers)))

    async def _call_storage(self, method: str, *args: Any) -> Any:
        try:
            return await self._storage.call(method, self._settings.storage_timeout_seconds, *args)
        except PipelineError:
            raise
        except Exception as error:
            if method == "open" and isinstance(error, FileNotFoundError):
                raise
            raise DependencyUnavailable("Image storage unavailable") from error

    async def _notify(self, notifier: BoundPlugin, event: Mapping[str, Any], user_id: str) -> None:
        # A copy each: what one does to its event must not reach another.
        notification = Notification(copy.deepcopy(event), user_id, self._rooms)
        try:
            await notifier.call("notify", self._settings.notifier_timeout_seconds, notification)
        except Exception:
            log.error("notifier_failed", plugin=notifier.name, assetId=event.get("assetId"), exc_info=True)


def build_plugins(settings: Settings, metrics: Metrics, rooms: RoomPublisher) -> PluginManager:
    """Return the plugins the settings select, ready to use; ConfigurationError when one is missing or cannot start."""
    catalogue = Catalogue(settings)
    (provider,), (storage,) = catalogue.build(PROVIDER, metrics), catalogue.build(STORAGE, metrics)
    notifiers = catalogue.build(NOTIFIER, metrics)
    return PluginManager(settings, rooms, provider=provider, storage=storage, notifiers=notifiers)


def list_plugins(settings: Settings) -> list[PluginInfo]:
    """Return every plugin there is, without building any."""
    return Catalogue(settings).infos()


def _origin(entry_point: EntryPoint) -> str:
    return f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "unknown package"
