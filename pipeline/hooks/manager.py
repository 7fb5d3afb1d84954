"""Calls the plugins in use for the use cases: providers in chains, one storage, notifiers, observers and filters.

What there is and what is selected: catalogue.py; how one is called: calls.py. A manager belongs to the app that built
it: two in one process know nothing of each other. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import structlog

from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError, PipelineError, RetryableJobError
from pipeline.hooks import protocols
from pipeline.hooks.calls import BoundPlugin, PluginOverrun
from pipeline.hooks.catalogue import NOTIFIER, PROVIDER, STORAGE, Catalogue
from pipeline.hooks.checks import find_fault, is_web_url
from pipeline.hooks.hooked import Hooked
from pipeline.hooks.protocols import (
    Analysis,
    AnalyzeRequest,
    JobEvent,
    Notification,
    RoomPublisher,
    StorageBackend,
    UploadFacts,
)
from pipeline.tracing import OFF, Tracing

if TYPE_CHECKING:
    from pipeline.metrics import Metrics
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)

ReadImage = Callable[[], Awaitable[bytes]]
# A provider that would have less time than this is not asked.
LEAST_SECONDS = 1.0


class PluginManager:
    """The providers, the storage, the notifiers and the hooks in use. Built by `build_plugins`; `close` when done."""

    def __init__(
        self,
        settings: Settings,
        rooms: RoomPublisher,
        *,
        providers: Mapping[str, BoundPlugin],
        storage: BoundPlugin,
        notifiers: Sequence[BoundPlugin],
        hooks: Sequence[BoundPlugin] = (),
        tracing: Tracing = OFF,
    ) -> None:
        """providers: by name, all that settings.all_providers names."""
        self._settings = settings
        self._rooms = rooms
        self._providers = providers
        by_category = settings.ai_provider_by_category
        self._chains = {category: tuple(dict.fromkeys(names)) for category, names in by_category.items()}
        # Only these are ever set aside: for another there is nobody to go to.
        self._replaceable = {name for chain in (settings.providers, *self._chains.values()) for name in chain[:-1]}
        self._storage = storage
        self._notifiers = {notifier.name: notifier for notifier in notifiers}
        # Why each durable notifier failed last: what a job is told that it was not even tried for.
        self._reasons: dict[str, str] = {}
        self._hooked = Hooked(hooks, settings)
        self._tracing = tracing

    @property
    def all(self) -> tuple[BoundPlugin, ...]:
        """Every plugin in use."""
        return (*self._providers.values(), self._storage, *self._notifiers.values(), *self._hooked.plugins)

    @property
    def media_root(self) -> Path | None:
        """The folder to serve under /media, or None."""
        return protocols.media_root(cast(StorageBackend, self._storage.plugin))

    async def analyze(self, request: AnalyzeRequest, read_image: ReadImage) -> Analysis:
        """Return the checked result of the category's first provider that has one, as the filters leave it.

        What a provider raises becomes a RetryableJobError or PermanentJobError. The next provider is asked when one
        refuses the image for good, is set aside, says how long it is busy, or fails at the job's last attempt.
        read_image: awaited once if a provider wants the photo's bytes; what it raises is passed on.
        """
        # Some time is left for keeping the result.
        deadline = asyncio.get_running_loop().time() + self._settings.job_timeout_seconds * 0.95
        names = self._chains.get(request.category, self._settings.providers)
        fault: JobError | None = None
        image: bytes | None = None
        for number, name in enumerate(names):
            provider, is_last = self._providers[name], number == len(names) - 1
            left = deadline - asyncio.get_running_loop().time()
            if fault is not None and left < LEAST_SECONDS:
                # Also after a refusal: the one who was not asked may take the photo.
                raise RetryableJobError("AI service timed out") from fault
            if not is_last and not provider.aside.lets_through():
                provider.skipped.inc()
                continue
            needs_image = getattr(provider.plugin, "needs_image", False)
            if needs_image and image is None:
                image = await read_image()
            try:
                seconds = min(self._settings.provider_timeout_seconds, left)
                with self._tracing.call(provider.kind, name, "analyze") as span:
                    context = span.trace_context or request.trace_context
                    shown = image if needs_image else None
                    asked = replace(request, timeout_seconds=seconds, image=shown, trace_context=context)
                    analysis = await self._ask(provider, asked)
            except (PermanentJobError, RetryableJobError) as error:
                fault = error
                if is_last or not self._goes_on(provider, error, request.attempt):
                    raise
                log.warning("provider_passed_over", plugin=name, next=names[number + 1], error=error.message)
            else:
                return await self._hooked.transform_analysis(analysis, request)
        raise AssertionError("the last provider of a chain is always asked")

    def _goes_on(self, provider: BoundPlugin, error: JobError, attempt: int) -> bool:
        """Return whether the next provider is to be asked after that error."""
        if isinstance(error, PermanentJobError):
            return True
        assert isinstance(error, RetryableJobError)
        attempts = min(self._settings.job_attempts, error.max_attempts or self._settings.job_attempts)
        return provider.aside.is_set or attempt >= attempts

    async def _ask(self, provider: BoundPlugin, request: AnalyzeRequest) -> Analysis:
        try:
            result = await provider.call("analyze", request.timeout_seconds, request)
            if fault := find_fault(result):
                raise RetryableJobError("AI service sent an invalid result", max_attempts=2) from ValueError(fault)
        except PermanentJobError:
            provider.aside.succeeded()  # it works, it is the image it does not take
            raise
        except Exception as error:
            if provider.name in self._replaceable:
                provider.aside.failed(getattr(error, "retry_after_seconds", None))
            if isinstance(error, JobError):
                raise
            text = "AI service timed out" if isinstance(error, PluginOverrun) else "AI service failed"
            raise RetryableJobError(text) from error
        provider.aside.succeeded()
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

    @property
    def durable(self) -> tuple[str, ...]:
        """The names of the notifiers whose events are to be jobs, for `deliver`."""
        return tuple(name for name, each in self._notifiers.items() if getattr(each.plugin, "durable", False))

    async def notify(self, event: Mapping[str, Any], user_id: str) -> None:
        """Hand the event to every notifier that is not durable, all at once; return when each has delivered, failed or
        used up its time.

        A failure is logged and counted, never raised; a notifier that fails in a row is set aside for a while.
        """
        durable = self.durable
        told = [each for name, each in self._notifiers.items() if name not in durable]
        await asyncio.gather(*(self._notify(notifier, event, user_id) for notifier in told))

    async def deliver(
        self, name: str, event: Mapping[str, Any], user_id: str, delivery_id: str, trace_context: str = ""
    ) -> None:
        """Hand the event to that durable notifier; RetryableJobError or PermanentJobError when it is not delivered."""
        notifier = self._notifiers.get(name)
        if notifier is None:
            raise PermanentJobError(f"The notifier {name!r} is not in use any more")
        if not notifier.aside.lets_through():
            # A receiver that hangs must not hold the slots that the events of other notifiers wait for.
            notifier.skipped.inc()
            raise RetryableJobError(self._reasons[name])
        try:
            with self._tracing.call(notifier.kind, name, "notify") as span:
                context = span.trace_context or trace_context
                notification = Notification(event, user_id, self._rooms, delivery_id, context)
                await notifier.call("notify", self._settings.notifier_timeout_seconds, notification)
            notifier.aside.succeeded()
        except PermanentJobError:
            raise
        except Exception as error:
            notifier.aside.failed()
            # Not the error itself: one that says how long to wait would hold the notifications of all notifiers.
            self._reasons[name] = error.message if isinstance(error, JobError) else "Not delivered"
            raise RetryableJobError(self._reasons[name]) from error

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
        called = (*self._providers.values(), self._storage, *self._notifiers.values())
        await asyncio.gather(self._hooked.close(), *(plugin.close() for plugin in called))

    async def _call_storage(self, method: str, *args: Any) -> Any:
        try:
            with self._tracing.call(self._storage.kind, self._storage.name, method):
                return await self._storage.call(method, self._settings.storage_timeout_seconds, *args)
        except PipelineError:
            raise
        except Exception as error:
            if method == "open" and isinstance(error, FileNotFoundError):
                raise
            raise DependencyUnavailable("Image storage unavailable") from error

    async def _notify(self, notifier: BoundPlugin, event: Mapping[str, Any], user_id: str) -> None:
        if not notifier.aside.lets_through():
            notifier.skipped.inc()
            return
        try:
            with self._tracing.call(notifier.kind, notifier.name, "notify") as span:
                # A copy each: what one does to its event must not reach another.
                copied = copy.deepcopy(event)
                notification = Notification(copied, user_id, self._rooms, trace_context=span.trace_context)
                await notifier.call("notify", self._settings.notifier_timeout_seconds, notification)
        except Exception:
            log.error("notifier_failed", plugin=notifier.name, assetId=event.get("assetId"), exc_info=True)
            notifier.aside.failed()
        else:
            notifier.aside.succeeded()


def build_plugins(
    settings: Settings,
    metrics: Metrics,
    rooms: RoomPublisher,
    categories: Sequence[str] = (),
    tracing: Tracing = OFF,
) -> PluginManager:
    """Return the plugins the settings select, ready to use; ConfigurationError when one is missing or cannot start.

    categories: those that AI_PROVIDER_BY_CATEGORY may name.
    """
    catalogue = Catalogue(settings)
    catalogue.check_categories(categories)
    catalogue.check_variables()
    return assemble(catalogue, settings, metrics, rooms, tracing)


def assemble(
    catalogue: Catalogue, settings: Settings, metrics: Metrics, rooms: RoomPublisher, tracing: Tracing = OFF
) -> PluginManager:
    """Return those plugins of the catalogue that the settings select, ready to use."""
    return PluginManager(
        settings,
        rooms,
        providers={name: catalogue.build(PROVIDER, name, metrics) for name in catalogue.selected[PROVIDER]},
        storage=catalogue.build(STORAGE, settings.storage_name, metrics),
        notifiers=[catalogue.build(NOTIFIER, name, metrics) for name in catalogue.selected[NOTIFIER]],
        hooks=catalogue.build_hooks(metrics),
        tracing=tracing,
    )
