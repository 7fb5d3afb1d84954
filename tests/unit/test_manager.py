"""The manager of plugins: which plugins it finds and selects, and which faults stop the start."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from pipeline import __version__
from pipeline.errors import ConfigurationError
from pipeline.hooks import Analysis, Attribute
from pipeline.hooks.catalogue import Catalogue, list_plugins
from pipeline.hooks.kinds import PROVIDER
from pipeline.hooks.listing import PluginInfo
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import SUCCESS_EVENT, RecordingRooms
from tests.fake_plugins import Provider
from tests.packages import install
from tests.unit.plugin_managers import FOUND, REQUEST, ManagerFactory, build, make_module, manager_factory, no_image


@pytest.fixture
def factory(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers, closed after the test."""
    with manager_factory(io_loop) as factory:
        yield factory


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs a package with one entry point, as files on the import path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        install(tmp_path, **{name: textwrap.dedent(source)})

    return add


GOOD_PACKAGE = """
    from pipeline.hooks import hookimpl

    @hookimpl
    def register_ai_providers(settings):
        yield "guess", lambda: object()
"""


def test_listing_shows_built_ins_and_installed_packages(package: Callable[..., None]) -> None:
    """Each plugin is listed with its kind, its package and whether it is selected."""
    package("guesswork", GOOD_PACKAGE)
    infos = list_plugins(Settings(ai_service_url="http://127.0.0.1:9"))
    assert PluginInfo("guess", "provider", "guesswork", "1.0", "available") in infos
    assert PluginInfo("http", "provider", "built-in", __version__, "selected") in infos
    assert PluginInfo("local", "storage", "built-in", __version__, "selected") in infos
    assert PluginInfo("cloudinary", "storage", "built-in", __version__, "available") in infos


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_missing_package", "ModuleNotFoundError: No module named 'a_missing_package'"),
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
def test_broken_package_is_listed_with_its_reason(
    package: Callable[..., None], source: str, reason: str
) -> None:
    """A package that fails while it is loaded is listed as broken, and all other packages are loaded."""
    package("badly", source)
    package("guesswork", GOOD_PACKAGE)
    infos = list_plugins(Settings())
    (broken,) = [info for info in infos if (info.package, info.version) == ("badly", "1.0")]
    assert (broken.name, broken.state) == ("badly", "broken")
    assert reason in broken.reason
    assert {"guess", "http"} <= {info.name for info in infos if info.kind == "provider"}


def test_unknown_name_stops_the_start_and_lists_the_existing_names(package: Callable[..., None]) -> None:
    """The error suggests the right name for a mistyped one, and names each broken package with its reason."""
    package("badly", "import a_missing_package")
    settings = Settings(ai_provider="htpp", ai_service_url="http://127.0.0.1:9")
    with pytest.raises(ConfigurationError) as caught:
        Catalogue(settings, ["pipeline.plugins.ai_http"]).build(PROVIDER, "htpp", Metrics())
    expected = "AI_PROVIDER: there is no provider 'htpp'; there are: http (did you mean http?); not usable: badly ("
    assert str(caught.value).startswith(expected)
    assert "a_missing_package" in str(caught.value)


def test_factory_that_fails_stops_the_start_with_its_reason(factory: ManagerFactory) -> None:
    """A selected plugin that cannot be built is a configuration error at start, not a failed job later."""

    def fail() -> None:
        raise OSError("no model file")

    module = make_module("tested", providers=[("tested", fail)])
    with pytest.raises(ConfigurationError, match="AI_PROVIDER: provider 'tested' cannot start: no model file"):
        build(Settings(ai_provider="tested"), module, factory)


def test_package_takes_a_built_in_name_only_with_tryfirst(
    package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed package does not silently change which provider gets the photos."""
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
async def test_settings_select_provider_and_storage(tmp_path: Path) -> None:
    """With an AI service configured the provider is `http`; images are local unless Cloudinary is configured."""
    settings = Settings(ai_service_url="http://127.0.0.1:9", data_dir=tmp_path, notifiers=())
    manager = build_plugins(settings, Metrics(), RecordingRooms())
    (folder,) = await manager.storages.media_folders()
    assert (folder.backend, folder.root) == ("local", tmp_path / "media")
    saved = await manager.save("a/original", io.BytesIO(b"x"), "image/png")
    assert saved == ("local", "http://127.0.0.1:8080/media/a/original.png")
    await manager.notifiers.notify(SUCCESS_EVENT, "user-1")
    await manager.close()


def test_provider_without_threads_stops_the_start(factory: ManagerFactory) -> None:
    """max_concurrency = 0 stops the start, because every call would wait for ever."""
    provider = Provider(lambda request: FOUND)
    provider.max_concurrency = 0  # type: ignore[attr-defined]
    module = make_module("tested", providers=[("tested", lambda: provider)])
    with pytest.raises(ConfigurationError, match="its max_concurrency is less than 1"):
        build(Settings(ai_provider="tested"), module, factory)


@pytest.mark.gen_test
async def test_two_managers_have_separate_plugins(factory: ManagerFactory) -> None:
    """Each manager has its own plugins, even if their names are the same."""
    one = factory.open(lambda request: Analysis(brand=Attribute("one", 1)))
    two = factory.open(lambda request: Analysis(brand=Attribute("two", 1)))
    assert [(await each.analyze(REQUEST, no_image)).brand.value for each in (one, two)] == ["one", "two"]
