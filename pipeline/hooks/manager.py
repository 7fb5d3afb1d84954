"""Calls the plugins in use for the use cases: providers in cascades, one storage, notifiers, observers and filters.

catalogue.py finds and selects the plugins; bound_plugin.py calls one of them. A manager belongs to the app that built
it: two managers in one process share nothing. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import ConfigurationError
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.context import ContextFactory
from pipeline.hooks.hook_calls import HookCalls
from pipeline.hooks.job_protocols import NO_LIMITS, NO_LISTENER, Permit, AnalysisListener
from pipeline.hooks.kinds import FILTERS, NOTIFIER, PROVIDER, STORAGE
from pipeline.hooks.context_api import PluginStore
from pipeline.hooks.limits import sees_of
from pipeline.hooks.listing import PluginInfo
from pipeline.hooks.load_checks import nearest
from pipeline.hooks.notifiers import Notifiers
from pipeline.hooks.photo import ReadImage
from pipeline.hooks.processed_images import Inspect, ProcessedImages
from pipeline.hooks.hook_arguments import JobEvent, UploadFacts
from pipeline.hooks.notifier_protocol import RoomPublisher
from pipeline.hooks.provider_protocol import Analysis, AnalyzeRequest
from pipeline.hooks.storage_protocol import StoredImage
from pipeline.hooks.providers import Providers
from pipeline.hooks.routes import Route
from pipeline.hooks.plugin_start import start
from pipeline.hooks.storages import Storages
from pipeline.hooks.storage_calls import StorageCalls
from pipeline.hooks.usage import UsageCounters
from pipeline.hooks.values import MemoryValues
from pipeline.images import ImageName, SavedImage
from pipeline.tracing import OFF, Tracing

if TYPE_CHECKING:
    from pipeline.metrics import Metrics
    from pipeline.sandbox.sandbox import Sandbox
    from pipeline.settings import Settings


# Many methods because it is the one interface of all kinds of plugins for the use cases; each passes a call on.
class PluginManager:
    """The providers, the storages, the notifiers and the hooks in use. Built by `build_plugins`; `close` at the end."""

    def __init__(
        self,
        settings: Settings,
        rooms: RoomPublisher,
        *,
        providers: Mapping[str, BoundPlugin],
        storages: Storages,
        notifiers: Sequence[BoundPlugin],
        usage: UsageCounters,
        hooks: Sequence[BoundPlugin] = (),
        tracing: Tracing = OFF,
        sandbox: Sandbox | None = None,
        inspect: Inspect | None = None,
        contexts: ContextFactory | None = None,
        broken: Sequence[PluginInfo] = (),
    ) -> None:
        """providers: by name, all that settings.all_providers names.
        storages: the current one; it builds the others.
        usage: counts calls, tokens and money of the AI.
        sandbox: runs the work of plugins; closed with them.
        inspect: checks the bytes of the images that plugins made.
        broken: plugins that cannot be used, for the list of plugins.
        """
        self._provider_plugins = tuple(providers.values())
        pictures = ProcessedImages(settings, inspect)
        self._providers = Providers(settings, providers, tracing, pictures, sandbox, usage)
        # The breakers of the AI providers, and the providers that the jobs of each lane may ask.
        self.provider_holds = self._providers.holds
        # The rate and calls at once of the providers that declare such limits, by name.
        self.provider_paces = self._providers.paces
        self.free_providers, self.provider_versions = self._providers.free, self._providers.versions
        # The providers that the jobs of each category ask only after another one has answered.
        self.later_providers = self._providers.later_providers
        self.storages = storages
        self.notifiers = Notifiers(notifiers, rooms, settings.notifier_timeout_seconds, tracing)
        self._hook_calls = HookCalls(hooks, settings, pictures)
        self.sandbox, self._contexts, self.usage, self.broken = sandbox, contexts, usage, broken
        # By the plugin's name. Storages that are built later have no routes.
        self.routes = _routes_by_name(self.all)

    async def start(self, *, asks_providers: bool = True) -> None:
        """Start all plugins at the same time. A plugin that is not ready is held and started when it is first needed.

        asks_providers: False in a process that does not ask the AI: then the models need not be loaded.
        ConfigurationError when a selected plugin cannot be started.
        """
        providers = self._provider_plugins if asks_providers else ()
        storages = (calls.storage for calls in self.storages.all)
        plugins = (*providers, *storages, *self.notifiers.all, *self._hook_calls.plugins)
        for fault in await asyncio.gather(*map(start, plugins)):
            if fault is not None:
                raise fault

    @property
    def all(self) -> tuple[BoundPlugin, ...]:
        """Every plugin in use."""
        storages = (calls.storage for calls in self.storages.all)
        return (*self._provider_plugins, *storages, *self.notifiers.all, *self._hook_calls.plugins)

    @property
    def sees(self) -> Mapping[str, str]:
        """What each AI provider declares that it can and cannot see, by its name."""
        return {provider.name: sees_of(provider.plugin) for provider in self._provider_plugins}

    async def open_storages(self, names: Iterable[str]) -> None:
        """Build these storages beside the current one; `storages.missing` lists those that cannot be built."""
        await self.storages.open_storages(names)

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: ReadImage,
        tries: str = "",
        listener: AnalysisListener = NO_LISTENER,
        permit: Permit = NO_LIMITS,
        only: str = "",
    ) -> Analysis:
        """Return the checked result of the category's first provider that has one, after all filters.

        An exception of a provider becomes a RetryableJobError or PermanentJobError. Arguments: see Providers.analyze.
        """
        self._hook_calls.check_transforming()
        analysis = await self._providers.analyze(request, read_image, tries, listener, permit, only)
        return await self._hook_calls.transform_analysis(analysis, request)

    @property
    def backends(self) -> Sequence[str]:
        """The names of the storages in use, the current one first."""
        return self.storages.backends

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> SavedImage:
        """Store the image in the current storage; DependencyUnavailable, or the storage's own PipelineError."""
        return await self.storages.save(public_id, file, content_type)

    async def choose_storage(self, name: str) -> None:
        """Save new images in that storage from now on; DependencyUnavailable when it cannot be built or reached."""
        await self.storages.choose(name)

    async def read(self, name: ImageName) -> bytes:
        """Return the bytes of the stored image; FileNotFoundError when there is none."""
        return await self.storages.read(name)

    async def delete(self, name: ImageName) -> None:
        """Remove the image if it is there."""
        await self.storages.delete(name)

    async def urls(self, names: Collection[ImageName], seconds: int) -> Mapping[ImageName, str]:
        """Return the URLs of the images whose storage makes URLs and answers."""
        return await self.storages.urls(names, seconds)

    async def makes_urls(self, backend: str) -> bool:
        """Return whether that storage makes URLs when asked."""
        return await self.storages.makes_urls(backend)

    async def can_list(self, backend: str) -> bool:
        """Return whether list_images may be called: it is optional for a storage."""
        return await self.storages.can_list(backend)

    def list_images(self, backend: str, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        """Return the stored images whose public_id begins with the prefix, at most `at_once` in each part."""
        return self.storages.list_images(backend, prefix, at_once)

    async def check_sandbox(self) -> None:
        """Return when the child processes that read photos can start; DependencyUnavailable otherwise."""
        if self.sandbox is not None:
            await self.sandbox.check()

    def observe(self, hook: str, event: JobEvent) -> None:
        """Queue the event for the observers; returns at once."""
        self._hook_calls.observe(hook, event)

    @property
    def has_upload_filters(self) -> bool:
        """True when a plugin has a filter of uploads."""
        return self._hook_calls.has_upload_filters

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else raise its ValidationError."""
        await self._hook_calls.validate_upload(upload)

    async def close(self) -> None:
        """Close the plugins and leave their threads behind, also the stuck ones."""
        closing = [plugin.close() for plugin in (*self._provider_plugins, *self.notifiers.all)]
        await asyncio.gather(self._hook_calls.close(), self.storages.close(), *closing)
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
    """Return the plugins that the settings select, ready to be started; ConfigurationError when one is missing or
    cannot be built.

    values: returns the PluginStore of the plugin of that name.
    """
    catalogue = Catalogue(settings)
    catalogue.check_names()
    catalogue.log_faults()
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
    """Return the plugins of the catalogue that the settings select, ready to be started."""
    contexts = ContextFactory(settings, metrics, values)
    hooks = catalogue.build_hooks(metrics, contexts)
    _check_required(catalogue, settings, hooks)

    def build_storage(name: str) -> StorageCalls:
        storage = catalogue.build(STORAGE, name, metrics, contexts)
        return StorageCalls(storage, settings.storage_timeout_seconds, tracing)

    return PluginManager(
        settings,
        rooms,
        providers={name: catalogue.build(PROVIDER, name, metrics, contexts) for name in catalogue.selected[PROVIDER]},
        storages=Storages(build_storage(settings.storage_name), build_storage),
        notifiers=[catalogue.build(NOTIFIER, name, metrics, contexts) for name in catalogue.selected[NOTIFIER]],
        hooks=hooks,
        tracing=tracing,
        sandbox=catalogue.sandbox,
        inspect=inspect,
        contexts=contexts,
        usage=UsageCounters(metrics, catalogue.selected[PROVIDER]),
        broken=catalogue.broken,
    )


def _routes_by_name(plugins: Iterable[BoundPlugin]) -> Mapping[str, Sequence[tuple[BoundPlugin, Route]]]:
    """Return the routes of the plugins by their names: a provider and a notifier of one name share theirs."""
    by_name: dict[str, list[tuple[BoundPlugin, Route]]] = {}
    for plugin in plugins:
        routes = by_name.setdefault(plugin.name, []) if plugin.routes else []
        for route in plugin.routes:
            if any(route.is_like(other) for _, other in routes):
                raise ConfigurationError(f"two plugins {plugin.name!r} have the route {route.method} {route.path}")
            routes.append((plugin, route))
    return by_name


def _check_required(catalogue: Catalogue, settings: Settings, hooks: Sequence[BoundPlugin]) -> None:
    """Raise ConfigurationError when a required filter is not in use."""
    names = [plugin.name for plugin in hooks if set(plugin.methods) & set(FILTERS)]
    for name in settings.filters_required:
        fault = next((info.reason for info in catalogue.broken if info.name == name), "")
        if name not in names and fault:
            raise ConfigurationError(f"FILTERS_REQUIRED: the plugin {name!r} is broken: {fault}")
        if name not in names:
            in_use = f"in use: {', '.join(names) or 'none'}{nearest(name, names)}"
            raise ConfigurationError(f"FILTERS_REQUIRED: no filter {name!r} is in use; {in_use}")
