"""The command `check`: tries what the settings name, before a deploy, and says what is wrong and how to mend it.

Works on the same stores and services that `serve` will use, through the same code: it opens the asset store (which
makes or updates tables and indexes), and writes, reads and removes a probe of its own. It starts no Redis and no jobs.
Runs on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import re
import secrets
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import click
from pydantic import BaseModel, SecretStr
from redis.exceptions import NoPermissionError

from pipeline import data_dir, demo, embedded, logs
from pipeline import settings as settings_module
from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.store import AssetStore
from pipeline.auth import TokenVerifier
from pipeline.clock import Clock, utc_now
from pipeline.commands import running
from pipeline.commands.shown import shown, stdout
from pipeline.disk import Disk
from pipeline.errors import ConfigurationError, DependencyUnavailable, PipelineError, Unauthorized, words_of
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute
from pipeline.hooks.calls import CHECK, START, BoundPlugin
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.checks import find_fault
from pipeline.hooks.context import Lender
from pipeline.hooks.kinds import HOOK, NOTIFIER, PROVIDER, STORAGE, Kind
from pipeline.hooks.progress import Reporting, takes_progress
from pipeline.hooks.threads import LoopThreads
from pipeline.hooks.values import MemoryValues
from pipeline.keys import KeySet
from pipeline.link.master import Master
from pipeline.metrics import Metrics
from pipeline.parts import QUEUE_NAME, build_store
from pipeline.queue.queue import JobQueue
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Rooms
from pipeline.settings import Settings, is_loopback, is_safe_url
from pipeline.texts import MASK, clean, mask
from pipeline.usecases.storages_in_use import names_in_use

LIMIT_SECONDS = 10.0
FETCH_SECONDS = 5.0
OLDEST_REDIS = (6, 2)
FULL_PERCENT = 80
# How long the local provider reads one photo.
READ_SECONDS, MOST_READ_SECONDS = "1 to 2 s", 2
# More of the files that are too open are not counted.
OPEN_LIMIT = 1000
# What a child of the sandbox takes: with the local provider's OpenCV; one that makes previews; with the provider's
# models, while it reads.
LIGHT_MB, PREVIEW_MB, READER_MB = 100, 40, 360
REASON_LENGTH = 300
COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}


class Mark(StrEnum):
    """How a check ended; only `failed` makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. mend: what to change, "" when nothing has to be."""

    mark: Mark
    what: str
    detail: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to try. run: yields findings, and raises when the thing does not work; mend: what to change then."""

    what: str
    run: Callable[[], AsyncIterator[Finding]]
    mend: str
    seconds: float = LIMIT_SECONDS


@click.command()
@click.option("--analyze", is_flag=True, help="Also let each AI provider analyze a demo picture; may cost money.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line for each finding.")
def check(analyze: bool, as_json: bool) -> None:
    """Try everything the settings name; exit code 1 when something fails, 2 when the settings are wrong."""
    settings = settings_module.load()
    # Nothing else could be tried without it.
    data_dir.try_data_dir(settings.data_dir)
    logs.configure(settings.log_format, "ERROR")
    loop = asyncio.new_event_loop()
    loop.set_default_executor(LoopThreads())
    has_failed = loop.run_until_complete(_run(settings, analyze, _print_json if as_json else _print))
    sys.stdout.flush()
    if asyncio.all_tasks(loop):
        os._exit(int(has_failed))  # a plugin that ignores cancellation would keep us for ever
    loop.close()
    sys.exit(int(has_failed))


