"""Calls observers and filters: the hooks that plugins implement beside providers, storages and notifiers.

Each observer has a queue and gets its events one by one and in order, so that it delays neither a job nor another
observer. Filters are called one after the other while the upload or the result waits. A hook that fails several times
in a row is held for a while; the other hooks of the plugin are not. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from pipeline.errors import DependencyUnavailable, ValidationError
from pipeline.hooks import faults
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.checks import cleaned, extra_fault, provenance_fault, result_fault
from pipeline.hooks.kinds import FILTERS, OBSERVERS, TRANSFORM, VALIDATE
from pipeline.hooks.processed_images import ProcessedImages
from pipeline.hooks.hook_arguments import JobEvent, UploadFacts
from pipeline.hooks.provider_protocol import Analysis, AnalyzeRequest

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)

# Some minutes of a busy process; the backlog of a slow observer must not fill the memory.
EVENTS_AT_MOST = 1000
# How long observers may take for their remaining events when the service ends.
CLOSE_SECONDS = 2.0


class HookCalls:
    """Calls the plugins with observers or filters."""

    def __init__(
        self, plugins: Sequence[BoundPlugin], settings: Settings, pictures: ProcessedImages | None = None
    ) -> None:
        """pictures: checks the images that filters return."""
        self._settings = settings
        self._pictures = pictures or ProcessedImages(settings)
        self._seconds = settings.hook_timeout_seconds
        self._required = frozenset(settings.filters_required)
        self.plugins = tuple(plugins)
        self._filters = {hook: [plugin for plugin in plugins if hook in plugin.methods] for hook in FILTERS}
        observing = [plugin for plugin in plugins if set(plugin.methods) & set(OBSERVERS)]
        self._observers = [_Observer(plugin, settings) for plugin in observing]

    def observe(self, hook: str, event: JobEvent) -> None:
        """Queue the event for every observer."""
        for observer in self._observers:
            observer.put(hook, event)

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else raise its ValidationError.

        DependencyUnavailable while a required filter cannot decide.
        """
        for plugin in self._filters[VALIDATE]:
            with self._answering(plugin, VALIDATE) as is_asked:
                if is_asked:
                    answer = await plugin.call(
                        VALIDATE, self._seconds, upload, self._settings, answers_by=ValidationError
                    )
                    if answer is not None:
                        raise WrongAnswer(f"{VALIDATE} returned {answer!r}; to refuse, raise ValidationError")

    async def transform_analysis(self, analysis: Analysis, request: AnalyzeRequest) -> Analysis:
        """Return the analysis after all filters; DependencyUnavailable while a required filter cannot decide."""
        if self._filters[TRANSFORM]:
            request = replace(request, image=None)
        for plugin in self._filters[TRANSFORM]:
            with self._answering(plugin, TRANSFORM) as is_asked:
                if is_asked:
                    changed = await plugin.call(TRANSFORM, self._seconds, analysis, request, self._settings)
                    analysis = analysis if changed is None else await self._checked(changed)
        return analysis

    def check_transforming(self) -> None:
        """Raise DependencyUnavailable while a required filter of results is held: the AI would be asked for nothing."""
        for plugin in self._filters[TRANSFORM]:
            if plugin.name in self._required and plugin.breaker(TRANSFORM).left_seconds > 0:
                raise _unanswered(plugin, TRANSFORM)

    @contextmanager
    def _answering(self, plugin: BoundPlugin, hook: str) -> Iterator[bool]:
        """Yield whether the filter is to be called, and record the outcome. A failure is raised only if the filter is
        required.
        """
        is_required = plugin.name in self._required
        if not plugin.lets_through(hook):
            if is_required:
                raise _unanswered(plugin, hook)
            yield False
            return
        try:
            yield True
        except Exception as error:
            if hook == VALIDATE and isinstance(error, ValidationError):
                plugin.breaker(hook).answered()
                raise
            _failed(plugin, hook, error)
            if is_required:
                raise _unanswered(plugin, hook) from error
        else:
            plugin.breaker(hook).answered()

    async def _checked(self, changed: Analysis) -> Analysis:
        if fault := result_fault(changed, TRANSFORM) or extra_fault(changed.extra) or provenance_fault(changed):
            raise WrongAnswer(fault)
        try:
            return cleaned(await self._pictures.checked(changed))
        except ValueError as error:
            raise WrongAnswer(str(error)) from error

    @property
    def has_upload_filters(self) -> bool:
        """True when a plugin has a filter of uploads."""
        return bool(self._filters[VALIDATE])

    async def close(self) -> None:
        """Wait a short time for the observers to finish, and close the plugins."""
        await asyncio.gather(*(observer.close() for observer in self._observers))
        await asyncio.gather(*(plugin.close() for plugin in self.plugins))


class WrongAnswer(Exception):
    """A filter returned an invalid result; the text says why."""


class _Observer:
    """One plugin and the events that wait for it."""

    def __init__(self, plugin: BoundPlugin, settings: Settings) -> None:
        self._plugin = plugin
        self._settings = settings
        self._events: asyncio.Queue[tuple[str, JobEvent]] = asyncio.Queue(EVENTS_AT_MOST)
        self._task: asyncio.Task[None] | None = None

    def put(self, hook: str, event: JobEvent) -> None:
        if hook not in self._plugin.methods:
            return
        if self._task is None:
            # In a context of its own: otherwise all later log lines would carry the names of the first event's job.
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
                await self._deliver(hook, event)
            self._events.task_done()

    async def _deliver(self, hook: str, event: JobEvent) -> None:
        if not self._plugin.lets_through(hook):
            return
        try:
            await self._plugin.call(hook, self._settings.hook_timeout_seconds, event, self._settings)
        except Exception as error:
            _failed(self._plugin, hook, error)
        else:
            self._plugin.breaker(hook).answered()


def _unanswered(plugin: BoundPlugin, hook: str) -> DependencyUnavailable:
    """Return the error while a required filter cannot be called, with the time until it is called again."""
    subject = "Uploads" if hook == VALIDATE else "Results"
    seconds = plugin.breaker(hook).left_seconds or None
    return DependencyUnavailable(f"{subject} cannot be checked now", retry_after_seconds=seconds)


def _failed(plugin: BoundPlugin, hook: str, error: Exception) -> None:
    if isinstance(error, WrongAnswer):
        plugin.count_error(hook)
    log.warning("hook_failed", plugin=plugin.name, hook=hook, exc_info=True)
    faults.record_hook_failure(plugin.breaker(hook), error, plugin.name)
