"""The plugins there are: lists them with what is wrong with each, and builds those the settings name.

What was found: registry.py. How it is made: building.py. Runs at start, on the main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from pipeline.errors import ConfigurationError
from pipeline.hooks.building import Building, Made, described
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.kinds import BUILT_IN_MODULES, HOOK, KINDS, NOTIFIER, PROVIDER, STORAGE, Kind, Offer
from pipeline.hooks.listing import NOT_INSTALLED, PluginInfo, broken_info, info_of
from pipeline.hooks.load_checks import nearest
from pipeline.hooks.registry import Registry
from pipeline.hooks.routes import shown_routes
from pipeline.hooks.sources import BUILT_IN, missing_packages, names_there_are
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import FILE_SUFFIX, PluginSettings, plugin_variable

if TYPE_CHECKING:
    from pipeline.hooks.context import ContextFactory
    from pipeline.metrics import Metrics
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)


class Catalogue:
    """All plugins that were found, whether they work or not."""

    def __init__(self, settings: Settings, modules: Sequence[str] = BUILT_IN_MODULES) -> None:
        """modules: the built-in ones."""
        self.selected = {
            PROVIDER: settings.all_providers,
            STORAGE: (settings.storage_name,),
            NOTIFIER: tuple(dict.fromkeys(settings.notifiers)),
        }
        # Starts no process before a plugin calls it. Whoever builds plugins closes it.
        self.sandbox = _sandbox(settings)
        self._settings = settings
        self._modules = modules
        self._registry = Registry(settings, modules, self.sandbox)
        self._building = Building(settings, self._registry.own)
        # By `look_into`.
        self._made: dict[tuple[Kind, str], Made] = {}

    def renew(self) -> None:
        """Make plugins with another sandbox from now on, as one that was built anew would: to find them takes longest.

        Whoever uses the one before closes it.
        """
        self.sandbox, self._made = _sandbox(self._settings), {}
        self._registry.ask_again(self.sandbox)

    def look_into(self) -> None:
        """Make what is selected or does not come with the service, so that `infos` tells what is wrong with it."""
        for (kind, name), offer in self._registry.offers.items():
            if name in self.selected[kind] or offer.source.package != BUILT_IN:
                self._made[kind, name] = self._try_to_make(offer, name)

    def infos(self) -> list[PluginInfo]:
        """Return one line for each plugin, sorted."""
        registry = self._registry
        usable = [self._offer_info(kind, name, offer) for (kind, name), offer in registry.offers.items()]
        hooks = [self._hook_info(key, functions) for key, functions in registry.hook_functions().items()]
        silent = [
            replace(info_of(registry.sources[key], "", "available"), warnings=tuple(registry.warnings[key]))
            for key in registry.idle
            if registry.warnings[key]
        ]
        return sorted(usable + hooks + silent + registry.unused, key=lambda info: (info.kind, info.name, info.package))

    def tell(self) -> None:
        """Log what is wrong with plugins that stop no start: nobody selected them, or it is harmless."""
        self._registry.tell()

    @property
    def broken(self) -> list[PluginInfo]:
        """Those that cannot be used, though nobody may have asked for them."""
        return self._registry.broken

    def own_settings(self) -> Mapping[str, type[PluginSettings]]:
        """Return the settings of plugins, by the plugin's name."""
        return self._registry.own

    def kinds_of(self, name: str) -> list[Kind]:
        """Return the kinds of plugins there are of that name."""
        return [kind for kind in KINDS if (kind, name) in self._registry.offers]

    def hook_plugin(self, name: str) -> object:
        """Return the module, or the object, with the observers and filters of that name; KeyError without one."""
        for key in self._registry.hook_functions():
            if self._registry.sources[key].name == name:
                return self._registry.module(key)
        raise KeyError(name)

    def build(self, kind: Kind, name: str, metrics: Metrics, contexts: ContextFactory | None = None) -> BoundPlugin:
        """Return the plugin, ready to be started; ConfigurationError says what is wrong. contexts: see BoundPlugin."""
        offer, made = self._make_well(kind, name)
        if made.warnings:
            log.warning("plugin_doubtful", plugin=name, package=offer.source.package, warnings=[*made.warnings])
        bound = self._building.bind(offer, name, made, metrics, contexts)
        bound.warnings = (*self._registry.warnings[offer.key], *made.warnings)
        return bound

    def build_hooks(self, metrics: Metrics, contexts: ContextFactory | None = None) -> list[BoundPlugin]:
        """Return the plugins that observe or filter, in pluggy's order, methods named after the hooks."""
        registry, built = self._registry, []
        for key, functions in registry.hook_functions().items():
            module = registry.module(key)
            bound = self._building.bind_module(registry.sources[key], module, functions, metrics, contexts)
            if bound is not None:
                bound.warnings = tuple(registry.warnings[key])
                built.append(bound)
        return built

    def make(self, kind: Kind, name: str) -> Any:
        """Return the plugin as its factory makes it; ConfigurationError says what is wrong."""
        return self._make_well(kind, name)[1].plugin

    def _make_well(self, kind: Kind, name: str) -> tuple[Offer, Made]:
        offer = self._registry.offers.get((kind, name))
        if offer is None:
            is_by_category = any(name in self._settings.chain(each) for each in self._settings.ai_provider_by_category)
            by_category = kind is PROVIDER and is_by_category and name not in self._settings.providers
            setting = "AI_PROVIDER_BY_CATEGORY" if by_category else kind.setting
            raise ConfigurationError(f"{setting}: there is no {kind.name} {name!r}; {self._names(kind, name)}")
        made = self._try_to_make(offer, name)
        if made.faults:
            told = f"{kind.setting}: {kind.name} {name!r} cannot start: {'; '.join(made.faults)}"
            raise ConfigurationError(told) from made.cause
        return offer, made

    def _try_to_make(self, offer: Offer, name: str) -> Made:
        made = self._building.make(offer, name)
        needed = missing_packages(self._registry.module(offer.key), offer.source)
        if made.faults and needed and "pip install" not in "".join(made.faults):
            # That comes before what else is wrong: its settings may not even be asked for yet.
            return replace(made, faults=(needed, *made.faults))
        return made

    def _names(self, kind: Kind, wanted: str) -> str:
        names = sorted(name for offered, name in self._registry.offers if offered is kind)
        unused = [info for info in self._registry.unused if info.kind in ("", kind.name)]
        told = [f"{info.name} ({info.reason or info.state})" for info in unused]
        meant = nearest(wanted, [*names, *(info.name for info in unused)])
        return (
            f"there are: {', '.join(names) or 'none'}{meant}"
            + (f"; not usable: {', '.join(told)}" if told else "")
            + ("; PLUGINS_SAFE_MODE leaves out installed packages" if self._settings.plugins_safe_mode else "")
        )

    def _offer_info(self, kind: Kind, name: str, offer: Offer) -> PluginInfo:
        is_selected, made = name in self.selected[kind], self._made.get((kind, name), Made(None))
        warnings = (*self._registry.warnings[offer.key], *made.warnings)
        if made.faults and (is_selected or made.plugin is not None):
            return replace(broken_info(offer.source, kind.name, made.faults, name), warnings=warnings)
        if made.faults:
            warnings += (f"cannot be made as configured: {'; '.join(made.faults)}",)
        state = "selected" if is_selected else "available"
        if not is_selected and (needed := missing_packages(self._registry.module(offer.key), offer.source)):
            state, warnings = NOT_INSTALLED, (*warnings, needed)
        info = info_of(offer.source, kind.name, state, name)
        info = replace(info, warnings=warnings)
        return info if made.plugin is None else described(info, offer, made)

    def _hook_info(self, key: str, functions: Mapping[str, Callable[..., Any]]) -> PluginInfo:
        source = self._registry.sources[key]
        try:
            info = info_of(source, HOOK, "selected" if self._building.is_active(source) else "available")
            routes = shown_routes(self._building.routes_of_module(functions))
        except ConfigurationError as error:
            return broken_info(source, HOOK, (error.message,))
        warnings = tuple(self._registry.warnings[key])
        return replace(info, warnings=warnings, methods=tuple(functions), routes=routes)

    def check_names(self) -> None:
        """Raise ConfigurationError for every PLUGIN_ variable, and every name in PLUGINS_ENABLED and PLUGINS_DISABLED,
        that is no plugin's, with the nearest there is.
        """
        there = names_there_are(self._settings, self._modules)
        faults = [*_mistyped_plugins(self._settings, there), *_mistyped_variables(self._settings, self._registry.own)]
        if faults:
            raise ConfigurationError("; ".join(faults))


