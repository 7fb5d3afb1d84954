"""The plugin dispatcher: what it finds and selects, how it calls, and that a broken plugin hurts only itself."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import io
import math
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline import __version__
from pipeline.errors import (
    ConfigurationError,
    DependencyUnavailable,
    PermanentJobError,
    RetryableJobError,
    ValidationError,
)
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, Notification, ProcessedImage, hookimpl
from pipeline.hooks.catalogue import Catalogue, list_plugins
from pipeline.hooks.kinds import PROVIDER
from pipeline.hooks.listing import PluginInfo
from pipeline.hooks.checks import find_fault
from pipeline.hooks.manager import PluginManager, assemble, build_plugins
from pipeline.hooks.threads import DaemonThreads
from pipeline.images import ImageName
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import SUCCESS_EVENT, RecordingRooms
from tests.constants import BREAKER_FAILURES
from tests.fake_plugins import Provider, count, make_catalogue

REQUEST = AnalyzeRequest(
    image_url="https://images.example/original.jpg",
    category="sneaker",
    asset_id="65f0c0ffee65f0c0ffee65f0",
    job_id="ai-processing:65f0c0ffee65f0c0ffee65f0",
    request_id="request-1",
    attempt=1,
    timeout_seconds=1,
)
FOUND = Analysis(brand=Attribute("Nike", 0.9))


async def no_image() -> bytes:
    """For providers that ask for none."""
    raise AssertionError("nobody asked for the image")


user = contextvars.ContextVar("user", default="nobody")


class Storage:
    """A storage that keeps images in memory; `wrong` is raised or called by every method first, when set."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.url: Any = "https://images.example/x"
        self.wrong: Exception | Callable[[], Any] | None = None

    def save(self, public_id: str, file: io.BytesIO, content_type: str) -> Any:
        self._go_wrong()
        self.images[public_id] = file.read()
        return self.url

    def open(self, public_id: str) -> io.BytesIO:
        self._go_wrong()
        return io.BytesIO(self.images[public_id])

    def delete(self, public_id: str) -> None:
        self._go_wrong()
        self.images.pop(public_id, None)

    def check(self) -> None:
        self._go_wrong()

    def _go_wrong(self) -> None:
        if isinstance(self.wrong, Exception):
            raise self.wrong
        if self.wrong:
            self.wrong()


class Notifier:
    """A notifier whose notify is the function it was given."""

    def __init__(self, notify: Callable[[Notification], Any], is_durable: bool = False) -> None:
        self.notify = notify
        self.durable = is_durable


class House:
    """Builds managers from plugins defined in the test and closes them after it."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.rooms = RecordingRooms()
        self.released = threading.Event()
        self.managers: list[PluginManager] = []

    def hang(self, *_: Any) -> None:
        """Block the calling thread until the test is over."""
        self.released.wait(60)

    def open(
        self,
        analyze: Callable[[AnalyzeRequest], Any] = lambda request: FOUND,
        storage: Any = None,
        notifiers: Mapping[str, Callable[[Notification], Any]] | None = None,
        max_concurrency: int | None = None,
        is_durable: bool = False,
        **settings: Any,
    ) -> PluginManager:
        """is_durable: of all the notifiers."""
        provider = Provider(analyze)
        if max_concurrency:
            provider.max_concurrency = max_concurrency  # type: ignore[attr-defined]
        told = notifiers or {}
        module = make_module(
            "tested",
            providers=[("tested", lambda: provider)],
            storages=[("tested", lambda: storage or Storage())],
            notifiers=[(name, lambda notify=notify: Notifier(notify, is_durable)) for name, notify in told.items()],
        )
        chosen = Settings(ai_provider="tested", storage_backend="tested", notifiers=tuple(told), **settings)
        manager = build(chosen, module, self)
        self.managers.append(manager)
        return manager

    def count(self, name: str, kind: str, plugin: str = "tested") -> float:
        """Return the sum over the plugin's methods."""
        return count(self.metrics, name, kind, plugin)


