"""Checks of plugins: what is installed, the sandbox, the storage, AI providers and notifiers."""

from __future__ import annotations

import asyncio
import io
import math
import secrets
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from pipeline import demo
from pipeline.commands.checks.findings import LIMIT_SECONDS, Finding, Mark, Masker, reason, shown_address
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute
from pipeline.hooks.bound_plugin import CHECK, START, BoundPlugin
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.checks import find_fault
from pipeline.hooks.context import ContextFactory
from pipeline.hooks.kinds import HOOK, NOTIFIER, PROVIDER, STORAGE, Kind
from pipeline.hooks.listing import NOT_INSTALLED
from pipeline.hooks.progress import ProgressReports, takes_progress
from pipeline.hooks.values import MemoryValues
from pipeline.metrics import Metrics
from pipeline.stores import build_store
from pipeline.settings import Settings, is_loopback, is_safe_url
from pipeline.usecases.storages_in_use import names_in_use

FETCH_SECONDS = 5.0
# How long the local provider reads one photo.
READ_SECONDS, MOST_READ_SECONDS = "1 to 2 s", 2
# Memory of a child of the sandbox: with the local provider's OpenCV; one that makes previews; with the provider's
# models, while it reads.
LIGHT_MB, PREVIEW_MB, READER_MB = 100, 40, 360


