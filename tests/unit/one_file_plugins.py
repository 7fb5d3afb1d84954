"""Plugins of one file in a folder, as PLUGINS_DIR names it, and what the catalogue reports of them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.listing import PluginInfo
from pipeline.settings import Settings

Write = Callable[..., Path]
HEAD = "from pipeline.hooks import PluginSettings, Rate, hookimpl\n"
PROVIDER_HOOK = """
@hookimpl
def register_ai_providers(settings):
    yield "{name}", {factory}
"""
GOOD = "async def analyze(self, request): ..."


@contextmanager
def plugin_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Yield a function that writes a one-file plugin into the folder and returns the folder; unload them at the end."""
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file changes more than once within a second

    def write(name: str, source: str, version: int | None = 2) -> Path:
        declaration = "" if version is None else f"API_VERSION = {version}\n"
        (folder / f"{name}.py").write_text(declaration + HEAD + textwrap.dedent(source))
        return folder

    yield write
    for path in folder.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)
    sys.path[:] = [each for each in sys.path if each != str(folder.resolve())]


def infos_of(folder: Path, **settings: object) -> list[PluginInfo]:
    """Return what the catalogue reports of the plugins in the folder, after it has made those that can be made."""
    catalogue = Catalogue(Settings(plugins_dir=folder, **settings))  # type: ignore[arg-type]
    catalogue.inspect_plugins()
    return [info for info in catalogue.infos() if info.package == "PLUGINS_DIR"]


def provider(body: str, factory: str = "Acme") -> str:
    """Return the source of a plugin whose provider class has this body."""
    hook = PROVIDER_HOOK.format(name="tried", factory=factory)
    return f"class Acme:\n{textwrap.indent(textwrap.dedent(body), '    ')}\n{hook}"