def make_module(
    name: str, providers: Any = (), storages: Any = (), notifiers: Any = (), tryfirst: bool = False
) -> types.ModuleType:
    """Return a plugin module as a package author would write it."""
    module = types.ModuleType(name)

    @hookimpl(tryfirst=tryfirst)
    def register_ai_providers(settings: Settings) -> Any:
        yield from providers

    @hookimpl
    def register_storage_backends(settings: Settings) -> Any:
        yield from storages

    @hookimpl
    def register_notifiers() -> Any:
        yield from notifiers

    for implementation in (register_ai_providers, register_storage_backends, register_notifiers):
        setattr(module, implementation.__name__, implementation)
    return module


def build(settings: Settings, module: types.ModuleType, house: House) -> PluginManager:
    return assemble(make_catalogue(settings, module), settings, house.metrics, house.rooms)


@pytest.fixture
def house(io_loop: IOLoop) -> Iterator[House]:
    """A place to build managers in."""
    house = House()
    with capture_logs():  # the console's way to print exceptions is slow
        yield house
    house.released.set()
    for manager in house.managers:
        io_loop.run_sync(manager.close)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs a package with one entry point: really, as files on the import path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str, version: str = "1.2") -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[ai_queue_pipeline]\n{name} = {name}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)

    return install


GOOD_PACKAGE = """
    from pipeline.hooks import hookimpl

    @hookimpl
    def register_ai_providers(settings):
        yield "guess", lambda: object()
"""


# what is found and selected


def test_listing_shows_built_ins_and_installed_packages(package: Callable[..., None]) -> None:
    """Each plugin has its kind, where it comes from, and whether it is in use."""
    package("guesswork", GOOD_PACKAGE)
    infos = list_plugins(Settings(ai_service_url="http://127.0.0.1:9"))
    assert PluginInfo("guess", "provider", "guesswork", "1.2", "available") in infos
    assert PluginInfo("http", "provider", "built-in", __version__, "selected") in infos
    assert PluginInfo("local", "storage", "built-in", __version__, "selected") in infos
    assert PluginInfo("cloudinary", "storage", "built-in", __version__, "available") in infos


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_nobody_has", "ModuleNotFoundError: No module named 'a_package_nobody_has'"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("def (", "SyntaxError"),
        (
            "from pipeline.hooks import hookimpl\n@hookimpl\ndef register_ai_providers(settings, app): return []",
            "register_ai_providers has no argument 'app': it may name settings, sandbox",
        ),
        (GOOD_PACKAGE + "    @hookimpl\n    def register_games(): return []", "there is no hook register_games"),
        (
            "from pipeline.hooks import hookimpl\n@hookimpl\ndef register_ai_providers(): raise OSError('no disk')",
            "OSError: no disk",
        ),
        ("from pipeline.hooks import hookimpl\n@hookimpl\ndef register_ai_providers(): return [1]", "TypeError"),
    ],
    ids=["missing import", "exit", "syntax", "arguments", "unknown hook", "raises", "no pairs"],
)
def test_a_broken_package_is_listed_with_its_reason_and_stops_nothing(
    package: Callable[..., None], source: str, reason: str
) -> None:
    """Whatever a package does wrong while it is loaded, the others are there."""
    package("badly", source)
    package("guesswork", GOOD_PACKAGE)
    infos = list_plugins(Settings())
    (broken,) = [info for info in infos if (info.package, info.version) == ("badly", "1.2")]
    assert (broken.name, broken.state) == ("badly", "broken")
    assert reason in broken.reason
    assert {"guess", "http"} <= {info.name for info in infos if info.kind == "provider"}


def test_an_unknown_name_stops_the_start_and_lists_the_names_there_are(package: Callable[..., None]) -> None:
    """Whoever mistyped a name reads the right one; a broken package is named with its reason."""
    package("badly", "import a_package_nobody_has")
    settings = Settings(ai_provider="htpp", ai_service_url="http://127.0.0.1:9")
    with pytest.raises(ConfigurationError) as caught:
        Catalogue(settings, ["pipeline.plugins.ai_http"]).build(PROVIDER, "htpp", Metrics())
    expected = "AI_PROVIDER: there is no provider 'htpp'; there are: http (did you mean http?); not usable: badly ("
    assert str(caught.value).startswith(expected)
    assert "a_package_nobody_has" in str(caught.value)