class PluginChecks:
    """The checks of all plugins in use. Their secrets are added to the masker."""

    def __init__(self, settings: Settings, metrics: Metrics, masker: Masker) -> None:
        self._settings = settings
        self._metrics = metrics
        self._masker = masker
        self._catalogue: Catalogue | None = None
        self._storage: BoundPlugin | None = None
        # Values that plugins store during the check are not saved.
        self._contexts = ContextFactory(settings, metrics, lambda name: MemoryValues())

    async def close(self) -> None:
        """Close the storage and the sandbox, which several checks use."""
        if self._storage is not None:
            await self._storage.close()
        await self._contexts.close()
        if self._catalogue is not None:
            await self._catalogue.sandbox.close()

    async def plugins(self) -> AsyncIterator[Finding]:
        """Load all plugins, and start the observers and filters."""
        self._catalogue = catalogue = Catalogue(self._settings)
        for info in catalogue.infos():
            what = f"plugin {info.name}"
            if info.state == "broken":
                remedy = f"repair {info.package}, or set PLUGINS_DISABLED"
                yield Finding(Mark.WARNING, what, f"broken: {info.reason}", remedy)
            # A plugin that is not selected need not have its packages installed.
            for warning in info.warnings if info.state != NOT_INSTALLED else ():
                yield Finding(Mark.WARNING, what, warning, f"repair {info.package}")
            if info.state == "disabled":
                yield Finding(Mark.OK, what, "disabled")
        for name, kind in catalogue.own_settings().items():
            with suppress(ConfigurationError):  # reported when the plugin is built
                self._masker.learn(self._settings.plugin(name, kind))
        catalogue.check_names()
        hooks = catalogue.build_hooks(self._metrics, self._contexts)
        for plugin in hooks:
            try:
                if {START, CHECK} & set(plugin.methods):
                    yield await self._ask_check(plugin)
            except Exception as error:
                is_required = plugin.name in self._settings.filters_required
                mark = Mark.FAILED if is_required else Mark.WARNING
                yield Finding(mark, f"plugin {plugin.name}", reason(error), "see its settings")
            finally:
                await plugin.close()
        names = ", ".join(each.name for each in hooks) or "none"
        yield Finding(Mark.OK, "plugins", f"observers and filters in use: {names}")

    async def sandbox(self) -> AsyncIterator[Finding]:
        """Decode a photo in a child process."""
        if self._catalogue is None:
            raise ConfigurationError("no plugins could be found")
        await self._catalogue.sandbox.reduce(_picture(), seconds=LIMIT_SECONDS, wait_seconds=LIMIT_SECONDS)
        settings = self._settings
        detail = f"1 child process decodes photos ({LIGHT_MB} MB, and up to {settings.decode_memory_mb} MB for a photo)"
        if makers := settings.preview_processes:
            make = "makes" if makers == 1 else "make"
            detail += f", {makers} {make} previews ({PREVIEW_MB} MB, and as much for a photo)"
        if "local" in settings.all_providers:
            count = settings.sandbox_processes
            detail += f", {count} read them ({READER_MB} MB each), each one photo at a time, in {READ_SECONDS}: "
            detail += f"30 at once take up to {math.ceil(30 / count) * MOST_READ_SECONDS} s (SANDBOX_PROCESSES)"
        yield Finding(Mark.OK, "sandbox", detail)

    async def storage(self) -> AsyncIterator[Finding]:
        """Save an image, read it and delete it."""
        name = self._settings.storage_name
        self._storage = storage = self._build(STORAGE, name)
        if await storage.call("check", LIMIT_SECONDS) is False:
            raise DependencyUnavailable("Its check returned False")
        async with _saved_picture(storage) as (public_id, url):
            with await storage.call("open", LIMIT_SECONDS, public_id) as file:
                if await asyncio.to_thread(file.read) != _picture():
                    raise DependencyUnavailable("It returned other bytes than were saved")
            if "url" in storage.methods:
                # The service then gives AI services this URL, and never the one that save returned.
                url = await storage.call("url", LIMIT_SECONDS, public_id, round(LIMIT_SECONDS))
            yield await self._check_image_url(storage, url)
        for finding in await self._missing_storages():
            yield finding
        yield Finding(Mark.OK, "storage", f"{name}: an image can be saved, opened and removed")

    async def _missing_storages(self) -> Sequence[Finding]:
        """Return a warning for each storage that still has images and cannot be used with these settings."""
        warnings, store = [], build_store(self._settings)
        try:
            await store.open()
            names = set(await names_in_use(store.as_asset_store())) - {self._settings.storage_name}
        except DependencyUnavailable:
            return []  # the check of the store has reported it
        finally:
            await store.close()
        for name in sorted(names):
            try:
                await self._build(STORAGE, name).close()
            except ConfigurationError as error:
                remedy = f"set the settings of {name} again, or move its images"
                warnings.append(Finding(Mark.WARNING, "storage", f"{name} holds images: {error.message}", remedy))
        return warnings

    async def _check_image_url(self, storage: BoundPlugin, url: str) -> Finding:
        """Return whether jobs may contain this URL, and whether AI services can fetch the image there."""
        where = shown_address(url)
        if not is_safe_url(url):
            return Finding(Mark.FAILED, "image URL", f"{where} is neither https nor loopback", "set PUBLIC_URL")
        if not getattr(storage.plugin, "media_root", None):
            try:
                await asyncio.to_thread(_fetch, url)
            except (OSError, ValueError) as error:
                remedy = "make images public, unless the AI provider needs no URL"
                return Finding(Mark.WARNING, "image URL", f"{where} cannot be fetched: {reason(error)}", remedy)
            return Finding(Mark.OK, "image URL", f"{where} can be fetched")
        host = urlsplit(url).hostname or ""
        ai_host = urlsplit(self._settings.ai_service_url).hostname or ""
        if is_loopback(host) and "http" in self._settings.all_providers and not is_loopback(ai_host):
            detail = f"the AI service at {ai_host} cannot fetch images from {host}"
            return Finding(Mark.WARNING, "image URL", detail, "set PUBLIC_URL")
        return Finding(Mark.OK, "image URL", f"{where}, served by the service itself")

    def provider(self, name: str, *, analyze: bool) -> Callable[[], AsyncIterator[Finding]]:
        """Return the check of an AI provider. analyze: also let it analyze a demo picture."""

        async def run() -> AsyncIterator[Finding]:
            provider = self._build(PROVIDER, name)
            try:
                yield await self._ask_check(provider)
                if analyze:
                    yield Finding(Mark.OK, f"provider {name}", await self._analyze(provider))
            finally:
                await provider.close()

        return run

    def notifier(self, name: str) -> Callable[[], AsyncIterator[Finding]]:
        """Return the check of a notifier."""

        async def run() -> AsyncIterator[Finding]:
            notifier = self._build(NOTIFIER, name)
            try:
                yield await self._ask_check(notifier)
            finally:
                await notifier.close()

        return run

    async def _ask_check(self, plugin: BoundPlugin) -> Finding:
        """Start the plugin and call its `check`, if it has one; return that both succeeded."""
        what = f"{'plugin' if plugin.kind == HOOK else plugin.kind} {plugin.name}"
        await plugin.start()
        if CHECK not in plugin.methods:
            return Finding(Mark.OK, what, "starts; it has no check of its own")
        if await plugin.call(CHECK, LIMIT_SECONDS) is False:
            raise DependencyUnavailable("Its check returned False")
        return Finding(Mark.OK, what, "starts and can be reached")

    async def _analyze(self, provider: BoundPlugin) -> str:
        """Return in words the provider's result for a demo picture."""
        if self._storage is None:
            raise DependencyUnavailable("There is no storage to take the picture from")
        path, category = demo.pictures(self._settings.categories)[0]
        seconds = self._settings.provider_timeout_seconds
        async with _saved_picture(self._storage) as (_, url):
            request = AnalyzeRequest(
                image_url=url,
                category=category,
                asset_id=secrets.token_hex(12),
                job_id="check",
                request_id="check",
                attempt=1,
                timeout_seconds=seconds,
                image=_picture() if getattr(provider.plugin, "needs_image", False) else None,
            )
            keywords = {"progress": ProgressReports()} if takes_progress(provider.function("analyze")) else {}
            result = await provider.call("analyze", seconds, request, keywords=keywords)
        if fault := find_fault(result):
            raise ValueError(f"it sent an invalid result: {fault}")
        return f"result for {path.name}: {_described(cast(Analysis, result))}"

    def _build(self, kind: Kind, name: str) -> BoundPlugin:
        if self._catalogue is None:
            raise ConfigurationError("no plugins could be found")
        return self._catalogue.build(kind, name, self._metrics, self._contexts)


@asynccontextmanager
async def _saved_picture(storage: BoundPlugin) -> AsyncIterator[tuple[str, str]]:
    """Save a demo picture, give (public id, URL), and delete it at the end."""
    public_id = f"check/{secrets.token_hex(8)}"
    try:
        yield public_id, await storage.call("save", LIMIT_SECONDS, public_id, io.BytesIO(_picture()), "image/jpeg")
    except BaseException:
        # The first error is reported, not a second one of this deletion.
        with suppress(Exception):
            await storage.call("delete", LIMIT_SECONDS, public_id)
        raise
    await storage.call("delete", LIMIT_SECONDS, public_id)


def _picture() -> bytes:
    return Path(demo.pictures()[0][0]).read_bytes()


def _fetch(url: str) -> None:
    with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as reply:
        reply.read(1)


def _described(analysis: Analysis) -> str:
    def text_of(attribute: Attribute | None) -> str:
        return f"{attribute.value} ({attribute.confidence:.0%})" if attribute and attribute.value else "unknown"

    return ", ".join(f"{name} {text_of(getattr(analysis, name))}" for name in ("brand", "model", "colorway"))
