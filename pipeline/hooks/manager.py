"""Calls the plugins in use for the use cases: providers in chains, one storage, notifiers, observers and filters.

What there is and what is selected: catalogue.py; how one is called: calls.py. A manager belongs to the app that built
it: two in one process know nothing of each other. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import structlog

from pipeline.errors import PermanentJobError
from pipeline.hooks import faults
from pipeline.hooks.breaker import SharedBreakers
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.catalogue import NOTIFIER, PROVIDER, STORAGE, Catalogue
from pipeline.hooks.hooked import Hooked
from pipeline.hooks.pictures import Inspect, Pictures
from pipeline.hooks.protocols import (
    Analysis,
    AnalyzeRequest,
    JobEvent,
    Notification,
    RoomPublisher,
    StoredImage,
    UploadFacts,
)
from pipeline.hooks.providers import Providers, ReadImage, Witness
from pipeline.hooks.storages import MediaFolder, Storages
from pipeline.hooks.storing import Storing
from pipeline.images import ImageName, SavedImage
from pipeline.texts import cause_of
from pipeline.tracing import OFF, Tracing

if TYPE_CHECKING:
    from pipeline.metrics import Metrics
    from pipeline.sandbox.sandbox import Sandbox
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)


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
        hooks: Sequence[BoundPlugin] = (),
        tracing: Tracing = OFF,
        sandbox: Sandbox | None = None,
        inspect: Inspect | None = None,
    ) -> None:
        """providers: by name, all that settings.all_providers names. storages: the current one, and how to have others.
        sandbox: where plugins work, closed with them. inspect: looks at the bytes of the images that plugins made.
        """
        pictures = Pictures(settings, inspect)
        self._settings = settings
        self._rooms = rooms
        self._providers = Providers(settings, providers, tracing, pictures)
        self._asked = tuple(providers.values())
        self.storages = storages
        self._notifiers = {notifier.name: notifier for notifier in notifiers}
        durable = {name: self._notifiers[name].breaker("notify") for name in self.durable}
        self.notifier_holds = SharedBreakers(durable, {name: (name,) for name in durable})
        self._hooked = Hooked(hooks, settings, pictures)
        self._tracing = tracing
        self.sandbox = sandbox

    @property
    def all(self) -> tuple[BoundPlugin, ...]:
        """Every plugin in use."""
        storages = (storing.storage for storing in self.storages.all)
        return (*self._asked, *storages, *self._notifiers.values(), *self._hooked.plugins)

    async def media_folders(self) -> Sequence[MediaFolder]:
        """Return the folders to serve under /media."""
        return await self.storages.media_folders()

    async def open_storages(self, names: Iterable[str]) -> None:
        """Get these storages ready, beside the current one; `missing_storages` tells which cannot be had."""
        await self.storages.open_storages(names)

    @property
    def missing_storages(self) -> Mapping[str, str]:
        """Why those storages cannot be had that hold images, by name."""
        return self.storages.missing

    @property
    def provider_holds(self) -> SharedBreakers:
        """Which AI providers are not asked for now, and which of them the jobs of each category may ask."""
        return self._providers.holds

    async def analyze(
        self, request: AnalyzeRequest, read_image: ReadImage, tries: str = "", witness: Witness | None = None
    ) -> Analysis:
        """Return the checked result of the category's first provider that has one, as the filters leave it.

        What a provider raises becomes a RetryableJobError or PermanentJobError. Arguments: see Providers.analyze.
        """
        analysis = await self._providers.analyze(request, read_image, tries, witness)
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

    async def check_storage(self) -> None:
        """Return when the storage is usable; DependencyUnavailable otherwise."""
        await self.storages.current.check()

    async def check_sandbox(self) -> None:
        """Return unless the child processes that read photos do not start; DependencyUnavailable then."""
        if self.sandbox is not None:
            await self.sandbox.check()

    @property
    def durable(self) -> tuple[str, ...]:
        """The names of the notifiers whose events are to be jobs, for `deliver`."""
        return tuple(name for name, each in self._notifiers.items() if getattr(each.plugin, "durable", False))

    async def notify(self, event: Mapping[str, Any], user_id: str) -> None:
        """Hand the event to every notifier that is not durable, all at once; return when each has delivered, failed or
        used up its time.

        A failure is logged and counted, never raised; a notifier that fails in a row is held for a while.
        """
        durable = self.durable
        told = [each for name, each in self._notifiers.items() if name not in durable]
        await asyncio.gather(*(self._notify(notifier, event, user_id) for notifier in told))

    async def deliver(
        self,
        name: str,
        event: Mapping[str, Any],
        user_id: str,
        delivery_id: str,
        trace_context: str = "",
        tries: str = "",
    ) -> None:
        """Hand the event to that durable notifier; RetryableJobError or PermanentJobError when it is not delivered.

        tries: the held notifier that is to be called all the same.
        """
        notifier = self._notifiers.get(name)
        if notifier is None:
            raise PermanentJobError(f"The notifier {name!r} is not in use any more")
        breaker = notifier.breaker("notify")
        if name == tries:
            breaker.tries()
        elif not notifier.lets_through("notify"):
            raise faults.held(name, breaker)
        try:
            with self._tracing.call(notifier.kind, name, "notify") as span:
                context = span.trace_context or trace_context
                notification = Notification(event, user_id, self._rooms, delivery_id, context)
                await notifier.call("notify", self._settings.notifier_timeout_seconds, notification)
        except Exception as raised:
            error = faults.job_error(raised, name, "Receiver")
            log.warning("notifier_failed", plugin=name, error=error.message, cause=cause_of(raised), exc_info=True)
            faults.note(breaker, error, raised, counts=True)
            if error is raised:
                raise
            raise error from raised
        breaker.answered()

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
        called = (*self._asked, *self._notifiers.values())
        closing = (self._hooked.close(), self.storages.close(), *(plugin.close() for plugin in called))
        await asyncio.gather(*closing)
        if self.sandbox is not None:
            await self.sandbox.close()

    async def _notify(self, notifier: BoundPlugin, event: Mapping[str, Any], user_id: str) -> None:
        breaker = notifier.breaker("notify")
        if not notifier.lets_through("notify"):
            return
        try:
            with self._tracing.call(notifier.kind, notifier.name, "notify") as span:
                # A copy each: what one does to its event must not reach another.
                copied = copy.deepcopy(event)
                notification = Notification(copied, user_id, self._rooms, trace_context=span.trace_context)
                await notifier.call("notify", self._settings.notifier_timeout_seconds, notification)
        except Exception as raised:
            names = {"plugin": notifier.name, "assetId": event.get("assetId")}
            log.error("notifier_failed", cause=cause_of(raised), exc_info=True, **names)
            faults.note(breaker, faults.job_error(raised, notifier.name, "Receiver"), raised, counts=True)
        else:
            breaker.answered()


def build_plugins(
    settings: Settings,
    metrics: Metrics,
    rooms: RoomPublisher,
    tracing: Tracing = OFF,
    inspect: Inspect | None = None,
) -> PluginManager:
    """Return the plugins the settings select, ready to use; ConfigurationError when one is missing or cannot start."""
    catalogue = Catalogue(settings)
    catalogue.check_variables()
    return assemble(catalogue, settings, metrics, rooms, tracing, inspect)


def assemble(
    catalogue: Catalogue,
    settings: Settings,
    metrics: Metrics,
    rooms: RoomPublisher,
    tracing: Tracing = OFF,
    inspect: Inspect | None = None,
) -> PluginManager:
    """Return those plugins of the catalogue that the settings select, ready to use."""

    def stored_in(name: str) -> Storing:
        return Storing(catalogue.build(STORAGE, name, metrics), settings.storage_timeout_seconds, tracing)

    return PluginManager(
        settings,
        rooms,
        providers={name: catalogue.build(PROVIDER, name, metrics) for name in catalogue.selected[PROVIDER]},
        storages=Storages(stored_in(settings.storage_name), stored_in),
        notifiers=[catalogue.build(NOTIFIER, name, metrics) for name in catalogue.selected[NOTIFIER]],
        hooks=catalogue.build_hooks(metrics),
        tracing=tracing,
        sandbox=catalogue.sandbox,
        inspect=inspect,
    )
