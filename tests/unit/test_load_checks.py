"""What is wrong with a plugin is found when it is loaded, all at once and in its author's words; one of version 1 that
went on in spite of it goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.kinds import PROVIDER
from pipeline.hooks.listing import PluginInfo
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import RecordingRooms
from tests.service import ROOT

Write = Callable[..., Path]
HEAD = "from pipeline.hooks import PluginSettings, Rate, hookimpl\n"
PROVIDER_HOOK = """
@hookimpl
def register_ai_providers(settings):
    yield "{name}", {factory}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that puts a one-file plugin into a folder and returns the folder."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file is changed more than once within a second

    def put(name: str, source: str, version: int | None = 2) -> Path:
        said = "" if version is None else f"API_VERSION = {version}\n"
        (folder / f"{name}.py").write_text(said + HEAD + textwrap.dedent(source))
        return folder

    yield put
    for path in folder.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)
    sys.path[:] = [each for each in sys.path if each != str(folder.resolve())]


def infos_of(folder: Path, **settings: object) -> list[PluginInfo]:
    """Return what is told of the plugins in the folder, those made that can be."""
    catalogue = Catalogue(Settings(plugins_dir=folder, **settings))  # type: ignore[arg-type]
    catalogue.inspect_plugins()
    return [info for info in catalogue.infos() if info.package == "PLUGINS_DIR"]


def provider(body: str, factory: str = "Acme") -> str:
    """Return a plugin whose provider has that body."""
    hook = PROVIDER_HOOK.format(name="tried", factory=factory)
    return f"class Acme:\n{textwrap.indent(textwrap.dedent(body), '    ')}\n{hook}"


GOOD = "async def analyze(self, request): ..."
# Of modules: the source, and what is told; then whether a plugin of version 1 went on in spite of it.
MODULES = [
    (
        "def job_finished(event): pass\n@hookimpl\ndef job_started(event): pass",
        "job_finished is never called: write @hookimpl above it",
        True,
    ),
    (
        "def register_ai_providers(settings): return []",
        "register_ai_providers is never called: write @hookimpl above it",
        False,
    ),
    (
        "def anything(): pass",
        "it implements no hook: write @hookimpl above a function named as one of the hooks",
        False,
    ),
    (
        "@hookimpl(wrapper=True)\ndef validate_upload(upload):\n    return (yield)",
        "validate_upload is a wrapper, which is never called here: write @hookimpl alone",
        True,
    ),
    (
        "@hookimpl(hookwrapper=True)\ndef job_started(event):\n    yield",
        "job_started is a wrapper, which is never called here: write @hookimpl alone",
        True,
    ),
    (
        "@hookimpl\nasync def job_started(event):\n    yield",
        "job_started has a yield, so that calling it does nothing",
        True,
    ),
    (
        "@hookimpl\ndef validate_upload(uplod): pass",
        "validate_upload has no argument 'uplod': it may name upload, settings (did you mean upload?)",
        False,
    ),
    (
        "@hookimpl\ndef job_started(event, *, settings): pass",
        "job_started: settings is behind a *; it is passed by position",
        True,
    ),
    (
        "@hookimpl\nasync def register_notifiers(settings): return []",
        "register_notifiers is async: it is called before the event loop runs; write a plain def",
        False,
    ),
    (
        "@hookimpl\ndef job_started(event): pass\ndef close(loop): pass",
        "close(loop) cannot be called with no arguments: missing a required argument: 'loop'",
        True,
    ),
    (
        "@hookimpl\ndef register_notifiers(): yield 'x', object()",
        "register_notifiers yields for 'x' an object, not a function that makes one: write lambda: object()",
        False,
    ),
    (
        "@hookimpl\ndef register_notifiers(): yield 7, list",
        "register_notifiers yields 7 as a name, which is not a text",
        False,
    ),
    (
        "@hookimpl\ndef register_settings(): yield 'tried', dict",
        "register_settings yields <class 'dict'> for 'tried', which is not a subclass of PluginSettings",
        False,
    ),
    (
        provider(GOOD) + "@hookimpl\ndef register_settings():\n    yield 'tryed', PluginSettings",
        "register_settings names 'tryed', but its plugins are tried (did you mean tried?)",
        True,
    ),
]
# Of what a factory makes, likewise.
OBJECTS = [
    ("def analyse(self, request): ...", "it has no method analyze", False),
    ("def analyze(request): ...", "analyze() cannot be called with request: too many positional arguments", False),
    (
        "def analyze(self, request, photo): ...",
        "analyze(request, photo) cannot be called with request: missing a required argument: 'photo'",
        False,
    ),
    ("async def analyze(self, request): yield 1", "analyze has a yield, so that calling it does nothing", False),
    (GOOD + "\ndef check(self, url): ...", "check(url) cannot be called with no arguments", True),
    (GOOD + "\nasync def close(self, now): ...", "close(now) cannot be called with no arguments", True),
    (GOOD + "\nneeds_image = 'false'", "needs_image is 'false'; it must be True or False", True),
    (GOOD + "\nmax_concurrency = 'many'", "its max_concurrency is 'many', which is not a number", False),
    (GOOD + "\nsees = ['shoes']", "sees is a list, not a text", True),
]
# What only version 2 knows.
DECLARED = [
    ("\nrate = 3", "rate is no Rate(n, per_seconds) of two numbers above 0"),
    ("\nmax_in_flight = 0", "max_in_flight is no whole number from 1"),
    ("\nimage_formats = ('jpeg',)", "image_formats is for providers that say needs_image = True"),
    ("\nneeds_image, image_formats = True, ('png',)", "image_formats lacks jpeg, as which any other photo comes"),
    ("\nextra_fields = {'size': {'type': 'sise'}}", "extra_fields['size'] is no JSON schema"),
    ("\ndef start(self): ...", "start() cannot be called with context: too many positional arguments"),
]


