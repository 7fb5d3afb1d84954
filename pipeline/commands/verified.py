"""The child process of `plugins verify`: runs the suite on one plugin and reports each step as a line of JSON.

A process of its own, because a plugin may hang, crash or end it; verifying.py, which starts it, then says so.
Messages: {"fault": why there is nothing to verify} | {"about": what it is} | {"begins": title} |
{"finding": line, "test": title} | {"ends": title, "seconds"} | {"left_out": title, "why"} | {"done": true}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from pipeline import settings as settings_module
from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import (
    FILTERS,
    HOOK,
    KINDS,
    NOTIFIER,
    OBSERVERS,
    PROVIDER,
    STORAGE,
    Catalogue,
    Kind,
)
from pipeline.hooks.load_checks import nearest
from pipeline.settings import Settings

Tell = Callable[[dict[str, Any]], None]
SUITES = {PROVIDER: "TestProvider", STORAGE: "TestStorage", NOTIFIER: "TestNotifier"}
IN_FORCE = {
    PROVIDER: "provider_timeout_seconds",
    STORAGE: "storage_timeout_seconds",
    NOTIFIER: "notifier_timeout_seconds",
    None: "hook_timeout_seconds",
}
WARNINGS = {
    PROVIDER: "analyzes photos some twenty times",
    STORAGE: "writes and deletes images under suite/",
    NOTIFIER: "delivers some twenty-five invented events, for real, or some hundred in batches",
    None: "shows it invented uploads, results and jobs",
}
# Of one call; a plugin that needs longer holds one of few job slots.
CALL_SECONDS_AT_MOST = 20.0


def main() -> None:
    """Verify what the arguments say: name, kind or "", seconds."""
    name, kind_name, seconds = sys.argv[1:]
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    # Whatever the plugin prints past pytest must not get between the lines.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(name, kind_name or None, float(seconds), lambda message: print(json.dumps(message), file=reports, flush=True))
    reports.flush()
    os._exit(0)  # threads that hang must not keep the process


def run(name: str, kind_name: str | None, seconds: float, tell: Tell) -> None:
    """Verify the plugin within about so many seconds."""
    try:
        import pytest  # noqa: F401
    except ImportError:
        tell({"fault": "The suites run on pytest, which is missing: pip install pytest"})
        return
    from pipeline.testing.surroundings import Shared

    before = Shared.now()
    try:
        settings = as_served(settings_module.load())
        catalogue = Catalogue(settings)
        catalogue.check_names()
        kind = _choose(catalogue, name, kind_name)
        # Before pytest starts: settings that are wrong are one line and not a test that failed.
        made = catalogue.make(kind, name) if kind else catalogue.hook_plugin(name)
    except ConfigurationError as error:
        tell({"fault": error.message})
        return
    tell({"about": f"The suite {WARNINGS[kind]}: {kind.name if kind else HOOK} {name}"})
    for change in Shared.now().changes(before):
        tell({"finding": f"when it is loaded, {change}", "test": "load"})
    gc.freeze()  # what is there by now need not be looked through for what the plugin leaves
    _run_suites(name, kind, settings, _suites(kind, made), monotonic() + seconds, seconds, tell)
    tell({"done": True})


def as_served(settings: Settings) -> Settings:
    """Return the settings as a server has them, which always knows under which URL others reach it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.model_copy(update={"public_url": settings.public_url or f"http://{host}:{settings.port}"})


def _choose(catalogue: Catalogue, name: str, kind_name: str | None) -> Kind | None:
    """Return the one kind that is meant, None for observers and filters; ConfigurationError says what there is."""
    kinds = [kind for kind in catalogue.kinds_of(name) if kind_name in (None, kind.name)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise ConfigurationError(f"There is {' and '.join(f'a {each.name} {name!r}' for each in kinds)}: use --kind")
    infos = catalogue.infos()
    wanted = {kind_name} if kind_name else {*(kind.name for kind in KINDS), HOOK}
    for info in infos:
        # "" is the kind of a package that could not be loaded at all.
        if info.name == name and info.kind in wanted | {""}:
            if info.kind == HOOK and info.state == "selected":
                return None
            if info.kind == HOOK and info.state == "available":
                raise ConfigurationError(f"The plugin {name!r} is not active as it is set up: is_active is False")
            raise ConfigurationError(f"The plugin {name!r} is {info.state}. {info.reason}".rstrip(". "))
    names = sorted({info.name for info in infos if info.kind in wanted})
    there_are = f"{', '.join(names)}{nearest(name, names)}"
    raise ConfigurationError(f"There is no {kind_name or 'plugin'} {name!r}; there are: {there_are}")


def _suites(kind: Kind | None, plugin: object) -> list[str]:
    if kind is not None:
        return [SUITES[kind]]
    has = [
        suite
        for suite, hooks in (("TestFilter", FILTERS), ("TestObserver", OBSERVERS))
        if any(callable(getattr(plugin, hook, None)) for hook in hooks)
    ]
    return has


def _run_suites(
    name: str, kind: Kind | None, settings: Settings, suites: list[str], ends_at: float, seconds: float, tell: Tell
) -> None:
    import pytest

    call_seconds = min(CALL_SECONDS_AT_MOST, seconds / 3)
    setting = IN_FORCE[kind]

    class Configured:
        """A pytest plugin: what conformance.py lacks."""

        @pytest.fixture
        def configured_settings(self) -> Settings:
            return settings

        @pytest.fixture
        def configured(self, loop: Any) -> Iterator[object]:
            catalogue = Catalogue(settings)
            yield catalogue.make(kind, name) if kind else catalogue.hook_plugin(name)
            loop.run_until_complete(catalogue.sandbox.close())

        @pytest.fixture(autouse=True)
        def _hurry(self, request: pytest.FixtureRequest) -> None:
            suite: Any = request.instance
            suite.call_seconds, suite.gives_up = call_seconds, True
            suite.in_force = setting.upper(), getattr(settings, setting)
            suite.ends_at = ends_at - call_seconds - 3

        def pytest_runtest_logstart(self, nodeid: str) -> None:
            tell({"begins": _title(nodeid)})

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            tell({"ends": _title(nodeid)})

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
            report = yield
            error = call.excinfo.value if call.excinfo else None
            if report.skipped:
                tell({"left_out": _title(item.nodeid), "why": str(error)})
            elif report.failed and error is not None:
                for line in _lines(error):
                    tell({"finding": line, "test": _title(item.nodeid)})
            return report

    # Neither the author's configuration nor what else is installed has a say.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    folder = Path(__file__).parent
    options = ["-q", "--tb=no", "--no-header", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
    # Else each folder above is looked through.
    options += ["-p", "no:faulthandler", "--confcutdir", str(folder)]
    file = folder / "conformance.py"
    pytest.main([*options, *(f"{file}::{suite}" for suite in suites)], plugins=[Configured()])


def _lines(error: BaseException) -> list[str]:
    import pytest

    from pipeline.testing.findings import told

    if isinstance(error, pytest.fail.Exception):
        return str(error).splitlines()
    return [f"the test ended with {told(error)}"]


def _title(nodeid: str) -> str:
    return nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")


if __name__ == "__main__":
    main()