async def _run(settings: Settings, analyze: bool, tell: Callable[[Finding], None]) -> bool:
    """Make every check in order, whatever becomes of those before it; return whether any has failed."""
    has_failed = False
    masker = Masker(settings)
    checks = Checks(settings, masker)
    for each in checks.all(analyze):
        try:
            async with asyncio.timeout(each.seconds):
                async for finding in each.run():
                    has_failed = has_failed or finding.mark is Mark.FAILED
                    tell(masker.masked(finding))
        # At this border anything may come: drivers and plugins raise what they like.
        except (Exception, SystemExit) as error:
            has_failed = True
            is_late = isinstance(error, TimeoutError) and not isinstance(error.__cause__, OSError)
            detail = f"no answer within {each.seconds:g} s" if is_late else reason(error)
            tell(masker.masked(Finding(Mark.FAILED, each.what, detail, each.mend)))
    await checks.close()
    return has_failed


class Masker:
    """Takes secrets out of what is printed: what looks like one, and each one that the settings hold."""

    def __init__(self, settings: BaseModel) -> None:
        self._secrets: set[str] = set()
        self.learn(settings)

    def learn(self, settings: BaseModel) -> None:
        """Mask the secrets of these settings as well, whole and, of an address, its user and password."""
        for value in (getattr(settings, name) for name in type(settings).model_fields):
            if isinstance(value, SecretStr) and (secret := value.get_secret_value()):
                self._secrets |= {secret, *filter(None, secret.split("\n"))}
                user, _, password = _userinfo(secret).partition(":")
                self._secrets |= {part for text in (user, password) for part in (text, unquote(text)) if len(part) > 3}

    def masked(self, finding: Finding) -> Finding:
        """Return the finding without secrets, and without what steers a terminal."""
        return Finding(finding.mark, *(self._mask(getattr(finding, each.name)) for each in fields(finding)[1:]))

    def _mask(self, text: str) -> str:
        text = clean(text)
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return mask(text)


