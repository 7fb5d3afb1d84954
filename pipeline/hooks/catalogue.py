"""Finds the plugins there are, says what is wrong with which, and builds those the settings name.

Built-in modules and installed packages (entry points) are loaded one by one and guarded, so that a broken one is listed
as broken with its reason and stops nothing unless it was selected. pluggy registers, checks and orders what they
implement. Runs at start, on the main thread.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

import pluggy
import structlog

from pipeline.errors import ConfigurationError
from pipeline.hooks import specs
from pipeline.hooks.batches import batch_limits
from pipeline.hooks.calls import CHECK, REGISTER_ROUTES, START, BoundPlugin
from pipeline.hooks.limits import Limits, declared_by
from pipeline.hooks.notifiers import NOTIFY, NOTIFY_MANY
from pipeline.hooks.routes import Route, RouteList
from pipeline.hooks.sources import BUILT_IN, Source, find_sources, names_there_are
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import FILE_SUFFIX, PluginSettings, plugin_variable

if TYPE_CHECKING:
    from pipeline.hooks.context import Lender
    from pipeline.metrics import Metrics
    from pipeline.settings import Settings

BUILT_IN_MODULES = (
    "plugins.ai_http",
    "plugins.ai_local",
    "plugins.ai_openai",
    "plugins.storage_local",
    "plugins.storage_cloudinary",
    "plugins.storage_object",
    "plugins.notify_websocket",
    "plugins.notify_webhook",
    "plugins.notify_apprise",
    "plugins.observe_journal",
    "plugins.filter_photos",
)
# What is called while the service works; the others register something at start.
OBSERVERS = ("job_enqueued", "job_started", "job_retrying", "job_finished")
VALIDATE, TRANSFORM = "validate_upload", "transform_analysis"
FILTERS = (VALIDATE, TRANSFORM)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of plugin: the hook that offers it, the setting that selects it, the methods it must or may have."""

    name: str
    hook: str
    setting: str
    methods: tuple[str, ...]
    optional: tuple[str, ...] = ()


# What every plugin may have; see Starting in lent.py. `close` is called whatever the API version.
LIFE = (START, CHECK)
# What a plugin of version 1 may call so for itself.
SINCE_2 = (START, NOTIFY_MANY, REGISTER_ROUTES)
PROVIDER = Kind("provider", "register_ai_providers", "AI_PROVIDER", ("analyze",), optional=(*LIFE, REGISTER_ROUTES))
STORAGE = Kind(
    "storage",
    "register_storage_backends",
    "STORAGE_BACKEND",
    ("save", "open", "delete", "check"),
    optional=("list", "url", START, REGISTER_ROUTES),
)
NOTIFIER = Kind("notifier", "register_notifiers", "NOTIFIERS", (NOTIFY,), optional=(NOTIFY_MANY, *LIFE, REGISTER_ROUTES))
KINDS = (PROVIDER, STORAGE, NOTIFIER)
HOOK = "hook"
HOOKSPEC_MARK = f"{specs.PROJECT}_spec"  # pluggy's own


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One line of `run.py plugins`.

    kind: provider | storage | notifier | hook (observers and filters), or "" for a package that could not be loaded at
    all. package: the distribution, or "built-in". state: selected | available | disabled | broken; reason: why it is
    broken, else "".
    """

    name: str
    kind: str
    package: str
    version: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A plugin that could be built."""

    kind: Kind
    source: Source
    build: Callable[[], Any]


