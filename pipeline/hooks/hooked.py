"""Calls observers and filters: the hooks that plugins implement beside providers, storages and notifiers.

Observers get their events from a queue of their own, one by one and in order, so that none delays a job or another
observer. Filters are asked where an upload or a result waits for them, one after the other. A hook of a plugin that
fails in a row is held for a while, and no other hook of that plugin with it. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from pipeline.errors import ValidationError
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.catalogue import FILTERS, OBSERVERS
from pipeline.hooks.checks import cleaned, extra_fault, provenance_fault, result_fault
from pipeline.hooks.pictures import Pictures
from pipeline.hooks.protocols import Analysis, AnalyzeRequest, JobEvent, UploadFacts
from pipeline.texts import cause_of

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)

# Minutes of a busy process; what an observer cannot keep up with must not fill the memory.
EVENTS_AT_MOST = 1000
# How long observers may take at the end for what they have not seen yet.
CLOSE_SECONDS = 2.0


class Hooked:
    """The plugins that observe or filter."""

    def __init__(
        self, plugins: Sequence[BoundPlugin], settings: Settings, pictures: Pictures | None = None
    ) -> None:
        """pictures: judges the images that filters hand back."""
        self._settings = settings
        self._pictures = pictures or Pictures(settings)
        self._seconds = settings.hook_timeout_seconds
        self.plugins = tuple(plugins)
        self._filters = {hook: [each for each in plugins if hook in each.methods] for hook in FILTERS}
        self._observers = [_Observer(each, settings) for each in plugins if set(each.methods) & set(OBSERVERS)]

    def observe(self, hook: str, event: JobEvent) -> None:
        """Let every observer have the event soon."""
        for observer in self._observers:
            observer.put(hook, event)

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else its ValidationError."""
        for plugin in self._filters["validate_upload"]:
            if not plugin.lets_through("validate_upload"):
                continue
            try:
                await plugin.call("validate_upload", self._seconds, upload, self._settings)
            except ValidationError:
                plugin.breaker("validate_upload").answered()
                raise
            except Exception as error:
                _failed(plugin, "validate_upload", error)
            else:
                plugin.breaker("validate_upload").answered()

    async def transform_analysis(self, analysis: Analysis, request: AnalyzeRequest) -> Analysis:
        """Return the analysis as the filters leave it."""
        if self._filters["transform_analysis"]:
            request = replace(request, image=None)
        for plugin in self._filters["transform_analysis"]:
            if not plugin.lets_through("transform_analysis"):
                continue
            try:
                changed = await plugin.call("transform_analysis", self._seconds, analysis, request, self._settings)
                if changed is not None:
                    if fault := result_fault(changed) or extra_fault(changed.extra) or provenance_fault(changed):
                        raise ValueError(fault)
                    changed = await self._pictures.checked(changed)
            except Exception as error:
                _failed(plugin, "transform_analysis", error)
            else:
                plugin.breaker("transform_analysis").answered()
                analysis = analysis if changed is None else cleaned(changed)
        return analysis

    @property
    def has_upload_filters(self) -> bool:
        """True when somebody wants to see uploads."""
        return bool(self._filters["validate_upload"])

    async def close(self) -> None:
        """Let the observers finish, for a while, and close the plugins."""
        await asyncio.gather(*(observer.close() for observer in self._observers))
        await asyncio.gather(*(plugin.close() for plugin in self.plugins))


class _Observer:
    """One plugin and the events it has yet to see."""

    def __init__(self, plugin: BoundPlugin, settings: Settings) -> None:
        self._plugin = plugin
        self._settings = settings
        self._events: asyncio.Queue[tuple[str, JobEvent]] = asyncio.Queue(EVENTS_AT_MOST)
        self._task: asyncio.Task[None] | None = None

    def put(self, hook: str, event: JobEvent) -> None:
        if hook not in self._plugin.methods:
            return
        if self._task is None:
            # In a context of its own: that of the first event would put its job's names on every line that follows.
            run, name = self._run(), f"observer {self._plugin.name}"
            self._task = asyncio.create_task(run, name=name, context=Context())
        try:
            self._events.put_nowait((hook, event))
        except asyncio.QueueFull:
            self._plugin.skip(hook)

    async def close(self) -> None:
        if self._task is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._events.join()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            hook, event = await self._events.get()
            names = {"jobId": event.job_id, "assetId": event.asset_id, "requestId": event.request_id}
            with structlog.contextvars.bound_contextvars(**names):
                await self._tell(hook, event)
            self._events.task_done()

    async def _tell(self, hook: str, event: JobEvent) -> None:
        if not self._plugin.lets_through(hook):
            return
        try:
            await self._plugin.call(hook, self._settings.hook_timeout_seconds, event, self._settings)
        except Exception as error:
            _failed(self._plugin, hook, error)
        else:
            self._plugin.breaker(hook).answered()


def _failed(plugin: BoundPlugin, hook: str, error: Exception) -> None:
    log.warning("hook_failed", plugin=plugin.name, hook=hook, exc_info=True)
    plugin.breaker(hook).failed("The hook failed", cause_of(error))