def _sandbox(settings: Settings) -> Sandbox:
    return Sandbox(settings.decode_memory_mb, settings.preview_processes or 1)


def list_plugins(settings: Settings) -> list[PluginInfo]:
    """Return every plugin there is, without making any."""
    return Catalogue(settings).infos()


def _mistyped_plugins(settings: Settings, there: Sequence[str]) -> Iterator[str]:
    for name in settings.plugins_enabled:
        if name not in there:
            yield f"PLUGINS_ENABLED: there is no plugin {name!r}{nearest(name, there)}"
    for name in settings.plugins_disabled:
        if name in there:
            continue
        if hint := nearest(name, there):
            yield f"PLUGINS_DISABLED: there is no plugin {name!r}{hint}"
        else:
            log.warning("plugin_unknown", plugin=name, setting="PLUGINS_DISABLED")  # not installed here


def _mistyped_variables(settings: Settings, kinds: Mapping[str, type[PluginSettings]]) -> Iterator[str]:
    """kinds: the settings of plugins, by the plugin's name."""
    own = {plugin_variable(name, ""): [*map(str.upper, kind.model_fields)] for name, kind in kinds.items()}
    fields = {prefix + field for prefix, names in own.items() for field in names}
    known = fields | {field + FILE_SUFFIX for field in fields}
    for variable in settings.plugin_variables:
        prefix = max((each for each in own if variable.startswith(each)), key=len, default="")
        if not prefix:
            log.warning("setting_unknown", variable=variable)  # of a plugin that is not installed here
        elif variable not in known:
            hint = nearest(variable.removeprefix(prefix), own[prefix], prefix)
            yield f"there is no setting {variable}{hint}"