class Checks:
    """All there is to try for these settings."""

    def __init__(self, settings: Settings, masker: Masker) -> None:
        self._settings = settings
        self._masker = masker
        self._metrics = Metrics()
        self._catalogue: Catalogue | None = None
        self._storage: BoundPlugin | None = None
        # What plugins keep while they are checked is kept nowhere.
        self._lender = Lender(settings, self._metrics, lambda name: MemoryValues())

    def all(self, analyze: bool) -> list[Check]:
        """Return the checks in the order they are to be made."""
        settings = self._settings
        redis_url, mongodb_uri = settings.redis_url.get_secret_value(), settings.mongodb_uri.get_secret_value()
        checks = [
            Check("settings", self._variables, "see the README"),
            Check("data folder", self._data_dir, "make room there or set DATA_DIR"),
            Check("address", self._address, "set HOST and PORT"),
            Check("tokens", self._tokens, "set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL"),
            Check("redis", self._redis, "see REDIS_URL")
            if redis_url
            else Check("redis", self._embedded_redis, "install redis-server or set REDIS_URL"),
            Check("asset store", self._store, "set MONGODB_URI" if mongodb_uri else "set DATA_DIR"),
            *([Check("queue", self._owner, "set QUEUE_PREFIX")] if redis_url else []),
            Check("plugins", self._plugins, "see the PLUGIN_ variables, PLUGINS_DISABLED and PLUGINS_SAFE_MODE"),
            Check("sandbox", self._sandbox, "see DECODE_MEMORY_MB and how many processes this user may have"),
            Check("storage", self._try_storage, "see STORAGE_BACKEND, PUBLIC_URL and the storage's own settings"),
        ]
        seconds = LIMIT_SECONDS + (settings.provider_timeout_seconds if analyze else 0)
        for name in settings.all_providers:
            mend = "set AI_SERVICE_URL" if name == "http" else "see AI_PROVIDER and the provider's own settings"
            checks.append(Check(f"provider {name}", self._provider(name, analyze), mend, seconds))
        for name in dict.fromkeys(settings.notifiers):
            mend = "see NOTIFIERS and the notifier's own settings"
            checks.append(Check(f"notifier {name}", self._notifier(name), mend))
        return checks

    async def close(self) -> None:
        """Close the storage and the sandbox, which several checks share."""
        if self._storage is not None:
            await self._storage.close()
        await self._lender.close()
        if self._catalogue is not None:
            await self._catalogue.sandbox.close()

    async def _variables(self) -> AsyncIterator[Finding]:
        for each in self._settings.unknown_variables:
            mend = f"did you mean {each.meant}?" if each.meant else "see `run.py settings`"
            yield Finding(Mark.WARNING, "settings", f"there is no setting {each.variable}", mend)

    async def _data_dir(self) -> AsyncIterator[Finding]:
        folder = self._settings.data_dir
        await Disk(folder, self._settings.max_upload_bytes).check()
        yield Finding(Mark.OK, "data folder", f"{folder.absolute()} is writable and has room for the largest upload")
        if found := await asyncio.to_thread(lambda: list(islice(data_dir.too_open(folder), OPEN_LIMIT))):
            more = " or more" if len(found) == OPEN_LIMIT else ""
            detail = f"other accounts may read {len(found)}{more} files and folders there, {found[0]} among them"
            mend = f"start the service, which closes them, or chmod -R go-rwx {folder.absolute()}"
            yield Finding(Mark.WARNING, "data folder", detail, mend)

    async def _address(self) -> AsyncIterator[Finding]:
        settings = self._settings
        where = f"{settings.host}:{settings.port}"
        if await asyncio.to_thread(running.find_service, settings):
            yield Finding(Mark.OK, "address", "a service runs on this DATA_DIR")
            return
        if fault := running.address_fault(settings):
            yield Finding(Mark.WARNING, "address", f"{where}: {fault}", "set HOST or PORT")
        else:
            yield Finding(Mark.OK, "address", f"{where} is free")

    async def _tokens(self) -> AsyncIterator[Finding]:
        settings = self._settings
        if settings.jwt_jwks_url:
            # Any key id tells whether the set can be had; that there is no such key is a good answer.
            with suppress(Unauthorized):
                await KeySet(settings.jwt_jwks_url).find("check")
            yield Finding(Mark.OK, "tokens", f"the key set at {shown_address(settings.jwt_jwks_url)} can be read")
        elif settings.jwt_public_key:
            TokenVerifier(settings)
            yield Finding(Mark.OK, "tokens", "JWT_PUBLIC_KEY is a key for RS256 or ES256")
        elif settings.jwt_secret.get_secret_value():
            old = len(settings.old_secrets)
            yield Finding(Mark.OK, "tokens", "JWT_SECRET, HS256" + (f", and {old} of JWT_SECRETS_OLD" if old else ""))
        else:
            if (settings.data_dir / data_dir.SECRET_NAME).exists():
                data_dir.jwt_secret(settings.data_dir)  # raises when it is damaged
            yield Finding(Mark.OK, "tokens", "embedded: a secret generated into DATA_DIR")

    async def _embedded_redis(self) -> AsyncIterator[Finding]:
        server = embedded.find_server()
        process = await asyncio.create_subprocess_exec(server, "--version", stdout=asyncio.subprocess.PIPE)
        try:
            output = (await process.communicate())[0].decode(errors="replace")
        finally:
            if process.returncode is None:
                process.kill()
        found = re.search(r"v=([\d.]+)", output)
        version = found[1] if found else "unknown"
        _check_redis_version(version)
        yield Finding(Mark.OK, "redis", f"embedded: {server} {version}")

    async def _redis(self) -> AsyncIterator[Finding]:
        url = self._settings.redis_url.get_secret_value()
        master, info = Master(url), {}
        try:
            with suppress(NoPermissionError):  # not needed for anything else
                lines: str = await master.call(lambda link: link.ask("INFO"))
                info = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
            # A write that writes nothing: a replica refuses it.
            await master.call(lambda link: link.ask("PERSIST", f"{self._settings.queue_prefix}:probe"))
        finally:
            master.close()
        version = info.get("redis_version", "of unknown version")
        if info:
            _check_redis_version(version)
        # As /metrics asks: proves that scripts may be run and our keys be read.
        queue, clock = JobQueue(url, prefix=self._settings.queue_prefix), Clock()
        try:
            await queue.stats()
            await clock.measure(queue.time)
        finally:
            await queue.close()
        kept = "on" if info.get("aof_enabled") == "1" else "off" if info else "unknown"
        yield Finding(Mark.OK, "redis", f"{version} at {shown_address(url)}, append-only file {kept}")
        await self._try_rooms()
        yield Finding(Mark.OK, "redis", "events that are published to other processes are heard")
        try:
            await clock.check()
        except DependencyUnavailable as error:
            yield Finding(Mark.FAILED, "clock", error.message, "start NTP, for example chrony, on both machines")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            detail = f"maxmemory-policy is {policy}: when memory runs out, jobs vanish"
            yield Finding(Mark.WARNING, "redis", detail, "set maxmemory-policy noeviction in Redis")
        limit = int(info.get("maxmemory", 0))
        used_percent = 100 * int(info.get("used_memory", 0)) // limit if limit else 0
        if used_percent >= FULL_PERCENT:
            detail = f"{used_percent} % of its memory is used"
            yield Finding(Mark.WARNING, "redis", detail, "raise maxmemory in Redis")

    async def _try_rooms(self) -> None:
        """Really publish and subscribe."""
        settings = self._settings
        rooms = Rooms(max_frames=settings.outbox_frames, max_bytes=settings.outbox_bytes, metrics=self._metrics)
        url = settings.redis_url.get_secret_value()
        fanout = RoomFanout(rooms, url, metrics=self._metrics, prefix=settings.queue_prefix)
        await fanout.start()
        try:
            await fanout.check()
        finally:
            await fanout.stop()

    async def _store(self) -> AsyncIterator[Finding]:
        store, uri = build_store(self._settings), self._settings.mongodb_uri.get_secret_value()
        name = shown_address(uri) if uri else f"embedded: {self._settings.data_dir / 'assets.sqlite'}"
        configured = store.uri
        try:
            await store.open()
            await store.check()
            await _probe_store(store.as_asset_store())
        finally:
            await store.close()
        yield Finding(Mark.OK, "asset store", f"{name}: an asset can be written, read and removed")
        if store.uri != configured:
            yield Finding(Mark.WARNING, "asset store", "it was moved from there", "set MONGODB_URI to where it is now")

    async def _owner(self) -> AsyncIterator[Finding]:
        prefix = self._settings.queue_prefix
        queue = JobQueue(self._settings.redis_url.get_secret_value(), name=QUEUE_NAME, prefix=prefix)
        store = build_store(self._settings)
        try:
            await store.open()
            owner, ours = await queue.owned_by(), await store.identity()
        except DependencyUnavailable:
            return  # its own check has said so
        finally:
            await store.close()
            await queue.close()
        if owner in ("", ours):
            yield Finding(Mark.OK, "queue", f"{prefix} is ours" if owner else f"{prefix} is free")
        else:
            detail = f"{prefix} is the queue of another asset store"
            mend = f"set QUEUE_PREFIX or, if that store is gone for good, remove the key {queue.owner_key} from Redis"
            yield Finding(Mark.FAILED, "queue", detail, mend)

    async def _plugins(self) -> AsyncIterator[Finding]:
        self._catalogue = catalogue = Catalogue(self._settings)
        for info in catalogue.infos():
            what = f"plugin {info.name}"
            if info.state == "broken":
                yield Finding(Mark.WARNING, what, f"broken: {info.reason}", f"mend {info.package}, or PLUGINS_DISABLED")
            for warning in info.warnings:
                yield Finding(Mark.WARNING, what, warning, f"mend {info.package}")
            if info.state == "disabled":
                yield Finding(Mark.OK, what, "disabled")
        for name, kind in catalogue.own_settings().items():
            with suppress(ConfigurationError):  # told where the plugin is built, if it is
                self._masker.learn(self._settings.plugin(name, kind))
        catalogue.check_names()
        hooks = catalogue.build_hooks(self._metrics, self._lender)
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

    async def _sandbox(self) -> AsyncIterator[Finding]:
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

    async def _try_storage(self) -> AsyncIterator[Finding]:
        name = self._settings.storage_name
        self._storage = storage = self._build(STORAGE, name)
        if await storage.call("check", LIMIT_SECONDS) is False:
            raise DependencyUnavailable("Its check returned False")
        async with _saved_picture(storage) as (public_id, url):
            with await storage.call("open", LIMIT_SECONDS, public_id) as file:
                if await asyncio.to_thread(file.read) != _picture():
                    raise DependencyUnavailable("It gives back other bytes than it was given")
            if "url" in storage.methods:
                # As for an AI service: the one that save returns is shown nowhere then.
                url = await storage.call("url", LIMIT_SECONDS, public_id, round(LIMIT_SECONDS))
            yield await self._judge_image_url(storage, url)
        for finding in await self._missing_storages():
            yield finding
        yield Finding(Mark.OK, "storage", f"{name}: an image can be saved, opened and removed")

    async def _missing_storages(self) -> Sequence[Finding]:
        """Return which storages hold images of before and cannot be used with these settings."""
        found, store = [], build_store(self._settings)
        try:
            await store.open()
            names = set(await names_in_use(store.as_asset_store())) - {self._settings.storage_name}
        except DependencyUnavailable:
            return []  # the store's own check has said so
        finally:
            await store.close()
        for name in sorted(names):
            try:
                await self._build(STORAGE, name).close()
            except ConfigurationError as error:
                mend = f"set what {name} needs again, or move its images"
                found.append(Finding(Mark.WARNING, "storage", f"{name} holds images: {error.message}", mend))
        return found

    async def _judge_image_url(self, storage: BoundPlugin, url: str) -> Finding:
        """Return whether jobs may carry such a URL and AI services can fetch the image there."""
        where = shown_address(url)
        if not is_safe_url(url):
            return Finding(Mark.FAILED, "image URL", f"{where} is neither https nor loopback", "set PUBLIC_URL")
        if not getattr(storage.plugin, "media_root", None):
            try:
                await asyncio.to_thread(_fetch, url)
            except (OSError, ValueError) as error:
                mend = "see whether images are public, unless the AI provider needs no URL"
                return Finding(Mark.WARNING, "image URL", f"{where} cannot be fetched: {reason(error)}", mend)
            return Finding(Mark.OK, "image URL", f"{where} can be fetched")
        host = urlsplit(url).hostname or ""
        ai_host = urlsplit(self._settings.ai_service_url).hostname or ""
        if is_loopback(host) and "http" in self._settings.all_providers and not is_loopback(ai_host):
            detail = f"the AI service at {ai_host} cannot fetch images from {host}"
            return Finding(Mark.WARNING, "image URL", detail, "set PUBLIC_URL")
        return Finding(Mark.OK, "image URL", f"{where}, served by the service itself")

    def _provider(self, name: str, analyze: bool) -> Callable[[], AsyncIterator[Finding]]:
        async def run() -> AsyncIterator[Finding]:
            provider = self._build(PROVIDER, name)
            try:
                yield await self._ask_check(provider)
                if analyze:
                    yield Finding(Mark.OK, f"provider {name}", await self._analyze(provider))
            finally:
                await provider.close()

        return run

    def _notifier(self, name: str) -> Callable[[], AsyncIterator[Finding]]:
        async def run() -> AsyncIterator[Finding]:
            notifier = self._build(NOTIFIER, name)
            try:
                yield await self._ask_check(notifier)
            finally:
                await notifier.close()

        return run

    async def _ask_check(self, plugin: BoundPlugin) -> Finding:
        """Return that the plugin starts and that its own `check` found nothing wrong, or that it has none."""
        what = f"{'plugin' if plugin.kind == HOOK else plugin.kind} {plugin.name}"
        await plugin.start()
        if CHECK not in plugin.methods:
            return Finding(Mark.OK, what, "starts; it has no check of its own")
        if await plugin.call(CHECK, LIMIT_SECONDS) is False:
            raise DependencyUnavailable("Its check returned False")
        return Finding(Mark.OK, what, "starts and can be reached")

    async def _analyze(self, provider: BoundPlugin) -> str:
        """Return in words what the provider sees in a demo picture."""
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
            keywords = {"progress": Reporting()} if takes_progress(provider.function("analyze")) else {}
            result = await provider.call("analyze", seconds, request, keywords=keywords)
        if fault := find_fault(result):
            raise ValueError(f"it sent an invalid result: {fault}")
        return f"says of {path.name}: {_described(cast(Analysis, result))}"

    def _build(self, kind: Kind, name: str) -> BoundPlugin:
        if self._catalogue is None:
            raise ConfigurationError("no plugins could be found")
        return self._catalogue.build(kind, name, self._metrics, self._lender)