class Catalogue:
    """All plugins that were found, whether they work or not."""

    def __init__(self, settings: Settings, modules: Sequence[str] = BUILT_IN_MODULES) -> None:
        self.selected = {
            PROVIDER: settings.all_providers,
            STORAGE: (settings.storage_name,),
            NOTIFIER: tuple(dict.fromkeys(settings.notifiers)),
        }
        # Starts no process before a plugin calls it. Whoever builds plugins closes it.
        self.sandbox = Sandbox(
            settings.decode_memory_mb, settings.max_image_pixels, settings.preview_processes or 1
        )
        self._settings = settings
        self._modules = modules
        self._offers: dict[tuple[Kind, str], Offer] = {}
        self._own: dict[str, type[PluginSettings]] = {}
        self._sources: dict[str, Source] = {}
        self._unused: list[PluginInfo] = []  # broken or disabled
        self._registry = pluggy.PluginManager(specs.PROJECT)
        self._registry.add_hookspecs(specs)
        # pluggy asks the last registered first, and the first to offer a name keeps it: a package takes a built-in's
        # place only when it says so with `tryfirst`.
        for source in find_sources(settings, modules):
            self._register(source)
        for implementation in reversed(self._registry.hook.register_settings.get_hookimpls()):
            for name, own in self._ask("", implementation):
                self._own.setdefault(str(name), own)
        for kind in KINDS:
            for implementation in reversed(getattr(self._registry.hook, kind.hook).get_hookimpls()):
                self._take_offers(kind, implementation)

    def infos(self) -> list[PluginInfo]:
        """Return one line for each plugin, sorted."""
        usable = [
            _info(offer.source, kind.name, "selected" if name in self.selected[kind] else "available", name)
            for (kind, name), offer in self._offers.items()
        ]
        hooks = [self._hook_info(self._sources[plugin]) for plugin in self._hook_functions()]
        return sorted(usable + hooks + self._unused, key=lambda info: (info.kind, info.name, info.package))

    def own_settings(self) -> Mapping[str, type[PluginSettings]]:
        """Return the settings of plugins, by the plugin's name."""
        return self._own

    def check_names(self) -> None:
        """Raise ConfigurationError for every PLUGIN_ variable, and every name in PLUGINS_ENABLED and PLUGINS_DISABLED,
        that is no plugin's, with the nearest there is.
        """
        faults = [*self._mistyped_plugins(), *self._mistyped_variables()]
        if faults:
            raise ConfigurationError("; ".join(faults))

    def _mistyped_plugins(self) -> Iterator[str]:
        there = names_there_are(self._settings, self._modules)
        for name in self._settings.plugins_enabled:
            if name not in there:
                yield f"PLUGINS_ENABLED: there is no plugin {name!r}{nearest(name, there)}"
        for name in self._settings.plugins_disabled:
            if name in there:
                continue
            if hint := nearest(name, there):
                yield f"PLUGINS_DISABLED: there is no plugin {name!r}{hint}"
            else:
                log.warning("plugin_unknown", plugin=name, setting="PLUGINS_DISABLED")  # not installed here

    def _mistyped_variables(self) -> Iterator[str]:
        own = {plugin_variable(name, ""): [*map(str.upper, kind.model_fields)] for name, kind in self._own.items()}
        fields = {prefix + field for prefix, names in own.items() for field in names}
        known = fields | {field + FILE_SUFFIX for field in fields}
        for variable in self._settings.plugin_variables:
            prefix = max((each for each in own if variable.startswith(each)), key=len, default="")
            if not prefix:
                log.warning("setting_unknown", variable=variable)  # of a plugin that is not installed here
            elif variable not in known:
                hint = nearest(variable.removeprefix(prefix), own[prefix], prefix)
                yield f"there is no setting {variable}{hint}"

    def build(self, kind: Kind, name: str, metrics: Metrics, lender: Lender | None = None) -> BoundPlugin:
        """Return the plugin, ready to be started; ConfigurationError says what is wrong. lender: see BoundPlugin."""
        plugin = self.make(kind, name)
        threads = int(getattr(plugin, "max_concurrency", self._settings.pool_threads))
        source = self._offers[kind, name].source
        present = [method for method in kind.optional if _has(plugin, method, source)]
        methods = {method: getattr(plugin, method) for method in (*kind.methods, *present)}
        limits = declared_by(plugin).limits if source.api_version > 1 else Limits()
        bound = _bind(kind.name, name, plugin, methods, threads, self._settings, metrics, lender, limits)
        if REGISTER_ROUTES in methods:
            bound.routes = _routes(f"{kind.setting}: {kind.name} {name!r}", methods[REGISTER_ROUTES])
        return bound

    def make(self, kind: Kind, name: str) -> Any:
        """Return the plugin as its factory makes it; ConfigurationError says what is wrong."""
        offer = self._offers.get((kind, name))
        if offer is None:
            is_by_category = any(name in self._settings.chain(each) for each in self._settings.ai_provider_by_category)
            by_category = kind is PROVIDER and is_by_category and name not in self._settings.providers
            setting = "AI_PROVIDER_BY_CATEGORY" if by_category else kind.setting
            raise ConfigurationError(f"{setting}: there is no {kind.name} {name!r}; {self._names(kind, name)}")
        try:
            if name in self._own:
                self._settings.plugin(name, self._own[name])
            plugin = offer.build()
            for method in kind.methods:
                if not callable(getattr(plugin, method, None)):
                    raise TypeError(f"it has no method {method}")
            if int(getattr(plugin, "max_concurrency", 1)) < 1:
                raise ValueError("its max_concurrency is less than 1")
            if kind is PROVIDER and offer.source.api_version > 1 and (faults := declared_by(plugin).faults):
                raise ValueError("; ".join(faults))
            if kind is NOTIFIER and _has(plugin, NOTIFY_MANY, offer.source):
                batch_limits(plugin)
            return plugin
        except (Exception, SystemExit) as error:
            raise ConfigurationError(f"{kind.setting}: {kind.name} {name!r} cannot start: {error}") from error

    def kinds_of(self, name: str) -> list[Kind]:
        """Return the kinds of plugins there are of that name."""
        return [kind for kind in KINDS if (kind, name) in self._offers]

    def build_hooks(self, metrics: Metrics, lender: Lender | None = None) -> list[BoundPlugin]:
        """Return the plugins that observe or filter, in pluggy's order, methods named after the hooks."""
        built = []
        for plugin, functions in self._hook_functions().items():
            source = self._sources[plugin]
            try:
                if not self._is_active(source):
                    continue
            except ConfigurationError as error:
                raise ConfigurationError(f"The plugin {source.name!r} cannot start: {error}") from error
            # Two threads: one that hangs leaves one to try again with.
            module = self._registry.get_plugin(plugin)
            life = {method: getattr(module, method) for method in LIFE if _has(module, method, source)}
            methods = functions | life
            bound = _bind(HOOK, source.name, module, methods, 2, self._settings, metrics, lender)
            if REGISTER_ROUTES in functions:
                bound.routes = _routes(f"The plugin {source.name!r}", functions[REGISTER_ROUTES], self._settings)
            built.append(bound)
        return built

    def _register(self, source: Source) -> None:
        if self._is_disabled(source):
            self._unused.append(_info(source, "", "disabled"))
            return
        key = f"{source.package}: {source.name}: {source.module}"
        # SystemExit too: a package whose import gives up must not end the service.
        try:
            plugin = source.load()
            wanted = getattr(plugin, "API_VERSION", specs.API_VERSION)
            if wanted not in specs.API_VERSIONS:
                raise RuntimeError(f"it was written for API version {wanted}, this is {specs.API_VERSION}")
            self._registry.register(plugin, name=key)
            self._registry.check_pending()
            self._sources[key] = replace(source, api_version=wanted)
        except (Exception, SystemExit) as error:
            self._unused.append(_info(source, "", "broken", reason=_reason(error)))
            with suppress(Exception):
                self._registry.unregister(name=key)

    def _is_disabled(self, source: Source) -> bool:
        enabled = self._settings.plugins_enabled
        if enabled and source.package != BUILT_IN and source.name not in enabled:
            return True
        names = (source.name, source.module) if source.package == BUILT_IN else (source.name,)
        return any(name in self._settings.plugins_disabled for name in names)

    def _ask(self, kind: str, implementation: pluggy.HookImpl) -> list[tuple[str, Any]]:
        """Return the pairs an implementation yields; one that fails is listed as broken."""
        source = self._sources[implementation.plugin_name]
        try:
            given = {"settings": self._settings, "sandbox": self.sandbox}
            arguments = [given[name] for name in implementation.argnames]
            return [(str(name), offered) for name, offered in cast(Any, implementation.function)(*arguments)]
        except (Exception, SystemExit) as error:
            self._unused.append(_info(source, kind, "broken", reason=f"{type(error).__name__}: {error}"))
            return []

    def _take_offers(self, kind: Kind, implementation: pluggy.HookImpl) -> None:
        source = self._sources[implementation.plugin_name]
        for name, build in self._ask(kind.name, implementation):
            taken = self._offers.setdefault((kind, name), Offer(kind, source, build))
            if taken.build is not build:
                reason = f"ValueError: the name is taken by {taken.source.package}"
                self._unused.append(_info(source, kind.name, "broken", name, reason))

    def _hook_functions(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """Return what modules implement, plugin -> hook -> function(argument, settings), in pluggy's order."""
        found: dict[str, dict[str, Callable[..., Any]]] = {}
        for hook in (*OBSERVERS, *FILTERS, REGISTER_ROUTES):
            for implementation in reversed(getattr(self._registry.hook, hook).get_hookimpls()):
                names = getattr(self._registry.hook, hook).spec.argnames
                found.setdefault(implementation.plugin_name, {})[hook] = _with_arguments(implementation, names)
        return found

    def _names_of(self, source: Source) -> list[str]:
        """Return under which names the plugin has settings of its own."""
        return [source.name] if source.name in self._own else []

    def _hook_info(self, source: Source) -> PluginInfo:
        try:
            return _info(source, HOOK, "selected" if self._is_active(source) else "available")
        except ConfigurationError as error:
            return _info(source, HOOK, "broken", reason=str(error))

    def _is_active(self, source: Source) -> bool:
        return all(self._settings.plugin(name, self._own[name]).is_active for name in self._names_of(source))

    def _names(self, kind: Kind, wanted: str) -> str:
        names = sorted(name for offered, name in self._offers if offered is kind)
        unused = [f"{info.name} ({info.reason or info.state})" for info in self._unused if info.kind in ("", kind.name)]
        return (
            f"there are: {', '.join(names) or 'none'}{nearest(wanted, names)}"
            + (f"; not usable: {', '.join(unused)}" if unused else "")
            + ("; PLUGINS_SAFE_MODE leaves out installed packages" if self._settings.plugins_safe_mode else "")
        )


def hookspecs() -> dict[str, Callable[..., Any]]:
    """Return every hook there is, by name, in the order of specs.py."""
    return {name: value for name, value in vars(specs).items() if hasattr(value, HOOKSPEC_MARK)}


def list_plugins(settings: Settings) -> list[PluginInfo]:
    """Return every plugin there is, without building any."""
    return Catalogue(settings).infos()


def _bind(
    kind: str,
    name: str,
    plugin: object,
    methods: Mapping[str, Callable[..., Any]],
    threads: int,
    settings: Settings,
    metrics: Metrics,
    lender: Lender | None,
    limits: Limits = Limits(),
) -> BoundPlugin:
    return BoundPlugin(
        kind,
        name,
        plugin,
        methods,
        threads=threads,
        metrics=metrics,
        breaker_failures=settings.breaker_failures,
        breaker_probe_seconds=settings.breaker_probe_seconds,
        lender=lender,
        limits=limits,
    )


def _routes(whose: str, register: Callable[..., Any], *arguments: Any) -> Sequence[Route]:
    """Return what a plugin serves under /plugins/; ConfigurationError says what is wrong. whose: for that."""
    routes = RouteList()
    try:
        if inspect.isawaitable(register(routes, *arguments)):
            raise TypeError(f"{REGISTER_ROUTES} must be a plain def")
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{whose} cannot start: {error}") from error
    return tuple(routes.all)


def _has(plugin: object, method: str, source: Source) -> bool:
    """Return whether the plugin has that optional method; what has come since is its own in one of version 1."""
    return callable(getattr(plugin, method, None)) and (method not in SINCE_2 or source.api_version > 1)


def _with_arguments(implementation: pluggy.HookImpl, names: Sequence[str]) -> Callable[..., Any]:
    """Return the implementation as a function of all its hook's arguments, of which it may want only some."""
    function = cast(Callable[..., Any], implementation.function)

    def wanted(arguments: tuple[Any, ...]) -> list[Any]:
        given = dict(zip(names, arguments, strict=True))
        return [given[name] for name in implementation.argnames]

    async def awaited(*arguments: Any) -> Any:
        return await function(*wanted(arguments))

    def called(*arguments: Any) -> Any:
        return function(*wanted(arguments))

    return awaited if inspect.iscoroutinefunction(function) else called


def _info(source: Source, kind: str, state: str, name: str = "", reason: str = "") -> PluginInfo:
    """Return the line of a plugin from there."""
    return PluginInfo(name or source.name, kind, source.package, source.version, state, reason)


def nearest(wanted: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the question whether the nearest of the names was meant. prefix: what all of them begin with."""
    found = get_close_matches(wanted, list(names), 1)
    return f" (did you mean {prefix}{found[0]}?)" if found else ""


def _reason(error: BaseException) -> str:
    """Return why a plugin cannot be loaded, for its author."""
    is_known = isinstance(error, pluggy.PluginValidationError)
    mistyped = re.search(r"unknown hook '(\w+)'", str(error)) if is_known else None
    if mistyped is None:
        return f"{type(error).__name__}: {error}"
    return f"there is no hook {mistyped[1]}{nearest(mistyped[1], hookspecs())}"
