"""The sources of plugins: built-in modules, installed packages (entry points) and the files in PLUGINS_DIR.

A source is listed without an import; `load` imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import structlog

from pipeline import __version__
from pipeline.errors import ConfigurationError
from pipeline.hooks import specs

if TYPE_CHECKING:
    from pipeline.settings import Settings

ENTRY_POINT_GROUP = "ai_queue_pipeline"
BUILT_IN, ONE_FILE = "built-in", "PLUGINS_DIR"
# Of one import: a longer one slows down every start, also of commands.
SLOW_IMPORT_MS = 1000
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """The module or package that a plugin comes from.

    name: of its entry point, file or built-in module.
    package: the distribution, or one of BUILT_IN and ONE_FILE.
    module: the name of the imported module.
    path: of its file, "" while unknown.
    load: imports it and returns the module or object with its hooks.
    api_version: the API version it was written for, once it is loaded.
    is_strict: it declares API version 2 or later.
    import_ms: how long its import took.
    """

    name: str
    package: str
    version: str
    module: str = ""
    path: str = ""
    load: Callable[[], Any] = field(default=dict, compare=False, repr=False)
    api_version: int = specs.API_VERSION
    is_strict: bool = False
    import_ms: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names for PLUGINS_DISABLED: its name; for a built-in also its module, by its present and former name."""
        if self.package != BUILT_IN:
            return (self.name,)
        return (self.name, self.module, self.module.removeprefix("pipeline."))


def missing_packages(module: object, source: Source) -> str:
    """Return how to install the missing packages of a built-in plugin, "" when none is missing. Imports none of them.

    Such a module has EXTRA, the name of the extra of our distribution, and PACKAGES, the packages it imports.
    """
    if source.package != BUILT_IN:
        return ""
    missing = [name for name in getattr(module, "PACKAGES", ()) if importlib.util.find_spec(name) is None]
    extra = getattr(module, "EXTRA", "")
    return f"needs {', '.join(missing)}: pip install 'ai-queue-pipeline[{extra}]'" if missing else ""


def loaded(source: Source) -> tuple[Any, Source]:
    """Return the plugin's module, or the object that its entry point names, and its source with all fields.

    Any exception of the import, SystemExit too; ValueError when it was written for an unknown API version.
    """
    started_at = perf_counter()
    plugin = source.load()
    import_ms = round((perf_counter() - started_at) * 1000)
    if import_ms > SLOW_IMPORT_MS:
        log.warning("plugin_import_slow", plugin=source.name, package=source.package, ms=import_ms)
    declaring = plugin if hasattr(plugin, "API_VERSION") else sys.modules.get(source.module, plugin)
    version = getattr(declaring, "API_VERSION", specs.API_VERSION)
    if version not in specs.API_VERSIONS:
        is_newer = isinstance(version, int) and version > specs.API_VERSION
        cure = ": install a newer ai-queue-pipeline or an older version of it" if is_newer else ""
        raise ValueError(f"it was written for API version {version!r}, this is {specs.API_VERSION}{cure}")
    path = source.path or getattr(plugin, "__file__", None) or getattr(sys.modules.get(source.module), "__file__", "")
    return plugin, replace(
        source,
        api_version=int(version),
        is_strict=hasattr(declaring, "API_VERSION") and version > 1,
        import_ms=import_ms,
        path=str(path or ""),
    )


def find_sources(settings: Settings, modules: Sequence[str]) -> Iterator[Source]:
    """Yield all sources in the order of their registration: pluggy calls the last one first.

    modules: the built-in ones.
    ConfigurationError when the folder PLUGINS_DIR cannot be read.
    """
    if not settings.plugins_safe_mode:
        others = [*map(_packaged, entry_points(group=ENTRY_POINT_GROUP)), *_one_file(settings.plugins_dir)]
        yield from sorted(others, key=lambda each: each.name, reverse=True)
    for module in modules:
        name = module.rpartition(".")[2].partition("_")[2] or module
        yield Source(name, BUILT_IN, __version__, module, load=partial(importlib.import_module, module))


def all_plugin_names(settings: Settings, modules: Sequence[str]) -> list[str]:
    """Return the names that are valid in PLUGINS_DISABLED, whatever PLUGINS_SAFE_MODE is."""
    sources = [*find_sources(settings.model_copy(update={"plugins_safe_mode": False}), modules)]
    return sorted({name for each in sources for name in each.names})


def _packaged(entry_point: EntryPoint) -> Source:
    package = entry_point.dist
    name, version = (package.name, package.version) if package else ("unknown package", "")
    return Source(entry_point.name, name, version, entry_point.module, load=entry_point.load)


def _one_file(folder: Path | None) -> Iterator[Source]:
    if folder is None:
        return
    try:
        paths = sorted(path for path in folder.resolve(strict=True).iterdir() if path.suffix == ".py")
    except OSError as error:
        raise ConfigurationError(f"PLUGINS_DIR: the folder {folder} cannot be read: {error.strerror}") from None
    for path in paths:
        if not path.name.startswith(("_", ".")) and not path.is_dir():
            yield Source(path.stem, ONE_FILE, "", path.stem, str(path), partial(_load_file, path))


def _load_file(path: Path) -> Any:
    """Import the file by its name, so that child processes of the sandbox find its functions too. Return its object
    `plugin` if it has one, else the module.

    Its folder is the last on sys.path, so that it hides no other module.
    """
    name, folder = path.stem, str(path.parent)
    if not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"the name of the file {path.name} must be of a-z, 0-9, _ and -: rename it")
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():
        where = f" in {spec.origin}" if spec is not None and spec.origin else ""
        raise ValueError(f"there is another module named {name}{where}: rename {path.name}, say to my_{path.name}")
    module = importlib.import_module(name)
    return getattr(module, "plugin", module)