def test_a_factory_that_fails_stops_the_start_with_its_reason(house: House) -> None:
    """A selected plugin that cannot be built is a fault of the configuration, not a job that fails later."""

    def fail() -> None:
        raise OSError("no model file")

    module = make_module("tested", providers=[("tested", fail)])
    with pytest.raises(ConfigurationError, match="AI_PROVIDER: provider 'tested' cannot start: no model file"):
        build(Settings(ai_provider="tested"), module, house)


def test_a_plugin_without_its_methods_stops_the_start(house: House) -> None:
    """What is missing is named at start, not found out by the first upload."""
    module = make_module("tested", providers=[("tested", object)])
    with pytest.raises(ConfigurationError, match="it has no method analyze"):
        build(Settings(ai_provider="tested"), module, house)


def test_a_package_takes_a_built_in_name_only_with_tryfirst(
    package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installing a package must not silently change who gets the photos."""
    package("guesswork", GOOD_PACKAGE.replace('"guess"', '"http"'))
    package("pushy", GOOD_PACKAGE.replace('"guess"', '"cloud"').replace("@hookimpl", "@hookimpl(tryfirst=True)"))
    infos = [info for info in list_plugins(Settings()) if info.kind == "provider" and info.name == "http"]
    assert [(info.package, info.state) for info in infos] == [("built-in", "available"), ("guesswork", "broken")]
    first = make_module("first", providers=[("same", lambda: Provider(lambda request: 1))], tryfirst=True)
    other = make_module("other", providers=[("same", lambda: Provider(lambda request: 2))])
    for module in (first, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    bound = Catalogue(Settings(ai_provider="same"), ["other", "first"]).build(PROVIDER, "same", Metrics())
    assert bound.plugin.analyze(REQUEST) == 1  # type: ignore[attr-defined]


@pytest.mark.gen_test
async def test_the_settings_choose_what_is_built(tmp_path: Path) -> None:
    """With an AI service configured the provider is `http`; images are local unless Cloudinary is configured."""
    settings = Settings(ai_service_url="http://127.0.0.1:9", data_dir=tmp_path, notifiers=())
    manager = build_plugins(settings, Metrics(), RecordingRooms())
    (folder,) = await manager.storages.media_folders()
    assert (folder.backend, folder.root) == ("local", tmp_path / "media")
    saved = await manager.save("a/original", io.BytesIO(b"x"), "image/png")
    assert saved == ("local", "http://127.0.0.1:8080/media/a/original.png")
    await manager.notifiers.notify(SUCCESS_EVENT, "user-1")
    await manager.close()


def test_a_provider_without_threads_stops_the_start(house: House) -> None:
    """max_concurrency = 0 would leave every call waiting."""
    provider = Provider(lambda request: FOUND)
    provider.max_concurrency = 0  # type: ignore[attr-defined]
    module = make_module("tested", providers=[("tested", lambda: provider)])
    with pytest.raises(ConfigurationError, match="its max_concurrency is less than 1"):
        build(Settings(ai_provider="tested"), module, house)


@pytest.mark.gen_test
async def test_two_managers_do_not_see_each_other(house: House) -> None:
    """Each app has its own plugins, even under the same name."""
    one = house.open(lambda request: Analysis(brand=Attribute("one", 1)))
    two = house.open(lambda request: Analysis(brand=Attribute("two", 1)))
    assert [(await each.analyze(REQUEST, no_image)).brand.value for each in (one, two)] == ["one", "two"]


# how it calls


@pytest.mark.gen_test
async def test_async_methods_run_on_the_loop_and_plain_ones_in_a_thread(house: House) -> None:
    """A plain method never blocks the loop; one that returns an awaitable has it awaited; each sees the context."""
    seen: dict[str, tuple[bool, str]] = {}

    def look(name: str) -> Analysis:
        seen[name] = (threading.current_thread() is threading.main_thread(), user.get())
        return FOUND

    async def awaited(request: AnalyzeRequest) -> Analysis:
        return look("async")

    def plain(request: AnalyzeRequest) -> Analysis:
        return look("plain")

    def mixed(request: AnalyzeRequest) -> Any:
        look("mixed")
        return awaited(request)

    user.set("user-1")
    for analyze in (awaited, plain, mixed):
        assert await house.open(analyze).analyze(REQUEST, no_image) == FOUND
    assert seen == {"async": (True, "user-1"), "plain": (False, "user-1"), "mixed": (False, "user-1")}


@pytest.mark.gen_test
async def test_max_concurrency_is_the_number_of_the_providers_threads(house: House) -> None:
    """A provider that asks for two threads is never run in three, and always in two."""
    barrier, running, lock = threading.Barrier(2, timeout=5), [0, 0], threading.Lock()

    def analyze(request: AnalyzeRequest) -> Analysis:
        with lock:
            running[0] += 1
            running[1] = max(running)
        barrier.wait()
        with lock:
            running[0] -= 1
        return FOUND

    manager = house.open(analyze, max_concurrency=2)
    await asyncio.gather(*(manager.analyze(REQUEST, no_image) for _ in range(6)))
    assert running == [0, 2]


@pytest.mark.gen_test
async def test_calls_are_timed_and_errors_counted_per_plugin(house: House) -> None:
    """Operators see which plugin is slow and which fails."""

    def fail(request: AnalyzeRequest) -> Analysis:
        raise RetryableJobError("AI service unavailable")

    manager = house.open(fail)
    with pytest.raises(RetryableJobError):
        await manager.analyze(REQUEST, no_image)
    await manager.storages.check()
    assert house.count("pipeline_plugin_errors_total", "provider") == 1
    assert house.count("pipeline_plugin_seconds_count", "provider") == 1
    assert house.count("pipeline_plugin_errors_total", "storage") == 0
    assert house.count("pipeline_plugin_seconds_count", "storage") == 1


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
@pytest.mark.gen_test
async def test_a_provider_that_overruns_is_retryable_and_counted(house: House, is_async: bool) -> None:
    """The time budget ends the call, not the plugin's goodwill."""

    async def never(request: AnalyzeRequest) -> Analysis:
        await asyncio.Event().wait()
        return FOUND

    manager = house.open(never if is_async else house.hang, provider_timeout_seconds=0.1)
    with pytest.raises(RetryableJobError) as caught:
        await manager.analyze(REQUEST, no_image)
    assert caught.value.message == "AI service timed out"
    assert "analyze took longer than 0.1 s" in str(caught.value.__cause__)
    assert house.count("pipeline_plugin_overruns_total", "provider") == 1
    assert house.count("pipeline_plugin_errors_total", "provider") == 1


@pytest.mark.gen_test
async def test_stuck_threads_fail_calls_at_once_and_only_of_their_plugin(house: House) -> None:
    """When all threads of a plugin hang its calls end at once, others go on, and freed threads serve again."""
    storage = Storage()
    manager = house.open(house.hang, storage=storage, max_concurrency=2, provider_timeout_seconds=0.1)
    for _ in range(2):
        with pytest.raises(RetryableJobError, match="timed out"):
            await manager.analyze(REQUEST, no_image)
    with pytest.raises(RetryableJobError, match="AI service is busy") as caught:
        await manager.analyze(REQUEST, no_image)
    assert not caught.value.spends_attempt
    assert "all 2 threads hang" in str(caught.value.__cause__)
    await manager.storages.check()
    house.released.set()
    while house.count("pipeline_plugin_stuck", "provider"):
        await asyncio.sleep(0.01)  # the threads end on their own time; nothing signals it
    with pytest.raises(RetryableJobError, match="invalid result"):
        await manager.analyze(REQUEST, no_image, "tested")


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_a_call_still_waiting_for_a_thread_never_runs_after_its_time(house: House) -> None:
    """What nobody waits for any more is not begun, and spends no attempt; what has begun has all of its time."""
    started: list[str] = []

    def analyze(request: AnalyzeRequest) -> Analysis:
        started.append(request.request_id)
        house.hang()
        return FOUND

    settings = {"provider_timeout_seconds": 0.3, "job_timeout_seconds": 1}
    manager = house.open(analyze, max_concurrency=1, **settings)
    calls = (manager.analyze(REQUEST, no_image) for _ in range(3))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [(str(error), error.spends_attempt) for error in errors] == [  # type: ignore[union-attr]
        ("AI service timed out", True),
        ("AI service is busy", False),
        ("AI service is busy", False),
    ]
    assert house.count("pipeline_plugin_overruns_total", "provider") == 1
    house.released.set()
    while house.count("pipeline_plugin_stuck", "provider"):
        await asyncio.sleep(0.01)  # as above
    assert await manager.analyze(REQUEST, no_image, "tested") == FOUND
    assert len(started) == 2


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_waiting_for_a_thread_is_not_part_of_a_photos_time(house: House) -> None:
    """Three photos for one thread, each of which takes more than half of its time: all are done."""
    manager = house.open(lambda request: time.sleep(0.2) or FOUND, max_concurrency=1, provider_timeout_seconds=0.35)
    assert await asyncio.gather(*(manager.analyze(REQUEST, no_image) for _ in range(3))) == [FOUND] * 3


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
@pytest.mark.gen_test
async def test_cancellation_passes_through(house: House, is_async: bool) -> None:
    """A cancelled job is cancelled, not failed; nothing is counted as the plugin's error."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def never(request: AnalyzeRequest) -> Analysis:
        begun.set()
        await asyncio.Event().wait()
        return FOUND

    def hang(request: AnalyzeRequest) -> Analysis:
        loop.call_soon_threadsafe(begun.set)
        house.hang()
        return FOUND

    task = asyncio.ensure_future(house.open(never if is_async else hang).analyze(REQUEST, no_image))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert house.count("pipeline_plugin_errors_total", "provider") == 0


def raising(error: BaseException) -> Callable[[AnalyzeRequest], Any]:
    def analyze(request: AnalyzeRequest) -> Any:
        raise error

    return analyze


def raising_async(error: BaseException) -> Callable[[AnalyzeRequest], Any]:
    async def analyze(request: AnalyzeRequest) -> Any:
        raise error

    return analyze


@pytest.mark.parametrize("style", [raising, raising_async], ids=["plain", "async"])
@pytest.mark.parametrize(
    "error",
    [ValueError("a secret path"), TimeoutError(), FileNotFoundError(), SystemExit(1), asyncio.CancelledError()],
    ids=repr,
)
@pytest.mark.gen_test
async def test_anything_a_provider_raises_becomes_a_retryable_error(
    house: House, error: BaseException, style: Callable[[BaseException], Any]
) -> None:
    """Unknown is not permanent; no sys.exit or stray cancellation reaches the loop, and no detail the client."""
    with pytest.raises(RetryableJobError) as caught:
        await house.open(style(error)).analyze(REQUEST, no_image)
    assert caught.value.message == "AI service failed"
    assert caught.value.__cause__ is not None


@pytest.mark.gen_test
async def test_a_providers_own_verdict_passes_unchanged(house: House) -> None:
    """PermanentJobError and its message are for the owner."""
    refusal = PermanentJobError("No product in the image")
    with pytest.raises(PermanentJobError) as caught:
        await house.open(raising(refusal)).analyze(REQUEST, no_image)
    assert caught.value is refusal


IMAGE = ProcessedImage(b"image", "image/webp")


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (FOUND, None),
        (Analysis(), None),  # nothing found is a partial result
        (Analysis(Attribute("a", 0), Attribute("b", 1), Attribute("", 0.0), "https://a/b"), None),
        (Analysis(processed_image=IMAGE), None),
        (None, "analyze returned NoneType, not Analysis"),
        ({"brand": "Nike"}, "analyze returned dict, not Analysis"),
        (Analysis(brand=None), "brand is NoneType, not Attribute"),  # type: ignore[arg-type]
        (Analysis(model="501"), "model is str, not Attribute"),  # type: ignore[arg-type]
        (Analysis(brand=Attribute(7, 1)), "brand has a value that is no text"),  # type: ignore[arg-type]
        (Analysis(brand=Attribute("x" * 1001, 1)), "brand has a value that is no text"),
        (Analysis(brand=Attribute("\ud800", 1)), "brand has a value that is not valid Unicode"),
        (Analysis(brand=Attribute("a", 1.01)), "brand has a confidence of 1.01, not 0 to 1"),
        (Analysis(colorway=Attribute("a", -1)), "colorway has a confidence of -1, not 0 to 1"),
        (Analysis(brand=Attribute("a", math.nan)), "brand has a confidence that is no number"),
        (Analysis(brand=Attribute("a", True)), "brand has a confidence that is no number"),
        (Analysis(brand=Attribute("a", "1")), "brand has a confidence that is no number"),  # type: ignore[arg-type]
        (Analysis(processed_image_url="/media/x"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="javascript:alert(1)"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="https://a/ b"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="https://[a"), "processed_image_url is not an http(s) URL"),
        (Analysis(processed_image_url="https://a", processed_image=IMAGE), "are both set"),
        (Analysis(processed_image=ProcessedImage("x", "image/png")), "image is not"),  # type: ignore[arg-type]
        (Analysis(processed_image=ProcessedImage(b"x", "text/html")), "processed_image is not"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_find_fault_names_what_breaks_the_contract(result: Any, fault: str | None) -> None:
    """What goes into documents and events is what the contract allows, whoever wrote the provider."""
    found = find_fault(result)
    assert found is None if fault is None else found is not None and fault in found


@pytest.mark.gen_test
async def test_a_result_that_breaks_its_contract_is_tried_twice(house: House) -> None:
    """A model may stumble once; twice means it is broken. The author finds the fault in the cause."""
    manager = house.open(lambda request: Analysis(brand=Attribute("Nike", 93)))
    with pytest.raises(RetryableJobError) as caught:
        await manager.analyze(REQUEST, no_image)
    assert (caught.value.message, caught.value.max_attempts) == ("AI service sent an invalid result", 2)
    assert str(caught.value.__cause__) == "brand has a confidence of 93, not 0 to 1"


# storage


@pytest.mark.gen_test
async def test_storage_calls_reach_the_backend(house: House) -> None:
    """save gives the URL, read the bytes, delete removes, check passes."""
    storage = Storage()
    manager = house.open(storage=storage)
    saved = await manager.save("a/original", io.BytesIO(b"image"), "image/png")
    assert saved == ("tested", "https://images.example/x")
    assert await manager.read(ImageName("tested", "a/original")) == b"image"
    await manager.delete(ImageName("tested", "a/original"))
    await manager.storages.check()
    assert storage.images == {}


@pytest.mark.gen_test
async def test_a_storage_that_fails_in_any_way_is_unavailable(house: House) -> None:
    """An unknown exception, an overrun and a URL that is none become DependencyUnavailable with the cause chained."""
    storage = Storage()
    manager = house.open(storage=storage, storage_timeout_seconds=0.1)
    calls: list[Callable[[], Any]] = [
        lambda: manager.save("a", io.BytesIO(b""), "image/png"),
        lambda: manager.read(ImageName("tested", "a")),
        lambda: manager.delete(ImageName("tested", "a")),
        lambda: manager.storages.check(),
    ]
    for storage.wrong in (RuntimeError("bug"), house.hang):
        for call in calls:
            with pytest.raises(DependencyUnavailable) as caught:
                await call()
            assert caught.value.__cause__ is not None
    storage.wrong, storage.url = None, None
    with pytest.raises(DependencyUnavailable):
        await calls[0]()


@pytest.mark.gen_test
async def test_storage_errors_with_a_meaning_pass_unchanged(house: House) -> None:
    """A missing image is told from a missing storage, and a refused image is the client's error."""
    storage = Storage()
    manager = house.open(storage=storage)
    storage.wrong = FileNotFoundError("a")
    with pytest.raises(FileNotFoundError):
        await manager.read(ImageName("tested", "a"))
    with pytest.raises(DependencyUnavailable):
        await manager.save("a", io.BytesIO(b""), "image/png")
    storage.wrong = ValidationError.of("image", "refused")
    with pytest.raises(ValidationError):
        await manager.save("a", io.BytesIO(b""), "image/png")


# notifiers


@pytest.mark.gen_test
async def test_each_notifier_gets_the_event_whatever_the_others_do(house: House) -> None:
    """One that raises, one that hangs and one that changes its event neither silence, delay nor mislead the next."""
    told = asyncio.Event()
    seen: list[Notification] = []
    loop = asyncio.get_running_loop()

    def meddle(notification: Notification) -> None:
        notification.event["aiMetadata"]["brand"]["value"] = "meddled"

    def fail(notification: Notification) -> None:
        raise OSError("smtp is down")

    def tell(notification: Notification) -> None:
        seen.append(notification)
        loop.call_soon_threadsafe(told.set)

    notifiers = {"meddle": meddle, "fail": fail, "hang": house.hang, "tell": tell}
    manager = house.open(notifiers=notifiers, notifier_timeout_seconds=0.5)
    with capture_logs() as logs:
        task = asyncio.ensure_future(manager.notifiers.notify(copy.deepcopy(SUCCESS_EVENT), "user-1"))
        await told.wait()
        assert not task.done(), "the hanging notifier delayed the last one"
        await task
    (notification,) = seen
    assert (notification.event, notification.user_id, notification.rooms) == (SUCCESS_EVENT, "user-1", house.rooms)
    failed = sorted(entry["plugin"] for entry in logs if entry["event"] == "notifier_failed")
    assert failed == ["fail", "hang"]
    errors = [house.count("pipeline_plugin_errors_total", "notifier", name) for name in notifiers]
    assert errors == [0, 1, 1, 0]


@pytest.mark.gen_test
async def test_a_durable_notifier_that_fails_in_a_row_is_held(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no slot that another's events wait for; its deliveries cost nothing and say what held it."""
    calls = []

    def refuse(notification: Notification) -> None:
        calls.append(notification.delivery_id)
        raise RetryableJobError("No room left")

    notifiers = {"far": refuse, "near": lambda notification: None}
    monkeypatch.setattr(BREAKER_FAILURES, 2)
    manager = house.open(notifiers=notifiers, is_durable=True)
    assert manager.notifiers.durable == ("far", "near")
    spent = []
    for number in range(4):
        with pytest.raises(RetryableJobError, match="No room left") as caught:
            await manager.notifiers.deliver("far", SUCCESS_EVENT, "user-1", f"delivery-{number}")
        spent.append((caught.value.spends_attempt, caught.value.provider))
        await manager.notifiers.deliver("near", SUCCESS_EVENT, "user-1", "delivery")
    assert calls == ["delivery-0", "delivery-1"]
    assert spent == [(True, ""), (True, ""), (False, "far"), (False, "far")]
    assert house.count("pipeline_plugin_skipped_total", "notifier", "far") == 2
    assert house.count("pipeline_plugin_held", "notifier", "far") == 1
    assert house.count("pipeline_plugin_held", "notifier", "near") == 0
    with pytest.raises(RetryableJobError):
        await manager.notifiers.deliver("far", SUCCESS_EVENT, "user-1", "chosen by Redis", tries="far")
    assert calls[2:] == ["chosen by Redis"]


@pytest.mark.fault("E7")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RetryableJobError("Slow down", retry_after_seconds=30), "Slow down"),
        (ConnectionRefusedError("nobody listens"), "Receiver unavailable"),
    ],
    ids=["asks to wait", "cannot be reached"],
)
@pytest.mark.gen_test
async def test_a_durable_notifier_that_did_not_take_the_event_is_held_alone(
    house: House, error: Exception, message: str
) -> None:
    """At its first word; the failure is logged with plugin, cause and trace, and shown to the other processes."""

    def refuse(notification: Notification) -> None:
        raise error

    manager = house.open(notifiers={"far": refuse, "near": lambda notification: None}, is_durable=True)
    with capture_logs() as logs, pytest.raises(RetryableJobError) as caught:
        await manager.notifiers.deliver("far", SUCCESS_EVENT, "user-1", "delivery")
    assert (caught.value.message, caught.value.spends_attempt, caught.value.provider) == (message, False, "far")
    assert [line["event"] for line in logs] == ["notifier_failed", "plugin_held"]
    assert (logs[0]["plugin"], logs[0]["cause"]) == ("far", f"{type(error).__name__}: {error}")
    assert logs[0]["exc_info"]
    assert [report.provider for report in manager.notifiers.holds.reports()] == ["far"]
    assert manager.notifiers.holds.avoid().lanes == ["far"]
    await manager.notifiers.deliver("near", SUCCESS_EVENT, "user-1", "delivery")


