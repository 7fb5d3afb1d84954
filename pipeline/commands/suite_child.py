"""The child process of `plugins verify`: runs the suite on one plugin and reports each step as a line of JSON.

It is a process of its own, because a plugin may hang, crash or end it. verifying.py starts it and reports such an end.
Messages: {"fault": why nothing can be verified} | {"about": what the suite does} | {"begins": title of a test} |
{"finding": line, "test": title} | {"ends": title} | {"left_out": title, "why"} | {"calls": {method: number}} |
{"note": text} | {"done": true}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from pipeline import settings as settings_module
from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.kinds import FILTERS, HOOK, KINDS, NOTIFIER, OBSERVERS, PROVIDER, STORAGE, Kind
from pipeline.hooks.load_checks import nearest
from pipeline.settings import Settings, plugin_variable

Send = Callable[[dict[str, Any]], None]
SUITES = {PROVIDER: "TestProvider", STORAGE: "TestStorage", NOTIFIER: "TestNotifier"}
WARNINGS = {
    PROVIDER: "analyzes photos, one of each category and at most some dozen more",
    STORAGE: "writes and deletes images under suite/",
    NOTIFIER: "delivers some twenty-five invented events, for real, or some hundred in batches",
    None: "shows it invented uploads, results and jobs",
}


def main() -> None:
    """Verify the plugin of the arguments: name, kind or "", seconds."""
    name, kind_name, seconds = sys.argv[1:]
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    # Output of the plugin that pytest does not catch must not mix with the messages.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(name, kind_name or None, float(seconds), lambda message: print(json.dumps(message), file=reports, flush=True))
    reports.flush()
    os._exit(0)  # threads that hang must not keep the process


def run(name: str, kind_name: str | None, seconds: float, send: Send) -> None:
    """Verify the plugin within about so many seconds."""
    try:
        import pytest  # noqa: F401
    except ImportError:
        send({"fault": "The suites run on pytest, which is missing: pip install pytest"})
        return
    from pipeline.commands.suite_run import SuiteRun
    from pipeline.testing.process_state import ProcessState

    before = ProcessState.now()
    try:
        settings = as_served(settings_module.load())
        catalogue = Catalogue(settings)
        catalogue.check_names()
        kind = _choose(catalogue, name, kind_name)
        # Before pytest starts, so that wrong settings give one line and no failed test.
        made = catalogue.make(kind, name) if kind else catalogue.hook_plugin(name)
    except ConfigurationError as error:
        send({"fault": error.message})
        return
    send({"about": f"The suite {WARNINGS[kind]}: {kind.name if kind else HOOK} {name}"})
    for change in ProcessState.now().changes(before):
        send({"finding": f"when it is loaded, {change}", "test": "load"})
    gc.freeze()  # the search for objects that the plugin leaves need not look at these
    SuiteRun(name, kind, catalogue, settings, seconds, send).run(_suites(kind, made))
    if note := not_set_up(name, catalogue, settings):
        send({"note": note})
    send({"done": True})


def not_set_up(name: str, catalogue: Catalogue, settings: Settings) -> str:
    """Return a note when none of the plugin's settings is set, so that it may have called no service; "" otherwise."""
    own = catalogue.own_settings().get(name)
    if own is None or any(settings.is_given(name, field) for field in own.model_fields):
        return ""
    try:
        in_force = settings.plugin(name, own)
    except ConfigurationError:
        return ""
    empty = [plugin_variable(name, field) for field in own.model_fields if getattr(in_force, field) == ""]
    return f"not set: {', '.join(empty)}; services that need these settings were not called" if empty else ""


def as_served(settings: Settings) -> Settings:
    """Return the settings as `serve` completes them: with the URL under which others reach the service."""
    return settings.model_copy(update={"public_url": settings.served_at})


def _choose(catalogue: Catalogue, name: str, kind_name: str | None) -> Kind | None:
    """Return the kind of the plugin, None for observers and filters; ConfigurationError names the possible ones."""
    kinds = [kind for kind in catalogue.kinds_of(name) if kind_name in (None, kind.name)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise ConfigurationError(f"There is {' and '.join(f'a {each.name} {name!r}' for each in kinds)}: use --kind")
    infos = catalogue.infos()
    wanted = {kind_name} if kind_name else {*(kind.name for kind in KINDS), HOOK}
    for info in infos:
        # "" is the kind of a package that could not be loaded.
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
    return [
        suite
        for suite, hooks in (("TestFilter", FILTERS), ("TestObserver", OBSERVERS))
        if any(callable(getattr(plugin, hook, None)) for hook in hooks)
    ]


if __name__ == "__main__":
    main()
