"""Calls the plugins in use for the use cases: providers in chains, one storage, notifiers, observers and filters.

What there is and what is selected: catalogue.py; how one is called: calls.py. A manager belongs to the app that built
it: two in one process know nothing of each other. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import ConfigurationError
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.context import ContextFactory
from pipeline.hooks.hook_calls import Hooked
from pipeline.hooks.job_side import NO_LIMITS, NO_WITNESS, Permit, AnalysisListener
from pipeline.hooks.kinds import FILTERS, NOTIFIER, PROVIDER, STORAGE
from pipeline.hooks.context_api import PluginStore
from pipeline.hooks.listing import PluginInfo
from pipeline.hooks.load_checks import nearest
from pipeline.hooks.notifiers import Notifiers
from pipeline.hooks.photo import ReadImage
from pipeline.hooks.pictures import Inspect, Pictures
from pipeline.hooks.protocols import (
    Analysis,
    AnalyzeRequest,
    JobEvent,
    RoomPublisher,
    StoredImage,
    UploadFacts,
)
from pipeline.hooks.providers import Providers
from pipeline.hooks.routes import Route
from pipeline.hooks.starting import start
from pipeline.hooks.storages import Storages
from pipeline.hooks.storage_calls import Storing
from pipeline.hooks.usage import UsageCounts
from pipeline.hooks.values import MemoryValues
from pipeline.images import ImageName, SavedImage
from pipeline.tracing import OFF, Tracing

if TYPE_CHECKING:
    from pipeline.metrics import Metrics
    from pipeline.sandbox.sandbox import Sandbox
    from pipeline.settings import Settings


class PluginManager:
    """The providers, the storage, the notifiers and the hooks in use. Built by `build_plugins`; `close` when done."""

    def __init__(
        self,
        settings: Settings,
        rooms: RoomPublisher,
        *,
        providers: Mapping[str, BoundPlugin],
        storages: Storages,
        notifiers: Sequence[BoundPlugin],
        usage: UsageCounts,
        hooks: Sequence[BoundPlugin] = (),
        tracing: Tracing = OFF,
        sandbox: Sandbox | None = None,
        inspect: Inspect | None = None,
        contexts: ContextFactory | None = None,
        broken: Sequence[PluginInfo] = (),
    ) -> None:
        """providers: by name, all that settings.all_providers names. storages: the current one, and how to have others.
        sandbox: where plugins work, closed with them. inspect: looks at the bytes of the images that plugins made.
        usage: counts what the AI takes. broken: plugins that cannot be used, to be shown.
        """
        pictures = Pictures(settings, inspect)
        self._providers = Providers(settings, providers, tracing, pictures, sandbox, usage)
        self._asked = tuple(providers.values())
        # Which AI providers are not asked for now, and which of them the jobs of each category may ask.
        self.provider_holds = self._providers.holds
        # How often those may be asked that have limits, by name.
        self.provider_paces = self._providers.paces
        self.free_providers = self._providers.free
        self.provider_versions = self._providers.versions
        # Whom the jobs of each category ask only after another has answered.
        self.provider_behind = self._providers.behind
        self.storages = storages
        self.notifiers = Notifiers(notifiers, rooms, settings.notifier_timeout_seconds, tracing)
        self._hooked = Hooked(hooks, settings, pictures)
        self.sandbox = sandbox
        self._contexts, self.usage, self.broken = contexts, usage, broken
        # By the plugin's name; those that are opened later have none.
        self.routes = _served(self.all)

    async def start(self, *, asks_providers: bool = True) -> None:
        """Start all plugins, at once; those that are not ready are held and started when they are first needed.

        asks_providers: False where nobody asks the AI, whose models need not be loaded then. ConfigurationError when a
        plugin that was selected cannot be started.
        """
        asked = self._asked if asks_providers else ()
        storages = (storing.storage for storing in self.storages.all)
        starting = [start(plugin) for plugin in (*asked, *storages, *self.notifiers.all, *self._hooked.plugins)]
        for fault in await asyncio.gather(*starting):
            if fault is not None:
                raise fault

    @property
    def all(self) -> tuple[BoundPlugin, ...]:
        """Every plugin in use."""
        storages = (storing.storage for storing in self.storages.all)
        return (*self._asked, *storages, *self.notifiers.all, *self._hooked.plugins)

    @property
    def sees(self) -> Mapping[str, str]:
        """What each AI provider says it can and cannot see, by its name; "" where it says nothing."""
        return {provider.name: provider.sees for provider in self._asked}

    async def open_storages(self, names: Iterable[str]) -> None:
        """Get these storages ready, beside the current one; `storages.missing` tells which cannot be had."""
        await self.storages.open_storages(names)

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: ReadImage,
        tries: str = "",
        listener: AnalysisListener = NO_WITNESS,
        permit: Permit = NO_LIMITS,
        only: str = "",
    ) -> Analysis:
        """Return the checked result of the category's first provider that has one, as the filters leave it.

        What a provider raises becomes a RetryableJobError or PermanentJobError. Arguments: see Providers.analyze.
        """
        self._hooked.check_transforming()
        analysis = await self._providers.analyze(request, read_image, tries, listener, permit, only)
        return await self._hooked.transform_analysis(analysis, request)

    @property
    def backends(self) -> Sequence[str]:
        """The names of the storages in use, the current one first."""
        return self.storages.backends

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> SavedImage:
        """Store the image in the current storage; DependencyUnavailable, or the storage's own PipelineError."""
        return await self.storages.save(public_id, file, content_type)

    async def choose_storage(self, name: str) -> None:
        """Save new images there from now on; DependencyUnavailable when that storage cannot be had."""
        await self.storages.choose(name)

    async def read(self, name: ImageName) -> bytes:
        """Return the bytes of the stored image; FileNotFoundError when there is none."""
        return await self.storages.read(name)

    async def delete(self, name: ImageName) -> None:
        """Remove the image if it is there."""
        await self.storages.delete(name)

    async def urls(self, names: Collection[ImageName], seconds: int) -> Mapping[ImageName, str]:
        """Return the URLs of those images whose storage makes any and answers."""
        return await self.storages.urls(names, seconds)

    async def makes_urls(self, backend: str) -> bool:
        """Return whether that storage makes URLs when asked."""
        return await self.storages.makes_urls(backend)

    async def can_list(self, backend: str) -> bool:
        """Return whether list_images may be called: it is optional for a storage."""
        return await self.storages.can_list(backend)

    def list_images(self, backend: str, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        """Return the stored images whose public_id begins with the prefix, in parts of at most so many."""
        return self.storages.list_images(backend, prefix, at_once)

    async def check_sandbox(self) -> None:
        """Return unless the child processes that read photos do not start; DependencyUnavailable then."""
        if self.sandbox is not None:
            await self.sandbox.check()

    def observe(self, hook: str, event: JobEvent) -> None:
        """Let the observers know; returns at once."""
        self._hooked.observe(hook, event)

    @property
    def has_upload_filters(self) -> bool:
        """True when some plugin wants to see uploads."""
        return self._hooked.has_upload_filters

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else its ValidationError."""
        await self._hooked.validate_upload(upload)

    async def close(self) -> None:
        """Close the plugins and leave their threads, also the stuck ones, behind."""
        called = (*self._asked, *self.notifiers.all)
        closing = (self._hooked.close(), self.storages.close(), *(plugin.close() for plugin in called))
        await asyncio.gather(*closing)
        if self._contexts is not None:
            await self._contexts.close()
        if self.sandbox is not None:
            await self.sandbox.close()


def build_plugins(
    settings: Settings,
    metrics: Metrics,
    rooms: RoomPublisher,
    tracing: Tracing = OFF,
    inspect: Inspect | None = None,
    values: Callable[[str], PluginStore] = lambda name: MemoryValues(),
) -> PluginManager:
    """Return the plugins the settings select, ready to be started; ConfigurationError when one is missing or cannot be
    made. values: returns where the plugin of that name keeps values.
    """
    catalogue = Catalogue(settings)
    catalogue.check_names()
    catalogue.tell()
    return assemble(catalogue, settings, metrics, rooms, tracing, inspect, values)


def assemble(
    catalogue: Catalogue,
    settings: Settings,
    metrics: Metrics,
    rooms: RoomPublisher,
    tracing: Tracing = OFF,
    inspect: Inspect | None = None,
    values: Callable[[str], PluginStore] = lambda name: MemoryValues(),
) -> PluginManager:
    """Return those plugins of the catalogue that the settings select, ready to be started."""
    contexts = ContextFactory(settings, metrics, values)
    hooks = catalogue.build_hooks(metrics, contexts)
    _check_required(catalogue, settings, hooks)

    def stored_in(name: str) -> Storing:
        return Storing(catalogue.build(STORAGE, name, metrics, contexts), settings.storage_timeout_seconds, tracing)

    return PluginManager(
        settings,
        rooms,
        providers={name: catalogue.build(PROVIDER, name, metrics, contexts) for name in catalogue.selected[PROVIDER]},
        storages=Storages(stored_in(settings.storage_name), stored_in),
        notifiers=[catalogue.build(NOTIFIER, name, metrics, contexts) for name in catalogue.selected[NOTIFIER]],
        hooks=hooks,
        tracing=tracing,
        sandbox=catalogue.sandbox,
        inspect=inspect,
        contexts=contexts,
        usage=UsageCounts(metrics, catalogue.selected[PROVIDER]),
        broken=catalogue.broken,
    )


def _served(plugins: Iterable[BoundPlugin]) -> Mapping[str, Sequence[tuple[BoundPlugin, Route]]]:
    """Return what the plugins serve, by their names: a provider and a notifier of one name share theirs."""
    served: dict[str, list[tuple[BoundPlugin, Route]]] = {}
    for plugin in plugins:
        there = served.setdefault(plugin.name, []) if plugin.routes else []
        for route in plugin.routes:
            if any(route.is_like(other) for _, other in there):
                raise ConfigurationError(f"two plugins {plugin.name!r} have the route {route.method} {route.path}")
            there.append((plugin, route))
    return served


def _check_required(catalogue: Catalogue, settings: Settings, hooks: Sequence[BoundPlugin]) -> None:
    """ConfigurationError when a filter that is required is not in use."""
    names = [each.name for each in hooks if set(each.methods) & set(FILTERS)]
    for name in settings.filters_required:
        fault = next((info.reason for info in catalogue.broken if info.name == name), "")
        if name not in names and fault:
            raise ConfigurationError(f"FILTERS_REQUIRED: the plugin {name!r} is broken: {fault}")
        if name not in names:
            there = f"in use: {', '.join(names) or 'none'}{nearest(name, names)}"
            raise ConfigurationError(f"FILTERS_REQUIRED: no filter {name!r} is in use; {there}")