@pytest.mark.fault("P8")
@pytest.mark.parametrize(("source", "told", "was_harmless"), MODULES)
def test_what_is_wrong_with_a_module_is_told(write: Write, source: str, told: str, was_harmless: bool) -> None:
    """A fault, for which the plugin is not used; of version 1 a warning where it went on until now."""
    folder = write("tried", source)
    (info, *_) = infos_of(folder)
    assert (info.state, info.faults, info.reason) == ("broken", (told,), told)
    sys.modules.pop("tried")
    for version in (None, 1):
        write("tried", source, version)
        infos = infos_of(folder)
        sys.modules.pop("tried")
        if was_harmless:
            assert "broken" not in {info.state for info in infos} and told in infos[0].warnings
        else:
            assert told in infos[0].faults


@pytest.mark.fault("P8")
@pytest.mark.parametrize(("body", "told", "was_harmless"), OBJECTS)
def test_what_is_wrong_with_what_is_made_is_told(write: Write, body: str, told: str, was_harmless: bool) -> None:
    """Nobody needs a photo to find out, nor to select the plugin; a selected one stops the start."""
    folder = write("tried", provider(body))
    (info,) = infos_of(folder)
    assert (info.name, info.state) == ("tried", "broken") and info.faults[0].startswith(told)
    settings = Settings(plugins_dir=folder, ai_provider="tried")
    with pytest.raises(ConfigurationError, match="AI_PROVIDER: provider 'tried' cannot start: ") as caught:
        build_plugins(settings, Metrics(), RecordingRooms())
    assert told in caught.value.message
    sys.modules.pop("tried")
    write("tried", provider(body), 1)
    (info,) = infos_of(folder, ai_provider="tried")
    if was_harmless:
        assert info.state == "selected" and info.warnings[0].startswith(told)
        bound = Catalogue(settings).build(PROVIDER, "tried", Metrics())
        assert "check" not in bound.methods, "it cannot be called, so it is none"
    else:
        assert info.faults[0].startswith(told)


@pytest.mark.parametrize(("more", "told"), DECLARED)
def test_what_a_plugin_of_before_calls_its_own_is_left_alone(write: Write, more: str, told: str) -> None:
    """Version 1 knows no such names; one that says nothing goes on, as if it had declared nothing."""
    folder = write("tried", provider(GOOD + more))
    (info,) = infos_of(folder)
    assert info.faults[0].startswith(told)
    for version, warnings in ((None, 1), (1, 0)):
        sys.modules.pop("tried")
        write("tried", provider(GOOD + more), version)
        (info,) = infos_of(folder, ai_provider="tried")
        assert (info.state, len(info.warnings), info.limits) == ("selected", warnings, {})
        bound = Catalogue(Settings(plugins_dir=folder, ai_provider="tried")).build(PROVIDER, "tried", Metrics())
        assert bound.methods == ("analyze",)


