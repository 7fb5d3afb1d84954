"""Calls observers and filters: the hooks that plugins implement beside providers, storages and notifiers.

Observers get their events from a queue of their own, one by one and in order, so that none delays a job or another
observer. Filters are asked where an upload or a result waits for them, one after the other. A hook of a plugin that
fails in a row is held for a while, and no other hook of that plugin with it. Runs on the event loop.
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

# Minutes of a busy process; what an observer cannot keep up with must not fill the memory.
EVENTS_AT_MOST = 1000
# How long observers may take at the end for what they have not seen yet.
CLOSE_SECONDS = 2.0


class HookCalls:
    """The plugins that observe or filter."""

    def __init__(
        self, plugins: Sequence[BoundPlugin], settings: Settings, pictures: ProcessedImages | None = None
    ) -> None:
        """pictures: judges the images that filters hand back."""
        self._settings = settings
        self._pictures = pictures or ProcessedImages(settings)
        self._seconds = settings.hook_timeout_seconds
        self._required = frozenset(settings.filters_required)
        self.plugins = tuple(plugins)
        self._filters = {hook: [each for each in plugins if hook in each.methods] for hook in FILTERS}
        self._observers = [_Observer(each, settings) for each in plugins if set(each.methods) & set(OBSERVERS)]

    def observe(self, hook: str, event: JobEvent) -> None:
        """Let every observer have the event soon."""
        for observer in self._observers:
            observer.put(hook, event)

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else its ValidationError.

        DependencyUnavailable while a required filter cannot say.
        """
        for plugin in self._filters[VALIDATE]:
            with self._answering(plugin, VALIDATE) as is_asked:
                if is_asked:
                    answer = await plugin.call(
                        VALIDATE, self._seconds, upload, self._settings, answers_by=ValidationError
                    )
                    if answer is not None:
                        raise WrongAnswer(f"{VALIDATE} returned {answer!r}; it refuses by ValidationError")

    async def transform_analysis(self, analysis: Analysis, request: AnalyzeRequest) -> Analysis:
        """Return the analysis as the filters leave it; DependencyUnavailable while a required one cannot say."""
        if self._filters[TRANSFORM]:
            request = replace(request, image=None)
        for plugin in self._filters[TRANSFORM]:
            with self._answering(plugin, TRANSFORM) as is_asked:
                if is_asked:
                    changed = await plugin.call(TRANSFORM, self._seconds, analysis, request, self._settings)
                    analysis = analysis if changed is None else await self._checked(changed)
        return analysis

    def check_transforming(self) -> None:
        """DependencyUnavailable while a required filter of results is held: the AI would be asked in vain."""
        for plugin in self._filters[TRANSFORM]:
            if plugin.name in self._required and plugin.breaker(TRANSFORM).left_seconds > 0:
                raise _unanswered(plugin, TRANSFORM)

    @contextmanager
    def _answering(self, plugin: BoundPlugin, hook: str) -> Iterator[bool]:
        """Yield whether the filter is to be asked, and judge how that ends: its failures are its own, unless it is
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
        """True when somebody wants to see uploads."""
        return bool(self._filters[VALIDATE])

    async def close(self) -> None:
        """Let the observers finish, for a while, and close the plugins."""
        await asyncio.gather(*(observer.close() for observer in self._observers))
        await asyncio.gather(*(plugin.close() for plugin in self.plugins))


class WrongAnswer(Exception):
    """A filter returned what it must not, and why that is so."""


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


def _unanswered(plugin: BoundPlugin, hook: str) -> DependencyUnavailable:
    """Return the error of what a required filter has to see and cannot now, with the time until it is asked again."""
    what = "Uploads" if hook == VALIDATE else "Results"
    seconds = plugin.breaker(hook).left_seconds or None
    return DependencyUnavailable(f"{what} cannot be checked now", retry_after_seconds=seconds)


def _failed(plugin: BoundPlugin, hook: str, error: Exception) -> None:
    if isinstance(error, WrongAnswer):
        plugin.count_error(hook)
    log.warning("hook_failed", plugin=plugin.name, hook=hook, exc_info=True)
    faults.record_hook_failure(plugin.breaker(hook), error, plugin.name)
