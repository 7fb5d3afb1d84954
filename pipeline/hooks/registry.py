"""Registers the plugins there are, those that can be loaded, and asks each what it offers.

Built-in modules, installed packages (entry points) and files are loaded one by one and guarded: a broken one is listed
with its faults and stops nothing unless it was selected. pluggy registers, checks and orders what they implement. Runs
at start, on the main thread. What is made of an offer: plugin_builder.py.
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
    """What was found: the sources that could be loaded, what they offer, and what is wrong with the others."""

    def __init__(self, settings: Settings, modules: Sequence[str], sandbox: Sandbox) -> None:
        """modules: the built-in ones. sandbox: given to those whose hooks ask for it."""
        self._settings = settings
        self._sandbox = sandbox
        self.offers: dict[tuple[Kind, str], Offer] = {}
        # The settings of plugins, by the plugin's name.
        self.own: dict[str, type[PluginSettings]] = {}
        self.sources: dict[str, Source] = {}
        self.unused: list[PluginInfo] = []  # broken or disabled
        # By the key of their source: what was wrong and harmless, the names it offers, and those of its settings.
        self.warnings: defaultdict[str, list[str]] = defaultdict(list)
        self._offered: defaultdict[str, set[str]] = defaultdict(set)
        self._has_settings: defaultdict[str, set[str]] = defaultdict(set)
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        # pluggy asks the last registered first, and the first to offer a name keeps it: a package takes a built-in's
        # place only when it says so with `tryfirst`.
        for source in find_sources(settings, modules):
            self._register(source)
        for implementation in self.implementations("register_settings"):
            self._take_settings(implementation)
        self._take_all_offers()
        self._check_names_of_sources()

    def collect_offers_again(self, sandbox: Sandbox) -> None:
        """Ask what is loaded already anew what it offers."""
        self._sandbox, self.offers = sandbox, {}
        self._take_all_offers()

    def module(self, key: str) -> object:
        """Return the module, or the object, with the hooks of that source."""
        return self._manager.get_plugin(key)

    @property
    def idle(self) -> list[str]:
        """The keys of those that offer nothing and implement no hook."""
        functions = self.hook_functions()
        return [key for key in self.sources if not self._offered[key] and key not in functions]

    @property
    def broken(self) -> list[PluginInfo]:
        """Those that cannot be used."""
        return [info for info in self.unused if info.state == BROKEN]

    def log_faults(self) -> None:
        """Log what is wrong with plugins that stop no start: nobody selected them, or it is harmless."""
        for info in self.broken:
            log.warning("plugin_broken", plugin=info.name, package=info.package, faults=[*info.faults])
        for key, warnings in self.warnings.items():
            if key in self.sources and warnings:
                source = self.sources[key]
                log.warning("plugin_doubtful", plugin=source.name, package=source.package, warnings=warnings)

    def hook_functions(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """Return what modules implement, plugin -> hook -> function(argument, settings), in pluggy's order."""
        found: dict[str, dict[str, Callable[..., Any]]] = {}
        for hook in (*OBSERVERS, *FILTERS, REGISTER_ROUTES):
            for implementation in self.implementations(hook):
                names = getattr(self._manager.hook, hook).spec.argnames
                found.setdefault(implementation.plugin_name, {})[hook] = _with_arguments(implementation, names)
        return found

    def implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """Return those of all plugins, in pluggy's order; a wrapper is none here."""
        found = getattr(self._manager.hook, hook).get_hookimpls()
        return [each for each in reversed(found) if not (each.wrapper or each.hookwrapper)]

    def _register(self, source: Source) -> None:
        if self._is_disabled(source):
            self.unused.append(info_of(source, "", "disabled"))
            return
        key = f"{source.package}: {source.name}: {source.module}"
        # SystemExit too: a package whose import gives up must not end the service.
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

    def _is_disabled(self, source: Source) -> bool:
        enabled = self._settings.plugins_enabled
        if enabled and source.package != BUILT_IN and source.name not in enabled:
            return True
        return any(name in self._settings.plugins_disabled for name in source.names)

    def _ask(self, kind: str, hook: str, implementation: pluggy.HookImpl) -> list[tuple[str, Any]]:
        """Return the pairs an implementation yields, those without faults; what fails is listed as broken."""
        source = self.sources[implementation.plugin_name]
        try:
            given = {"settings": self._settings, "sandbox": self._sandbox}
            arguments = [given[name] for name in implementation.argnames]
            pairs = [(name, offered) for name, offered in cast(Any, implementation.function)(*arguments)]
        except (Exception, SystemExit) as error:
            self.unused.append(broken_info(source, kind, (f"{hook}: {type(error).__name__}: {error}",)))
            return []
        wrong = {at: tuple(each.text for each in check_pair(hook, *pair)) for at, pair in enumerate(pairs)}
        if faults := tuple(fault for each in wrong.values() for fault in each):
            self.unused.append(broken_info(source, kind, faults))
        return [(str(name), offered) for at, (name, offered) in enumerate(pairs) if not wrong[at]]

    def _take_settings(self, implementation: pluggy.HookImpl) -> None:
        for name, own in self._ask("", "register_settings", implementation):
            self.own.setdefault(name, own)
            self._has_settings[implementation.plugin_name].add(name)

    def _take_all_offers(self) -> None:
        for kind in KINDS:
            for implementation in self.implementations(kind.hook):
                self._take_offers(kind, implementation)

    def _take_offers(self, kind: Kind, implementation: pluggy.HookImpl) -> None:
        key = implementation.plugin_name
        source = self.sources[key]
        for name, build in self._ask(kind.name, kind.hook, implementation):
            self._offered[key].add(name)
            taken = self.offers.setdefault((kind, name), Offer(kind, key, source, build))
            if taken.build is not build:
                both = f"{taken.source.package} and {source.package} both offer a {kind.name} {name!r}"
                cure = f"{both}: uninstall one of them, or name it in PLUGINS_DISABLED"
                self.unused.append(broken_info(source, kind.name, (f"the name is taken: {cure}",), name))
                if taken.source.package != BUILT_IN:
                    self.warnings[taken.key].append(cure)

    def _check_names_of_sources(self) -> None:
        """Find those with one name, and those whose settings have another name than what they are for."""
        keys = defaultdict(list)
        for key, source in self.sources.items():
            if source.package != BUILT_IN:
                keys[source.name].append(key)
            for name in self._has_settings[key] - self._offered[key] - {source.name}:
                names = sorted(self._offered[key] or {source.name})
                text = f"register_settings names {name!r}, but its plugins are {', '.join(names)}{nearest(name, names)}"
                self._take_out(key, Finding(text, was_harmless=True))
        for name, others in keys.items():
            packages = " and ".join(self.sources[key].package for key in others)
            for key in others if len(others) > 1 else ():
                self.warnings[key].append(f"{packages} both have a plugin named {name!r}: uninstall one of them")

    def _take_out(self, key: str, finding: Finding) -> None:
        """Take a plugin out because of what is wrong, unless it is harmless."""
        source = self.sources[key]
        faults, warnings = split([finding], source.is_strict)
        self.warnings[key] += warnings
        if faults:
            self._manager.unregister(name=key)
            self.offers = {at: offer for at, offer in self.offers.items() if offer.key != key}
            for name in self._has_settings[key]:
                self.own.pop(name, None)
            self.unused.append(broken_info(source, "", faults))


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