@pytest.mark.fault("P8")
def test_all_faults_are_told_at_once(write: Write) -> None:
    """Of a module in one list, of what it makes in another: nobody mends one to be told of the next."""
    more = "def job_started(event): pass\n@hookimpl\ndef job_retrying(a, b): pass"
    folder = write("many", f"@hookimpl\ndef job_finnished(): pass\n{more}")
    write("tried", provider("max_concurrency = 0\nrate = 0\ndef analyze(self): ...\ndurable = 1", "Acme"))
    many, tried = infos_of(folder)
    assert [fault.split()[0] for fault in many.faults] == ["there", "job_retrying", "job_retrying", "job_started"]
    assert [fault.split()[0] for fault in tried.faults] == ["analyze()", "durable", "its", "rate"]
    with capture_logs() as logs, pytest.raises(ConfigurationError) as caught:
        build_plugins(Settings(plugins_dir=folder, ai_provider="tried"), Metrics(), RecordingRooms())
    assert all(fault in caught.value.message for fault in tried.faults)
    (line,) = [line for line in logs if line["event"] == "plugin_broken"]
    assert (line["plugin"], len(line["faults"])) == ("many", 4), "nobody selected it, and it is told all the same"


@pytest.mark.fault("P8")
def test_one_name_of_two_plugins_is_told_of_both(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one was meant cannot be known: the one that is used says so too."""
    folder = write("tried", provider(GOOD))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "other_module.py").write_text(HEAD + provider(GOOD))
    about = tmp_path / "other-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[ai_queue_pipeline]\ntried = other_module\n")
    infos = [info for info in Catalogue(Settings(plugins_dir=folder)).infos() if info.name == "tried"]
    assert sorted(info.state for info in infos) == ["available", "broken"]
    for info in infos:
        told = " ".join((*info.warnings, *info.faults))
        assert "PLUGINS_DIR and other" in told or "other and PLUGINS_DIR" in told


@pytest.mark.fault("P8")
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"plugins_disabled": "webhok"}, "PLUGINS_DISABLED: there is no plugin 'webhok' (did you mean webhook?)"),
        ({"plugins_enabled": "tryed"}, "PLUGINS_ENABLED: there is no plugin 'tryed' (did you mean tried?)"),
        ({"plugins_enabled": "xyz"}, "PLUGINS_ENABLED: there is no plugin 'xyz'"),
        ({"plugins_dir": Path("/nowhere")}, "PLUGINS_DIR: the folder /nowhere cannot be read: No such file"),
        ({"filters_required": "tried"}, "FILTERS_REQUIRED: no filter 'tried' is in use"),
        ({"filters_required": "bad"}, "FILTERS_REQUIRED: the plugin 'bad' is broken: there is no hook validate_uplod"),
    ],
)
def test_names_that_are_none_stop_the_start(write: Write, settings: dict[str, object], told: str) -> None:
    """A name with a slip in it would do nothing."""
    folder = write("tried", provider(GOOD))
    write("bad", "@hookimpl\ndef validate_uplod(upload): pass")
    given: dict[str, Any] = {"plugins_dir": folder} | settings
    with pytest.raises(ConfigurationError) as caught:
        build_plugins(Settings(**given), Metrics(), RecordingRooms())
    assert caught.value.message.startswith(told)


def test_a_name_that_is_not_installed_here_may_stay_disabled(write: Write) -> None:
    """Many machines share their settings, or a package was removed: it is not loaded, as was wished."""
    with capture_logs() as logs:
        Catalogue(Settings(plugins_disabled="uninstalled")).check_names()
    assert [line["plugin"] for line in logs if line["event"] == "plugin_unknown"] == ["uninstalled"]


def test_only_enabled_plugins_are_loaded_and_a_file_is_named_as_its_plugin(write: Write) -> None:
    """Beside the built-in ones; a file that begins with _ is for the others to import."""
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


@pytest.mark.parametrize(("name", "told"), [("http", "rename http.py, say to my_http.py"), ("a.b", "rename it")])
def test_a_file_must_not_have_another_modules_name(write: Write, name: str, told: str) -> None:
    """It would be loaded in that one's place, or never."""
    (info,) = infos_of(write(name, provider(GOOD)))
    assert info.state == "broken" and told in info.reason


def test_a_slow_import_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start and every command waits for it."""
    monkeypatch.setattr("pipeline.hooks.sources.SLOW_IMPORT_MS", -1)
    with capture_logs() as logs:
        (info,) = infos_of(write("tried", provider(GOOD)))
    assert info.import_ms is not None
    assert "tried" in [line["plugin"] for line in logs if line["event"] == "plugin_import_slow"]


def test_plugins_are_listed_as_json(write: Write, tmp_path: Path) -> None:
    """One line each, with the methods, the limits and all that is wrong."""
    folder = write("tried", provider(GOOD + "\nrate = Rate(1, 2)\nmax_in_flight = 3"))
    write("many", "@hookimpl\ndef job_finnished(): pass\n@hookimpl\ndef job_retrying(a): pass")
    environment = os.environ | {"PLUGINS_DIR": str(folder), "DATA_DIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "run.py"), "plugins", "--json"]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    lines = {(each["kind"], each["name"]): each for each in map(json.loads, told.stdout.splitlines())}
    tried = lines["provider", "tried"]
    assert tried["limits"] == {"max_in_flight": 3, "rate": {"n": 1, "per_seconds": 2}}
    assert (tried["methods"], tried["faults"], tried["routes"]) == (["analyze"], [], [])
    assert (len(lines[None, "many"]["faults"]), lines[None, "many"]["state"]) == (2, "broken")
    assert lines["storage", "local"]["methods"] and lines["storage", "local"]["state"] == "selected"


# secrets from files


def settings_of(tmp_path: Path, **variables: str) -> Settings:
    """Return settings with these variables; FILE in a value stands for the folder."""
    return Settings().with_plugin_variables({n: v.replace("FILE", str(tmp_path)) for n, v in variables.items()})


@pytest.mark.fault("P8")
def test_a_setting_of_a_plugin_comes_from_a_file(tmp_path: Path) -> None:
    """As containers are given their secrets; the line end that editors put there is none of it."""
    from tests.unit.test_plugin_settings import AcmeSettings

    (tmp_path / "key").write_bytes(b" the key \r\n")
    given = settings_of(tmp_path, PLUGIN_ACME_API_KEY_FILE="FILE/key")
    assert given.plugin("acme", AcmeSettings).api_key.get_secret_value() == " the key "
    assert given.is_given("acme", "api_key") and not given.is_given("acme", "url")

    class Own(AcmeSettings):
        key_file: str = ""
        key: str = ""

    own = settings_of(tmp_path, PLUGIN_ACME_API_KEY="1", PLUGIN_ACME_KEY_FILE="FILE/key").plugin("acme", Own)
    assert (own.key_file, own.key) == (f"{tmp_path}/key", ""), "a setting of that very name comes first"


@pytest.mark.fault("P8")
@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {"PLUGIN_ACME_API_KEY": "s3cret", "PLUGIN_ACME_API_KEY_FILE": "FILE/key"},
            "PLUGIN_ACME_API_KEY and PLUGIN_ACME_API_KEY_FILE are both set: remove one",
        ),
        (
            {"PLUGIN_ACME_API_KEY_FILE": "FILE/none"},
            "PLUGIN_ACME_API_KEY_FILE: the file cannot be read: No such file or directory",
        ),
        ({"PLUGIN_ACME_API_KEY_FILE": "FILE"}, "PLUGIN_ACME_API_KEY_FILE: the file cannot be read: Is a directory"),
        ({"PLUGIN_ACME_API_KEY_FILE": "FILE/empty"}, "PLUGIN_ACME_API_KEY_FILE: the file is empty"),
        (
            {"PLUGIN_ACME_API_KEY_FILE": "FILE/bytes"},
            "PLUGIN_ACME_API_KEY_FILE: the file cannot be read: it is not UTF-8",
        ),
        ({"PLUGIN_ACME_API_KEY_FILE": "/dev/zero"}, "PLUGIN_ACME_API_KEY_FILE: the file has more than 65536 bytes"),
    ],
)
def test_a_file_that_gives_no_setting_is_told(tmp_path: Path, variables: dict[str, str], told: str) -> None:
    """Once, without the value; a setting that is wanted is not said to be missing as well."""
    from tests.unit.test_plugin_settings import AcmeSettings

    for name, content in (("key", b"s3cret"), ("empty", b"\n"), ("bytes", b"\xff")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        settings_of(tmp_path, **variables).plugin("acme", AcmeSettings)
    assert caught.value.message == told
