"""The plugin authors' commands: `plugins` lists what there is, verifies one, prints the reference. Nothing here talks
to a running service.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.table import Table

from pipeline import settings as settings_module
from pipeline.commands.reference import reference_lines
from pipeline.commands.shown import shown, stderr, stdout
from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import HOOK, KINDS, NOTIFIER, PROVIDER, STORAGE, Catalogue, Kind, list_plugins, nearest

SUITES = {PROVIDER: "TestProvider", STORAGE: "TestStorage", NOTIFIER: "TestNotifier"}
WARNINGS = {
    PROVIDER: "analyzes a photo of a sneaker some ten times",
    STORAGE: "writes and deletes images under suite/",
    NOTIFIER: "delivers some twenty-five invented events, for real",
}


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """Print every plugin: its name, kind, package, version and state; or do what a command says."""
    if ctx.invoked_subcommand is not None:
        return
    table = Table("name", "kind", "package", "version", "state", "reason")
    for info in list_plugins(settings_module.load()):
        table.add_row(*map(shown, (info.name, info.kind, info.package, info.version, info.state, info.reason)))
    stdout.print(table)


@plugins.command()
@click.argument("name")
@click.option("--kind", "kind_name", type=click.Choice([kind.name for kind in KINDS]), help="Which, if there are two.")
def verify(name: str, kind_name: str | None) -> None:
    """Run the conformance suite on a plugin as it is configured, for real; exit code 1 when it fails."""
    try:
        import pytest  # noqa: F401
    except ImportError:
        raise ConfigurationError("The suites run on pytest, which is missing: pip install pytest") from None
    settings = settings_module.load()
    catalogue = Catalogue(settings)
    catalogue.check_variables()
    kind = _choose(catalogue, name, kind_name)
    # Before pytest starts: settings that are wrong are one line and not a test that failed.
    first = catalogue.make(kind, name)
    stderr.print(f"The suite {WARNINGS[kind]}: {kind.name} {shown(name)}", highlight=False)
    sys.exit(_run_suite(kind, first, lambda: catalogue.make(kind, name)))


@plugins.command()
def reference() -> None:
    """Print what docs/plugins.md has of hooks, Protocols and settings, as Markdown."""
    print("\n".join(reference_lines()))


def _choose(catalogue: Catalogue, name: str, kind_name: str | None) -> Kind:
    """Return the one kind that is meant; ConfigurationError says what there is."""
    kinds = [kind for kind in catalogue.kinds_of(name) if kind_name in (None, kind.name)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise ConfigurationError(f"There is {' and '.join(f'a {each.name} {name!r}' for each in kinds)}: use --kind")
    infos = catalogue.infos()
    wanted = {kind_name or kind.name for kind in KINDS}
    for info in infos:
        # "" is the kind of a package that could not be loaded at all.
        if info.name == name and info.kind in wanted | {""}:
            raise ConfigurationError(f"The plugin {name!r} is {info.state}. {info.reason}".rstrip(". "))
        if info.name == name and info.kind == HOOK and kind_name is None:
            raise ConfigurationError(f"{name!r} observes or filters, for which there is no suite")
    names = sorted({info.name for info in infos if info.kind in wanted})
    there_are = f"{', '.join(names)}{nearest(name, names)}"
    raise ConfigurationError(f"There is no {kind_name or 'plugin'} {name!r}; there are: {there_are}")


def _run_suite(kind: Kind, first: object, make: Callable[[], object]) -> int:
    """Return 0 when the plugin passes, else 1."""
    import pytest

    made = [first]

    class Configured:
        """A pytest plugin: what conformance.py lacks."""

        def pytest_configure(self) -> None:
            pytest.register_assert_rewrite("pipeline.testing")  # or a failure would not say what was there instead

        @pytest.fixture
        def plugin(self) -> object:
            return made.pop() if made else make()

    # Neither the author's configuration nor what else is installed has a say. Python's own traces: pytest's print
    # arguments, which may be secrets, and end it with "AST constructor recursion depth mismatch" when a plugin has
    # threads that go on (Python 3.11.4 to 3.11.7, python/cpython#106905).
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    folder = Path(__file__).parent
    options = ["-v", "--tb=native", "--no-header", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
    code = pytest.main([*options, f"{folder / 'conformance.py'}::{SUITES[kind]}"], plugins=[Configured()])
    return 0 if code == pytest.ExitCode.OK else 1
