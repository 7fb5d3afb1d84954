"""Finds the plugins there are, says what is wrong with which, and builds those the settings name.

Built-in modules and installed packages (entry points) are loaded one by one and guarded, so that a broken one is listed
as broken with its reason and stops nothing unless it was selected. pluggy registers, checks and orders what they
implement. Runs at start, on the main thread.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import pluggy
import structlog

from pipeline.errors import ConfigurationError
from pipeline.hooks import specs
from pipeline.hooks.calls import CHECK, REGISTER_ROUTES, START, BoundPlugin
from pipeline.hooks.limits import Limits, declared_by
from pipeline.hooks.listing import PluginInfo, limits_as_json
from pipeline.hooks.load_checks import (
    SINCE_2,
    Finding,
    check_categories,
    check_module,
    check_object,
    check_pair,
    nearest,
    split,
)
from pipeline.hooks.notifiers import NOTIFY, NOTIFY_MANY
from pipeline.hooks.routes import Route, RouteList, shown_routes
from pipeline.hooks.sources import BUILT_IN, Source, find_sources, loaded, names_there_are
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import FILE_SUFFIX, PluginSettings, plugin_variable

if TYPE_CHECKING:
    from pipeline.hooks.context import Lender
    from pipeline.metrics import Metrics
    from pipeline.settings import Settings

BUILT_IN_MODULES = (
    "pipeline.plugins.ai_http",
    "pipeline.plugins.ai_local",
    "pipeline.plugins.ai_openai",
    "pipeline.plugins.ai_anthropic",
    "pipeline.plugins.ai_gemini",
    "pipeline.plugins.storage_local",
    "pipeline.plugins.storage_cloudinary",
    "pipeline.plugins.storage_object",
    "pipeline.plugins.notify_websocket",
    "pipeline.plugins.notify_webhook",
    "pipeline.plugins.notify_apprise",
    "pipeline.plugins.notify_webpush",
    "pipeline.plugins.observe_journal",
    "pipeline.plugins.filter_photos",
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
PROVIDER = Kind("provider", "register_ai_providers", "AI_PROVIDER", ("analyze",), optional=(*LIFE, REGISTER_ROUTES))
STORAGE = Kind(
    "storage",
    "register_storage_backends",
    "STORAGE_BACKEND",
    ("save", "open", "delete", "check"),
    optional=("list", "url", START, REGISTER_ROUTES),
)
NOTIFIER = Kind(
    "notifier",
    "register_notifiers",
    "NOTIFIERS",
    (NOTIFY,),
    optional=(NOTIFY_MANY, *LIFE, REGISTER_ROUTES),
)
KINDS = (PROVIDER, STORAGE, NOTIFIER)
HOOK = "hook"
BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Offer:
    """A plugin that could be built."""

    kind: Kind
    key: str
    source: Source
    build: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Made:
    """A plugin that was made, or could not be. plugin: None then. faults, warnings: what is wrong with it.

    unusable: its methods that cannot be called. cause: what making it raised. routes: what it serves.
    """

    plugin: Any
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unusable: frozenset[str] = frozenset()
    cause: BaseException | None = None
    routes: Sequence[Route] = ()


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
        # By the key of their source: what was wrong and harmless, the names it offers, and those of its settings.
        self._warnings: defaultdict[str, list[str]] = defaultdict(list)
        self._offered: defaultdict[str, set[str]] = defaultdict(set)
        self._has_settings: defaultdict[str, set[str]] = defaultdict(set)
        self._made: dict[tuple[Kind, str], Made] = {}
        self._registry = pluggy.PluginManager(specs.PROJECT)
        self._registry.add_hookspecs(specs)
        # pluggy asks the last registered first, and the first to offer a name keeps it: a package takes a built-in's
        # place only when it says so with `tryfirst`.
        for source in find_sources(settings, modules):
            self._register(source)
        for implementation in self._implementations("register_settings"):
            self._take_settings(implementation)
        for kind in KINDS:
            for implementation in self._implementations(kind.hook):
                self._take_offers(kind, implementation)
        self._check_names_of_sources()

    def look_into(self) -> None:
        """Make what is selected or does not come with the service, so that `infos` tells what is wrong with it."""
        for (kind, name), offer in self._offers.items():
            if name in self.selected[kind] or offer.source.package != BUILT_IN:
                self._made[kind, name] = self._make(offer, name)

    def infos(self) -> list[PluginInfo]:
        """Return one line for each plugin, sorted."""
        usable = [self._offer_info(kind, name, offer) for (kind, name), offer in self._offers.items()]
        functions = self._hook_functions()
        hooks = [self._hook_info(key, each) for key, each in functions.items()]
        idle = [key for key in self._sources if not self._offered[key] and key not in functions]
        silent = [
            replace(_info(self._sources[key], "", "available"), warnings=tuple(self._warnings[key]))
            for key in idle
            if self._warnings[key]
        ]
        return sorted(usable + hooks + silent + self._unused, key=lambda info: (info.kind, info.name, info.package))

    def tell(self) -> None:
        """Log what is wrong with plugins that stop no start: nobody selected them, or it is harmless."""
        for info in self._unused:
            if info.state == BROKEN:
                log.warning("plugin_broken", plugin=info.name, package=info.package, faults=[*info.faults])
        for key, warnings in self._warnings.items():
            if key in self._sources and warnings:
                source = self._sources[key]
                log.warning("plugin_doubtful", plugin=source.name, package=source.package, warnings=warnings)

    def why_broken(self, name: str) -> str:
        """Return what is wrong with the plugin of that name, "" when nothing is."""
        return next((info.reason for info in self._unused if info.name == name and info.state == BROKEN), "")

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
        made, source = self._made_well(kind, name), self._offers[kind, name].source
        if made.warnings:
            log.warning("plugin_doubtful", plugin=name, package=source.package, warnings=[*made.warnings])
        plugin = made.plugin
        threads = int(getattr(plugin, "max_concurrency", self._settings.pool_threads))
        present = [each for each in kind.optional if each not in made.unusable and _has(plugin, each, source)]
        methods = {method: getattr(plugin, method) for method in (*kind.methods, *present)}
        limits = declared_by(plugin).limits if source.api_version > 1 else Limits()
        bound = _bind(kind.name, name, plugin, methods, threads, self._settings, metrics, lender, limits)
        bound.routes = made.routes
        return bound

    def make(self, kind: Kind, name: str) -> Any:
        """Return the plugin as its factory makes it; ConfigurationError says what is wrong."""
        return self._made_well(kind, name).plugin

    def _made_well(self, kind: Kind, name: str) -> Made:
        offer = self._offers.get((kind, name))
        if offer is None:
            is_by_category = any(name in self._settings.chain(each) for each in self._settings.ai_provider_by_category)
            by_category = kind is PROVIDER and is_by_category and name not in self._settings.providers
            setting = "AI_PROVIDER_BY_CATEGORY" if by_category else kind.setting
            raise ConfigurationError(f"{setting}: there is no {kind.name} {name!r}; {self._names(kind, name)}")
        made = self._make(offer, name)
        if made.faults:
            told = f"{kind.setting}: {kind.name} {name!r} cannot start: {'; '.join(made.faults)}"
            raise ConfigurationError(told) from made.cause
        return made

    def _make(self, offer: Offer, name: str) -> Made:
        try:
            if name in self._own:
                self._settings.plugin(name, self._own[name])
            plugin = offer.build()
            version = offer.source.api_version
            findings = [*check_object(offer.kind.name, plugin, offer.kind.methods, version)]
            unusable = frozenset(each.method for each in findings)
            has_routes = REGISTER_ROUTES not in unusable and _has(plugin, REGISTER_ROUTES, offer.source)
            routes = _routes(plugin.register_routes) if has_routes else ()
        except (Exception, SystemExit) as error:
            return Made(None, (str(error) or type(error).__name__,), cause=error)
        faults, warnings = split(findings, offer.source.is_strict)
        if offer.kind is PROVIDER and version > 1:
            warnings += tuple(check_categories(plugin, self._settings.categories))
        return Made(plugin, faults, warnings, unusable, routes=routes)

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
            unusable = {each.method for each in check_module(module, source.api_version)}
            present = [each for each in LIFE if each not in unusable and _has(module, each, source)]
            life = {method: getattr(module, method) for method in present}
            methods = functions | life
            bound = _bind(HOOK, source.name, module, methods, 2, self._settings, metrics, lender)
            bound.routes = self._routes_of_module(source, functions)
            built.append(bound)
        return built

    def _routes_of_module(self, source: Source, functions: Mapping[str, Callable[..., Any]]) -> Sequence[Route]:
        try:
            return _routes(functions[REGISTER_ROUTES], self._settings) if REGISTER_ROUTES in functions else ()
        except (Exception, SystemExit) as error:
            raise ConfigurationError(f"The plugin {source.name!r} cannot start: {error}") from error

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """Return those of all plugins, in pluggy's order; a wrapper is none here."""
        found = getattr(self._registry.hook, hook).get_hookimpls()
        return [each for each in reversed(found) if not (each.wrapper or each.hookwrapper)]

    def _register(self, source: Source) -> None:
        if self._is_disabled(source):
            self._unused.append(_info(source, "", "disabled"))
            return
        key = f"{source.package}: {source.name}: {source.module}"
        # SystemExit too: a package whose import gives up must not end the service.
        try:
            plugin, source = loaded(source)
            faults, warnings = split(check_module(plugin, source.api_version), source.is_strict)
            if not faults:
                self._registry.register(plugin, name=key)
                self._registry.check_pending()
        except (Exception, SystemExit) as error:
            faults, warnings = (f"{type(error).__name__}: {error}",), ()
            with suppress(Exception):
                self._registry.unregister(name=key)
        if faults:
            self._unused.append(_broken(source, "", faults))
        else:
            self._sources[key] = source
            self._warnings[key] += warnings

    def _is_disabled(self, source: Source) -> bool:
        enabled = self._settings.plugins_enabled
        if enabled and source.package != BUILT_IN and source.name not in enabled:
            return True
        return any(name in self._settings.plugins_disabled for name in source.names)

    def _ask(self, kind: str, hook: str, implementation: pluggy.HookImpl) -> list[tuple[str, Any]]:
        """Return the pairs an implementation yields, those without faults; what fails is listed as broken."""
        source = self._sources[implementation.plugin_name]
        try:
            given = {"settings": self._settings, "sandbox": self.sandbox}
            arguments = [given[name] for name in implementation.argnames]
            pairs = [(name, offered) for name, offered in cast(Any, implementation.function)(*arguments)]
        except (Exception, SystemExit) as error:
            self._unused.append(_broken(source, kind, (f"{hook}: {type(error).__name__}: {error}",)))
            return []
        wrong = {at: tuple(each.text for each in check_pair(hook, *pair)) for at, pair in enumerate(pairs)}
        if faults := tuple(fault for each in wrong.values() for fault in each):
            self._unused.append(_broken(source, kind, faults))
        return [(str(name), offered) for at, (name, offered) in enumerate(pairs) if not wrong[at]]

    def _take_settings(self, implementation: pluggy.HookImpl) -> None:
        for name, own in self._ask("", "register_settings", implementation):
            self._own.setdefault(name, own)
            self._has_settings[implementation.plugin_name].add(name)

    def _take_offers(self, kind: Kind, implementation: pluggy.HookImpl) -> None:
        key = implementation.plugin_name
        source = self._sources[key]
        for name, build in self._ask(kind.name, kind.hook, implementation):
            self._offered[key].add(name)
            taken = self._offers.setdefault((kind, name), Offer(kind, key, source, build))
            if taken.build is not build:
                both = f"{taken.source.package} and {source.package} both offer a {kind.name} {name!r}"
                cure = f"{both}: uninstall one of them, or name it in PLUGINS_DISABLED"
                self._unused.append(_broken(source, kind.name, (f"the name is taken: {cure}",), name))
                if taken.source.package != BUILT_IN:
                    self._warnings[taken.key].append(cure)

    def _check_names_of_sources(self) -> None:
        """Find those with one name, and those whose settings have another name than what they are for."""
        keys = defaultdict(list)
        for key, source in self._sources.items():
            if source.package != BUILT_IN:
                keys[source.name].append(key)
            for name in self._has_settings[key] - self._offered[key] - {source.name}:
                names = sorted(self._offered[key] or {source.name})
                text = f"register_settings names {name!r}, but its plugins are {', '.join(names)}{nearest(name, names)}"
                self._note(key, Finding(text, was_harmless=True))
        for name, others in keys.items():
            packages = " and ".join(self._sources[key].package for key in others)
            for key in others if len(others) > 1 else ():
                self._warnings[key].append(f"{packages} both have a plugin named {name!r}: uninstall one of them")

    def _note(self, key: str, finding: Finding) -> None:
        """Take a plugin out because of what is wrong, unless it is harmless."""
        source = self._sources[key]
        faults, warnings = split([finding], source.is_strict)
        self._warnings[key] += warnings
        if faults:
            self._registry.unregister(name=key)
            self._offers = {at: offer for at, offer in self._offers.items() if offer.key != key}
            for name in self._has_settings[key]:
                self._own.pop(name, None)
            self._unused.append(_broken(source, "", faults))

    def _hook_functions(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """Return what modules implement, plugin -> hook -> function(argument, settings), in pluggy's order."""
        found: dict[str, dict[str, Callable[..., Any]]] = {}
        for hook in (*OBSERVERS, *FILTERS, REGISTER_ROUTES):
            for implementation in self._implementations(hook):
                names = getattr(self._registry.hook, hook).spec.argnames
                found.setdefault(implementation.plugin_name, {})[hook] = _with_arguments(implementation, names)
        return found

    def _names_of(self, source: Source) -> list[str]:
        """Return under which names the plugin has settings of its own."""
        return [source.name] if source.name in self._own else []

    def _offer_info(self, kind: Kind, name: str, offer: Offer) -> PluginInfo:
        is_selected, source = name in self.selected[kind], offer.source
        made = self._made.get((kind, name), Made(None))
        warnings = (*self._warnings[offer.key], *made.warnings)
        if made.faults and (is_selected or made.plugin is not None):
            return replace(_broken(source, kind.name, made.faults, name), warnings=warnings)
        if made.faults:
            warnings += (f"cannot be made as configured: {'; '.join(made.faults)}",)
        info = _info(source, kind.name, "selected" if is_selected else "available", name)
        if made.plugin is None:
            return replace(info, warnings=warnings)
        known = (*kind.methods, *kind.optional)
        methods = [each for each in known if each not in made.unusable and _has(made.plugin, each, source)]
        limits = declared_by(made.plugin).limits if kind is PROVIDER and source.api_version > 1 else Limits()
        declared = limits_as_json(limits, getattr(made.plugin, "extra_fields", None))
        routes = shown_routes(made.routes)
        return replace(info, warnings=warnings, methods=tuple(methods), limits=declared, routes=routes)

    def _hook_info(self, key: str, functions: Mapping[str, Any]) -> PluginInfo:
        source = self._sources[key]
        try:
            info = _info(source, HOOK, "selected" if self._is_active(source) else "available")
            routes = shown_routes(self._routes_of_module(source, functions))
        except ConfigurationError as error:
            return _broken(source, HOOK, (error.message,))
        return replace(info, warnings=tuple(self._warnings[key]), methods=tuple(functions), routes=routes)

    def _is_active(self, source: Source) -> bool:
        return all(self._settings.plugin(name, self._own[name]).is_active for name in self._names_of(source))

    def _names(self, kind: Kind, wanted: str) -> str:
        names = sorted(name for offered, name in self._offers if offered is kind)
        unused = [info for info in self._unused if info.kind in ("", kind.name)]
        told = [f"{info.name} ({info.reason or info.state})" for info in unused]
        meant = nearest(wanted, [*names, *(info.name for info in unused)])
        return (
            f"there are: {', '.join(names) or 'none'}{meant}"
            + (f"; not usable: {', '.join(told)}" if told else "")
            + ("; PLUGINS_SAFE_MODE leaves out installed packages" if self._settings.plugins_safe_mode else "")
        )


def list_plugins(settings: Settings) -> list[PluginInfo]:
    """Return every plugin there is, without making any."""
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
        is_traced=settings.plugins_trace,
    )


def _routes(register: Callable[..., Any], *arguments: Any) -> Sequence[Route]:
    """Return what a plugin serves under /plugins/; whatever it raises otherwise."""
    if inspect.iscoroutinefunction(register):
        raise TypeError(f"{REGISTER_ROUTES} must be a plain def")
    routes = RouteList()
    register(routes, *arguments)
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


def _info(source: Source, kind: str, state: str, name: str = "") -> PluginInfo:
    """Return the line of a plugin from there."""
    info = PluginInfo(name or source.name, kind, source.package, source.version, state)
    return replace(info, source=source.path, import_ms=source.import_ms)


def _broken(source: Source, kind: str, faults: tuple[str, ...], name: str = "") -> PluginInfo:
    return replace(_info(source, kind, BROKEN, name), reason="; ".join(faults), faults=faults)
