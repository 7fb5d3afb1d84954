"""Which plugins the service loads, and which ones it lists as broken, with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import list_plugins
from pipeline.hooks.kinds import PROVIDER
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from tests.fake_plugins import make_catalogue
from tests.packages import install

PACKAGE = """
from pipeline.hooks import hookimpl
{more}
@hookimpl
def register_ai_providers(settings):
    yield "{name}", lambda: object()
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that installs a package with one entry point, as files on the import path.

    The package writes a file NAME.loaded when it is imported.
    """
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, more: str = "") -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        marker = f"open({str(tmp_path / (name + '.loaded'))!r}, 'w').close()\n"
        install(tmp_path, **{name: marker + PACKAGE.format(name=name, more=more)})

    return add


def states(settings: Settings) -> dict[str, tuple[str, str]]:
    """Return the state and the reason of each plugin that is not built in."""
    return {info.name: (info.state, info.reason) for info in list_plugins(settings) if info.package != "built-in"}


def test_disabled_plugins_are_not_imported(packages: Any, tmp_path: Path) -> None:
    """The code of a package in PLUGINS_DISABLED does not run; it is listed as disabled, the others as available."""
    packages("pkgoff")
    packages("pkgon")
    settings = Settings(plugins_disabled=" pkgoff , missing")
    assert states(settings) == {"pkgoff": ("disabled", ""), "pkgon": ("available", "")}
    assert not (tmp_path / "pkgoff.loaded").exists() and (tmp_path / "pkgon.loaded").exists()
    disabled = Settings(plugins_disabled="pkgoff", ai_provider="pkgoff")
    with pytest.raises(ConfigurationError, match=r"no provider 'pkgoff'; .*not usable: pkgoff \(disabled\)"):
        make_catalogue(disabled).build(PROVIDER, "pkgoff", Metrics())


@pytest.mark.parametrize("name", ["webhook", "pipeline.plugins.notify_webhook", "plugins.notify_webhook"])
def test_built_in_plugins_are_disabled_by_name_or_module(name: str) -> None:
    """Each name of a built-in plugin disables it and only it; also the module name of version 0.1 works."""
    infos = list_plugins(Settings(plugins_disabled=name))
    assert [(info.name, info.kind) for info in infos if info.state == "disabled"] == [("webhook", "")]
    assert not [info for info in infos if info.name == "webhook" and info.state != "disabled"]


def test_safe_mode_loads_only_built_in_plugins(packages: Any, tmp_path: Path) -> None:
    """Safe mode loads no installed package; a setting that names one stops the start with this reason."""
    packages("pkgsafe")
    assert states(Settings(plugins_safe_mode=True)) == {}
    assert not (tmp_path / "pkgsafe.loaded").exists()
    settings = Settings(plugins_safe_mode=True, ai_provider="pkgsafe")
    with pytest.raises(ConfigurationError, match="PLUGINS_SAFE_MODE leaves out installed packages"):
        make_catalogue(settings).build(PROVIDER, "pkgsafe", Metrics())


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ("API_VERSION = 1", "available"),
        ("from pipeline.hooks import API_VERSION", "available"),
        ("", "available"),
        ("API_VERSION = 2", "available"),
        ("API_VERSION = 3", "broken"),
        ("API_VERSION = 0", "broken"),
        ("API_VERSION = None", "broken"),
    ],
)
def test_plugin_for_another_api_version_is_broken(packages: Any, more: str, state: str) -> None:
    """A plugin may declare its API version; a plugin for another version is not called and listed with the reason."""
    packages("pkgversion", more)
    found = states(Settings())["pkgversion"]
    assert found[0] == state
    if state == "broken":
        assert f"it was written for API version {more[-4:].strip(' =')}, this is 2" in found[1]


@pytest.mark.parametrize(
    ("hook", "meant"),
    [
        ("job_finnished", " (did you mean job_finished?)"),
        ("validate_uplaod", " (did you mean validate_upload?)"),
        ("register_notifier", " (did you mean register_notifiers?)"),
        ("quux", ""),
    ],
)
def test_mistyped_hook_is_broken_and_names_the_nearest(packages: Any, hook: str, meant: str) -> None:
    """A plugin with an unknown hook is broken at load, and no other part of it is used."""
    packages("pkghook", f"@hookimpl\ndef {hook}(settings):\n    return []\n")
    assert states(Settings())["pkghook"] == ("broken", f"there is no hook {hook}{meant}")


@pytest.mark.parametrize(
    "offer",
    ["return 7", "return [('a',)]", "return [('a', int, 3)]", "raise OSError('no disk')", "raise SystemExit(3)"],
)
def test_settings_that_cannot_be_read_break_only_their_plugin(packages: Any, offer: str) -> None:
    """A plugin with a faulty declaration of its settings is listed as broken; all other plugins load."""
    packages("pkgdeclares", f"@hookimpl\ndef register_settings():\n    {offer}\n")
    infos = list_plugins(Settings())
    assert [info.state for info in infos if info.name == "pkgdeclares" and not info.kind] == ["broken"]
    assert {"http", "local", "openai"} <= {info.name for info in infos if info.kind == "provider"}
