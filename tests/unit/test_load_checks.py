"""The checks at load find all faults of a plugin at once, and name the functions and attributes of its author.

A plugin of API version 1 that worked in spite of a fault still works.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.kinds import PROVIDER
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import RecordingRooms
from tests.unit.one_file_plugins import GOOD, HEAD, Write, infos_of, plugin_folder, provider


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes a one-file plugin into a folder and returns the folder."""
    with plugin_folder(tmp_path / "plugins", monkeypatch) as write:
        yield write


# Faulty modules: the source, the reported fault, and whether a plugin of version 1 worked in spite of it.
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
# Faulty provider classes, with the same three columns.
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
# Attributes that only version 2 defines.
DECLARED = [
    ("\nrate = 3", "rate is no Rate(n, per_seconds) of two numbers above 0"),
    ("\nmax_in_flight = 0", "max_in_flight is no whole number from 1"),
    ("\nimage_formats = ('jpeg',)", "image_formats is for providers that say needs_image = True"),
    ("\nneeds_image, image_formats = True, ('png',)", "image_formats lacks jpeg, as which any other photo comes"),
    ("\nextra_fields = {'size': {'type': 'sise'}}", "extra_fields['size'] is no JSON schema"),
    ("\ndef start(self): ...", "start() cannot be called with context: too many positional arguments"),
]


@pytest.mark.fault("P8")
@pytest.mark.parametrize(("source", "fault", "was_harmless"), MODULES)
def test_fault_of_a_module_is_reported(write: Write, source: str, fault: str, was_harmless: bool) -> None:
    """A plugin with a fault is not used; in version 1 the fault is a warning if the plugin worked in spite of it."""
    folder = write("tried", source)
    (info, *_) = infos_of(folder)
    assert (info.state, info.faults, info.reason) == ("broken", (fault,), fault)
    sys.modules.pop("tried")
    for version in (None, 1):
        write("tried", source, version)
        infos = infos_of(folder)
        sys.modules.pop("tried")
        if was_harmless:
            assert "broken" not in {info.state for info in infos} and fault in infos[0].warnings
        else:
            assert fault in infos[0].faults


@pytest.mark.fault("P8")
@pytest.mark.parametrize(("body", "fault", "was_harmless"), OBJECTS)
def test_fault_of_a_provider_is_reported(write: Write, body: str, fault: str, was_harmless: bool) -> None:
    """The fault is found without a photo and before the plugin is selected; a selected plugin stops the start."""
    folder = write("tried", provider(body))
    (info,) = infos_of(folder)
    assert (info.name, info.state) == ("tried", "broken") and info.faults[0].startswith(fault)
    settings = Settings(plugins_dir=folder, ai_provider="tried")
    with pytest.raises(ConfigurationError, match="AI_PROVIDER: provider 'tried' cannot start: ") as caught:
        build_plugins(settings, Metrics(), RecordingRooms())
    assert fault in caught.value.message
    sys.modules.pop("tried")
    write("tried", provider(body), 1)
    (info,) = infos_of(folder, ai_provider="tried")
    if was_harmless:
        assert info.state == "selected" and info.warnings[0].startswith(fault)
        bound = Catalogue(settings).build(PROVIDER, "tried", Metrics())
        assert "check" not in bound.methods, "a method that cannot be called is not used"
    else:
        assert info.faults[0].startswith(fault)


@pytest.mark.parametrize(("more", "fault"), DECLARED)
def test_names_of_version_2_are_ignored_in_older_plugins(write: Write, more: str, fault: str) -> None:
    """A plugin of version 1, or without a version, works as if it had not declared these attributes."""
    folder = write("tried", provider(GOOD + more))
    (info,) = infos_of(folder)
    assert info.faults[0].startswith(fault)
    for version, warnings in ((None, 1), (1, 0)):
        sys.modules.pop("tried")
        write("tried", provider(GOOD + more), version)
        (info,) = infos_of(folder, ai_provider="tried")
        assert (info.state, len(info.warnings), info.limits) == ("selected", warnings, {})
        bound = Catalogue(Settings(plugins_dir=folder, ai_provider="tried")).build(PROVIDER, "tried", Metrics())
        assert bound.methods == ("analyze",)


@pytest.mark.fault("P8")
def test_all_faults_are_reported_at_once(write: Write) -> None:
    """One list has all faults of a module, another list all faults of its provider, so one repair is enough."""
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
    assert (line["plugin"], len(line["faults"])) == ("many", 4), "also if the plugin is not selected"


@pytest.mark.fault("P8")
def test_name_of_two_plugins_is_a_fault_of_both(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both plugins name the two packages, also the one that is used: the operator may mean either."""
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
        messages = " ".join((*info.warnings, *info.faults))
        assert "PLUGINS_DIR and other" in messages or "other and PLUGINS_DIR" in messages
