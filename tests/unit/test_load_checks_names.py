"""Names of plugins in settings and files: wrong names stop the start; the list of plugins shows each one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import RecordingRooms
from tests.service import ROOT
from tests.unit.one_file_plugins import GOOD, Write, infos_of, plugin_folder, provider


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes a one-file plugin into a folder and returns the folder."""
    with plugin_folder(tmp_path / "plugins", monkeypatch) as write:
        yield write


@pytest.mark.fault("P8")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plugins_disabled": "webhok"}, "PLUGINS_DISABLED: there is no plugin 'webhok' (did you mean webhook?)"),
        ({"plugins_enabled": "tryed"}, "PLUGINS_ENABLED: there is no plugin 'tryed' (did you mean tried?)"),
        ({"plugins_enabled": "xyz"}, "PLUGINS_ENABLED: there is no plugin 'xyz'"),
        ({"plugins_dir": Path("/nowhere")}, "PLUGINS_DIR: the folder /nowhere cannot be read: No such file"),
        ({"filters_required": "tried"}, "FILTERS_REQUIRED: no filter 'tried' is in use"),
        ({"filters_required": "bad"}, "FILTERS_REQUIRED: the plugin 'bad' is broken: there is no hook validate_uplod"),
    ],
)
def test_unknown_name_in_a_setting_stops_the_start(write: Write, settings: dict[str, object], message: str) -> None:
    """A mistyped name stops the start, because the setting would have no effect."""
    folder = write("tried", provider(GOOD))
    write("bad", "@hookimpl\ndef validate_uplod(upload): pass")
    given: dict[str, Any] = {"plugins_dir": folder} | settings
    with pytest.raises(ConfigurationError) as caught:
        build_plugins(Settings(**given), Metrics(), RecordingRooms())
    assert caught.value.message.startswith(message)


def test_missing_plugin_may_be_disabled(write: Write) -> None:
    """An unknown name in PLUGINS_DISABLED is only logged: the package may be removed or on another machine."""
    with capture_logs() as logs:
        Catalogue(Settings(plugins_disabled="uninstalled")).check_names()
    assert [line["plugin"] for line in logs if line["event"] == "plugin_unknown"] == ["uninstalled"]


def test_only_enabled_plugins_are_loaded(write: Write) -> None:
    """Only the plugins of PLUGINS_ENABLED are loaded; a file that begins with _ is a module for other files.

    The name of a file is the name of its plugin.
    """
    folder = write("tried", "import _shared_words\n" + provider("categories = _shared_words.WORDS\n" + GOOD))
    write("loose", "raise SystemExit('must not be loaded')")
    (folder / "_shared_words.py").write_text("WORDS = ('lego', 'sneakers')")
    try:
        tried, loose = sorted(infos_of(folder, plugins_enabled="tried"), key=lambda info: info.name, reverse=True)
    finally:
        sys.modules.pop("_shared_words", None)
    assert (tried.name, tried.kind, tried.state, loose.name, loose.state) == (
        *("tried", "provider", "available"),
        *("loose", "disabled"),
    )
    assert tried.methods == ("analyze",) and tried.limits == {"categories": ["lego", "sneakers"]}
    (warning,) = tried.warnings
    assert "'sneakers' is none of CATEGORIES" in warning and "did you mean sneaker?" in warning
    assert tried.source == str(folder / "tried.py")
    assert infos_of(folder, plugins_safe_mode=True) == []


@pytest.mark.parametrize(("name", "reason"), [("http", "rename http.py, say to my_http.py"), ("a.b", "rename it")])
def test_file_with_the_name_of_another_module_is_broken(write: Write, name: str, reason: str) -> None:
    """Such a file would replace the other module, or could not be imported."""
    (info,) = infos_of(write(name, provider(GOOD)))
    assert info.state == "broken" and reason in info.reason


def test_slow_import_is_logged(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow import is logged with its plugin, because every start and every command waits for it."""
    monkeypatch.setattr("pipeline.hooks.sources.SLOW_IMPORT_MS", -1)
    with capture_logs() as logs:
        (info,) = infos_of(write("tried", provider(GOOD)))
    assert info.import_ms is not None
    assert "tried" in [line["plugin"] for line in logs if line["event"] == "plugin_import_slow"]


def test_plugins_are_listed_as_json(write: Write, tmp_path: Path) -> None:
    """Each plugin is one JSON line with its methods, its limits and all its faults."""
    folder = write("tried", provider(GOOD + "\nrate = Rate(1, 2)\nmax_in_flight = 3"))
    write("many", "@hookimpl\ndef job_finnished(): pass\n@hookimpl\ndef job_retrying(a): pass")
    environment = os.environ | {"PLUGINS_DIR": str(folder), "DATA_DIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "run.py"), "plugins", "--json"]
    listed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    lines = {(each["kind"], each["name"]): each for each in map(json.loads, listed.stdout.splitlines())}
    tried = lines["provider", "tried"]
    assert tried["limits"] == {"max_in_flight": 3, "rate": {"n": 1, "per_seconds": 2}}
    assert (tried["methods"], tried["faults"], tried["routes"]) == (["analyze"], [], [])
    assert (len(lines[None, "many"]["faults"]), lines[None, "many"]["state"]) == (2, "broken")
    assert lines["storage", "local"]["methods"] and lines["storage", "local"]["state"] == "selected"