@pytest.mark.gen_test
async def test_a_plain_notifier_that_fails_in_a_row_is_held(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event waits for a receiver that is away no longer than BREAKER_FAILURES times; the others are told."""
    told: list[str] = []

    def fail(notification: Notification) -> None:
        told.append("far")
        raise ValueError("smtp is down")

    notifiers = {"far": fail, "near": lambda notification: told.append("near")}
    monkeypatch.setattr(BREAKER_FAILURES, 2)
    manager = house.open(notifiers=notifiers)
    for _ in range(4):
        await manager.notifiers.notify(copy.deepcopy(SUCCESS_EVENT), "user-1")
    assert (told.count("far"), told.count("near")) == (2, 4)
    assert house.count("pipeline_plugin_skipped_total", "notifier", "far") == 2
    assert manager.notifiers.holds.reports() == ()


# closing


@pytest.mark.gen_test
async def test_close_closes_every_plugin_even_when_one_fails(house: House) -> None:
    """close may be async or plain, and is optional; a failing one is logged."""
    closed: list[str] = []

    class Closing(Storage):
        async def close(self) -> None:
            closed.append("storage")

    class Failing(Notifier):
        def close(self) -> None:
            closed.append("notifier")
            raise OSError("already gone")

    module = make_module(
        "tested",
        providers=[("tested", lambda: Provider(lambda request: FOUND))],
        storages=[("tested", Closing)],
        notifiers=[("tested", lambda: Failing(print))],
    )
    settings = Settings(ai_provider="tested", storage_backend="tested", notifiers=("tested",))
    manager = build(settings, module, house)
    with capture_logs() as logs:
        await manager.close()
    assert sorted(closed) == ["notifier", "storage"]
    assert [entry["event"] for entry in logs] == ["plugin_close_failed"]


def test_a_stuck_thread_does_not_keep_the_process_alive() -> None:
    """After close the interpreter exits though a plugin's call never returns."""
    script = """
        import asyncio, threading
        from pipeline.hooks.calls import BoundPlugin
        from pipeline.metrics import Metrics

        class Stuck:
            def check(self):
                threading.Event().wait()

        async def main():
            stuck = Stuck()
            plugin = BoundPlugin("storage", "stuck", stuck, {"check": stuck.check}, threads=4, metrics=Metrics())
            try:
                await plugin.call("check", 0.1)
            except Exception as error:
                print(error)
            await plugin.close()

        asyncio.run(main())
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("storage stuck: check took longer than 0.1 s\n") and "plugin_stuck" in result.stdout


def test_threads_end_after_shutdown_and_what_waits_is_cancelled() -> None:
    """A closed pool leaves no idle thread behind and refuses more work."""
    pool, go = DaemonThreads(2, "tested"), threading.Event()
    running = [pool.submit(go.wait, 10) for _ in range(2)]
    waiting = pool.submit(print)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("tested-")]
    pool.shutdown()
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)
    assert [future.result(10) for future in running] == [True, True]
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(print)


def test_threads_are_reused_before_more_are_started() -> None:
    """A plugin that is called now and then keeps one thread."""
    pool = DaemonThreads(8, "frugal")
    for _ in range(20):
        pool.submit(int).result(10)
        while not pool._idle._value:  # type: ignore[attr-defined]
            pass  # the thread reports itself idle just after the result
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("frugal-")]) == 1
    pool.shutdown()
