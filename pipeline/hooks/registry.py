"""Loads all plugins and collects their offers: the (name, factory) pairs of their `register_` hooks.

Built-in modules, installed packages (entry points) and files are loaded one by one. A broken one is listed with its
faults and stops the start only if it is selected. pluggy registers, checks and orders the hooks. plugin_builder.py
builds plugins from offers. Runs at start, on the main thread.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pluggy
import structlog

from pipeline.hooks import specs
from pipeline.hooks.bound_plugin import REGISTER_ROUTES
from pipeline.hooks.kinds import FILTERS, KINDS, OBSERVERS, Kind, Offer
from pipeline.hooks.listing import BROKEN, PluginInfo, broken_info, info_of
from pipeline.hooks.load_checks import Finding, check_module, check_pair, nearest, split
from pipeline.hooks.sources import BUILT_IN, Source, find_sources, loaded
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import PluginSettings

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)


class Registry:
    """The sources that could be loaded, their offers and settings, and the faults of the others."""

    def __init__(self, settings: Settings, modules: Sequence[str], sandbox: Sandbox) -> None:
        """modules: the built-in ones.
        sandbox: passed to the hooks that have an argument of that name.
        """
        self._settings = settings
        self._sandbox = sandbox
        self.offers: dict[tuple[Kind, str], Offer] = {}
        # The settings classes of plugins, by the plugin's name.
        self.own: dict[str, type[PluginSettings]] = {}
        self.sources: dict[str, Source] = {}
        self.unused: list[PluginInfo] = []  # broken or disabled
        # By the key of the source: its harmless faults, the names it offers, and the names of its settings classes.
        self.warnings: defaultdict[str, list[str]] = defaultdict(list)
        self._offered: defaultdict[str, set[str]] = defaultdict(set)
        self._has_settings: defaultdict[str, set[str]] = defaultdict(set)
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        # pluggy calls the last registered plugin first, and the first offer of a name wins: a package replaces a
        # built-in plugin only with `tryfirst`.
        for source in find_sources(settings, modules):
            self._register(source)
        for implementation in self.implementations("register_settings"):
            self._collect_settings(implementation)
        self._collect_all_offers()
        self._check_names_of_sources()

    def collect_offers_again(self, sandbox: Sandbox) -> None:
        """Collect the offers of the loaded plugins again, with this sandbox."""
        self._sandbox, self.offers = sandbox, {}
        self._collect_all_offers()

    def module(self, key: str) -> object:
        """Return the module or object with the hooks of that source."""
        return self._manager.get_plugin(key)

    @property
    def idle(self) -> list[str]:
        """The keys of the sources that offer nothing and implement no hook."""
        functions = self.hook_functions()
        return [key for key in self.sources if not self._offered[key] and key not in functions]

    @property
    def broken(self) -> list[PluginInfo]:
        """The plugins that cannot be used."""
        return [info for info in self.unused if info.state == BROKEN]

    def log_faults(self) -> None:
        """Log the faults that do not stop the start: of plugins that are not selected, and harmless ones."""
        for info in self.broken:
            log.warning("plugin_broken", plugin=info.name, package=info.package, faults=[*info.faults])
        for key, warnings in self.warnings.items():
            if key in self.sources and warnings:
                source = self.sources[key]
                log.warning("plugin_doubtful", plugin=source.name, package=source.package, warnings=warnings)

    def hook_functions(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """Return plugin -> hook -> function(argument, settings), in pluggy's order."""
        functions: dict[str, dict[str, Callable[..., Any]]] = {}
        for hook in (*OBSERVERS, *FILTERS, REGISTER_ROUTES):
            for implementation in self.implementations(hook):
                names = getattr(self._manager.hook, hook).spec.argnames
                functions.setdefault(implementation.plugin_name, {})[hook] = _with_arguments(implementation, names)
        return functions

    def implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """Return the implementations of the hook in pluggy's order, without wrappers."""
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return [each for each in reversed(implementations) if not (each.wrapper or each.hookwrapper)]

    def _register(self, source: Source) -> None:
        if _is_disabled(source, self._settings):
            self.unused.append(info_of(source, "", "disabled"))
            return
        key = f"{source.package}: {source.name}: {source.module}"
        # SystemExit too: a package that exits at its import must not end the service.
        try:
            plugin, source = loaded(source)
            faults, warnings = split(check_module(plugin, source.api_version), source.is_strict)
            if not faults:
                self._manager.register(plugin, name=key)
                self._manager.check_pending()
        except (Exception, SystemExit) as error:
            faults, warnings = (f"{type(error).__name__}: {error}",), ()
            with suppress(Exception):
                self._manager.unregister(name=key)
        if faults:
            self.unused.append(broken_info(source, "", faults))
        else:
            self.sources[key] = source
            self.warnings[key] += warnings

    def _pairs_of(self, kind: str, hook: str, implementation: pluggy.HookImpl) -> list[tuple[str, Any]]:
        """Return the valid pairs that an implementation yields; the plugins of the others are listed as broken."""
        source = self.sources[implementation.plugin_name]
        try:
            given = {"settings": self._settings, "sandbox": self._sandbox}
            arguments = [given[name] for name in implementation.argnames]
            pairs = [(name, offered) for name, offered in cast(Any, implementation.function)(*arguments)]
        except (Exception, SystemExit) as error:
            self.unused.append(broken_info(source, kind, (f"{hook}: {type(error).__name__}: {error}",)))
            return []
        checked = [(pair, [finding.text for finding in check_pair(hook, *pair)]) for pair in pairs]
        if faults := tuple(fault for _, pair_faults in checked for fault in pair_faults):
            self.unused.append(broken_info(source, kind, faults))
        return [(str(name), offered) for (name, offered), pair_faults in checked if not pair_faults]

    def _collect_settings(self, implementation: pluggy.HookImpl) -> None:
        for name, own in self._pairs_of("", "register_settings", implementation):
            self.own.setdefault(name, own)
            self._has_settings[implementation.plugin_name].add(name)

    def _collect_all_offers(self) -> None:
        for kind in KINDS:
            for implementation in self.implementations(kind.hook):
                self._collect_offers(kind, implementation)

    def _collect_offers(self, kind: Kind, implementation: pluggy.HookImpl) -> None:
        key = implementation.plugin_name
        source = self.sources[key]
        for name, build in self._pairs_of(kind.name, kind.hook, implementation):
            self._offered[key].add(name)
            taken = self.offers.setdefault((kind, name), Offer(kind, key, source, build))
            if taken.build is not build:
                both = f"{taken.source.package} and {source.package} both offer a {kind.name} {name!r}"
                cure = f"{both}: uninstall one of them, or name it in PLUGINS_DISABLED"
                self.unused.append(broken_info(source, kind.name, (f"the name is taken: {cure}",), name))
                if taken.source.package != BUILT_IN:
                    self.warnings[taken.key].append(cure)

    def _check_names_of_sources(self) -> None:
        """Find sources with equal names, and settings classes whose name is not that of a plugin of their source."""
        keys = defaultdict(list)
        for key, source in self.sources.items():
            if source.package != BUILT_IN:
                keys[source.name].append(key)
            for name in self._has_settings[key] - self._offered[key] - {source.name}:
                names = sorted(self._offered[key] or {source.name})
                text = f"register_settings names {name!r}, but its plugins are {', '.join(names)}{nearest(name, names)}"
                self._remove_for(key, Finding(text, was_harmless=True))
        for name, others in keys.items():
            packages = " and ".join(self.sources[key].package for key in others)
            for key in others if len(others) > 1 else ():
                self.warnings[key].append(f"{packages} both have a plugin named {name!r}: uninstall one of them")

    def _remove_for(self, key: str, finding: Finding) -> None:
        """Remove the plugins of a source because of a fault; only warn if it is harmless."""
        source = self.sources[key]
        faults, warnings = split([finding], source.is_strict)
        self.warnings[key] += warnings
        if faults:
            self._manager.unregister(name=key)
            self.offers = {name: offer for name, offer in self.offers.items() if offer.key != key}
            for name in self._has_settings[key]:
                self.own.pop(name, None)
            self.unused.append(broken_info(source, "", faults))


def _with_arguments(implementation: pluggy.HookImpl, names: Sequence[str]) -> Callable[..., Any]:
    """Return a function of all arguments of the hook that calls the implementation with those that it names."""
    function = cast(Callable[..., Any], implementation.function)

    def wanted(arguments: tuple[Any, ...]) -> list[Any]:
        given = dict(zip(names, arguments, strict=True))
        return [given[name] for name in implementation.argnames]

    async def awaited(*arguments: Any) -> Any:
        return await function(*wanted(arguments))

    def called(*arguments: Any) -> Any:
        return function(*wanted(arguments))

    return awaited if inspect.iscoroutinefunction(function) else called


def _is_disabled(source: Source, settings: Settings) -> bool:
    enabled = settings.plugins_enabled
    if enabled and source.package != BUILT_IN and source.name not in enabled:
        return True
    return any(name in settings.plugins_disabled for name in source.names)