def reason(error: BaseException) -> str:
    """Return why it failed, in one line: the error and, when that hides it, its cause."""
    texts = [error.message if isinstance(error, PipelineError) else words_of(error)]
    if isinstance(error, PipelineError) and error.__cause__ is not None and str(error.__cause__) not in texts[0]:
        texts.append(f"{type(error.__cause__).__name__}: {error.__cause__}")
    return " ".join("; ".join(texts).split())[:REASON_LENGTH].rstrip(": ")


def shown_address(url: str) -> str:
    """Return the address without user, password and query."""
    return re.sub(r"://\S*@", "://", url).partition("?")[0]


def _userinfo(url: str) -> str:
    found = re.search(r"://(\S*)@", url)
    return found[1] if found else ""


def _check_redis_version(version: str) -> None:
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_REDIS:
        raise ConfigurationError(f"version {version} is too old; 6.2 or newer is needed")


async def _probe_store(store: AssetStore) -> None:
    """Write a draft, which no worker and no reconciler looks at, read it and remove it."""
    now, asset_id = utc_now(), secrets.token_hex(12)
    original = ImageRef("check", "check", "https://check.invalid/", "", 1, 1, 1, "image/jpeg")
    asset = Asset(asset_id, f"check-{asset_id}", "other", AssetStatus.DRAFT, original, "check", now, now)
    await store.create(asset)
    try:
        if await store.get(asset_id) != asset:
            raise DependencyUnavailable("It gives back another asset than it was given")
    finally:
        await store.delete(asset_id, asset.user_id)


@asynccontextmanager
async def _saved_picture(storage: BoundPlugin) -> AsyncIterator[tuple[str, str]]:
    """Keep a demo picture in the storage meanwhile; (public id, URL)."""
    public_id = f"check/{secrets.token_hex(8)}"
    try:
        yield public_id, await storage.call("save", LIMIT_SECONDS, public_id, io.BytesIO(_picture()), "image/jpeg")
    except BaseException:
        # Why it failed is to be told, not that this fails too.
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
    def told(attribute: Attribute | None) -> str:
        return f"{attribute.value} ({attribute.confidence:.0%})" if attribute and attribute.value else "unknown"

    return ", ".join(f"{name} {told(getattr(analysis, name))}" for name in ("brand", "model", "colorway"))


def _print(finding: Finding) -> None:
    mark = f"[{COLORS[finding.mark]}]{finding.mark:8}[/]"
    stdout.print(f"{mark} {shown(f'{finding.what}: {finding.detail}')}", highlight=False, soft_wrap=True)
    if finding.mend:
        stdout.print(f"{'':9}{shown(finding.mend)}", highlight=False, soft_wrap=True)


def _print_json(finding: Finding) -> None:
    print(json.dumps(asdict(finding)), flush=True)
