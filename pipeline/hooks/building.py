"""Makes plugins of what the registry found, and binds what is made to how it is called. Runs at start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigurationError
from pipeline.hooks.calls import REGISTER_ROUTES, BoundPlugin
from pipeline.hooks.kinds import HOOK, LIFE, PROVIDER, Offer
from pipeline.hooks.limits import Limits, declared_by
from pipeline.hooks.listing import PluginInfo, limits_as_json
from pipeline.hooks.load_checks import SINCE_2, check_categories, check_module, check_object, split
from pipeline.hooks.routes import Route, RouteList, shown_routes
from pipeline.hooks.sources import Source
from pipeline.settings import PluginSettings

if TYPE_CHECKING:
    from pipeline.hooks.context import ContextFactory
    from pipeline.metrics import Metrics
    from pipeline.settings import Settings

# Of what observes or filters: one that hangs leaves one to try again with.
HOOK_THREADS = 2


@dataclass(frozen=True, slots=True)
class Made:
    """A plugin that was made, or could not be.

    plugin: None when it could not.
    faults, warnings: what is wrong with it.
    unusable: its methods that cannot be called.
    cause: what making it raised.
    routes: what it serves.
    """

    plugin: Any
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unusable: frozenset[str] = frozenset()
    cause: BaseException | None = None
    routes: Sequence[Route] = ()


class Building:
    """Makes and binds plugins."""

    def __init__(self, settings: Settings, own: Mapping[str, type[PluginSettings]]) -> None:
        """own: the settings of plugins, by the plugin's name."""
        self._settings = settings
        self._own = own
        self._bound = partial(BoundPlugin, is_traced=settings.plugins_trace)

    def make(self, offer: Offer, name: str) -> Made:
        """Return the plugin as its factory makes it, with what is wrong with it."""
        source, version = offer.source, offer.source.api_version
        try:
            if name in self._own:
                self._settings.plugin(name, self._own[name])
            plugin = offer.build()
            findings = [*check_object(offer.kind.name, plugin, offer.kind.methods, version)]
            unusable = frozenset(each.method for each in findings)
            has_routes = REGISTER_ROUTES in _present(plugin, [REGISTER_ROUTES], unusable, source)
            routes = _routes(plugin.register_routes) if has_routes else ()
        except (Exception, SystemExit) as error:
            return Made(None, (str(error) or type(error).__name__,), cause=error)
        faults, warnings = split(findings, source.is_strict)
        if offer.kind is PROVIDER and version > 1:
            warnings += tuple(check_categories(plugin, self._settings.categories))
        return Made(plugin, faults, warnings, unusable, routes=routes)

    def bind(
        self, offer: Offer, name: str, made: Made, metrics: Metrics, contexts: ContextFactory | None
    ) -> BoundPlugin:
        """Return the plugin that was made, ready to be started."""
        plugin, kind, source = made.plugin, offer.kind, offer.source
        names = (*kind.methods, *_present(plugin, kind.optional, made.unusable, source))
        methods = {method: getattr(plugin, method) for method in names}
        threads = int(getattr(plugin, "max_concurrency", self._settings.pool_threads))
        limits = _limits(plugin, source)
        bound = self._bound(
            kind.name, name, plugin, methods, threads=threads, metrics=metrics, contexts=contexts, limits=limits
        )
        bound.routes, bound.source = made.routes, source
        return bound

    def bind_module(
        self,
        source: Source,
        module: object,
        functions: Mapping[str, Callable[..., Any]],
        metrics: Metrics,
        contexts: ContextFactory | None,
    ) -> BoundPlugin | None:
        """Return what observes or filters, ready to be started; None when its settings say that it is not active.

        functions: its hooks, by name.
        """
        try:
            if not self.is_active(source):
                return None
            unusable = {each.method for each in check_module(module, source.api_version)}
            life = {method: getattr(module, method) for method in _present(module, LIFE, unusable, source)}
            methods = {**functions, **life}
            bound = self._bound(
                HOOK, source.name, module, methods, threads=HOOK_THREADS, metrics=metrics, contexts=contexts
            )
            bound.routes, bound.source = self.routes_of_module(functions), source
        except ConfigurationError as error:
            raise ConfigurationError(f"The plugin {source.name!r} cannot start: {error}") from error
        return bound

    def routes_of_module(self, functions: Mapping[str, Callable[..., Any]]) -> Sequence[Route]:
        """Return what a module serves; ConfigurationError when it cannot tell."""
        try:
            return _routes(functions[REGISTER_ROUTES], self._settings) if REGISTER_ROUTES in functions else ()
        except (Exception, SystemExit) as error:
            raise ConfigurationError(str(error) or type(error).__name__) from error

    def is_active(self, source: Source) -> bool:
        """Return whether what observes or filters is in use; ConfigurationError when its settings are wrong."""
        own = self._own.get(source.name)
        return own is None or self._settings.plugin(source.name, own).is_active


def described(info: PluginInfo, offer: Offer, made: Made) -> PluginInfo:
    """Return the line of a plugin with what is known of it since it was made."""
    plugin, kind = made.plugin, offer.kind
    limits = limits_as_json(_limits(plugin, offer.source), getattr(plugin, "extra_fields", None))
    methods = tuple(_present(plugin, (*kind.methods, *kind.optional), made.unusable, offer.source))
    return replace(info, methods=methods, limits=limits, routes=shown_routes(made.routes))


def _limits(plugin: object, source: Source) -> Limits:
    """Return what the plugin declares; one of version 1 declares nothing."""
    return declared_by(plugin).limits if source.api_version > 1 else Limits()


def _present(plugin: object, methods: Iterable[str], unusable: Iterable[str], source: Source) -> list[str]:
    """Return which of these methods the plugin has. One of version 1 may have its own by a name that came later."""
    known = [each for each in methods if each not in unusable and (each not in SINCE_2 or source.api_version > 1)]
    return [each for each in known if callable(getattr(plugin, each, None))]


def _routes(register: Callable[..., Any], *arguments: Any) -> Sequence[Route]:
    """Return what a plugin serves under /plugins/; whatever it raises otherwise."""
    if inspect.iscoroutinefunction(register):
        raise TypeError(f"{REGISTER_ROUTES} must be a plain def")
    routes = RouteList()
    register(routes, *arguments)
    return tuple(routes.all)
