"""The hooks a plugin may implement, in pluggy's terms.

pluggy finds, validates and orders the implementations. catalogue.py and hook_calls.py call them one by one and catch
their exceptions, because pluggy itself is synchronous and stops at the first exception. An implementation names only
the arguments that it needs. pluggy's order is: built-in plugins before packages, unless one says `tryfirst` or
`trylast`. The `register_` hooks run once, at start, on the main thread, and must not block. The other hooks are called
while the service works: an `async def` on the event loop, which it must not block, a `def` in a thread of the plugin.
Each call has HOOK_TIMEOUT_SECONDS, is timed and counted. A hook whose calls fail in a row is held: it is not called for
a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import pluggy

from pipeline.hooks.hook_arguments import JobEvent, UploadFacts
from pipeline.hooks.notifier_protocol import Notifier
from pipeline.hooks.provider_protocol import AIProvider, Analysis, AnalyzeRequest, ReportingAIProvider
from pipeline.hooks.sandbox_protocol import Sandbox
from pipeline.hooks.storage_protocol import StorageBackend
from pipeline.hooks.routes import Routes
from pipeline.settings import PluginSettings

if TYPE_CHECKING:
    from pipeline.settings import Settings

PROJECT = "ai_queue_pipeline"
# A new version when a hook's arguments or a Protocol change in a way that may break existing plugins. A plugin may
# declare its version as `API_VERSION`. Plugins of version 1 still work: no later requirement applies to them.
API_VERSION = 2
API_VERSIONS = (1, 2)
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Plugin = TypeVar("Plugin")
Factories = Iterable[tuple[str, Callable[[], Plugin]]]


@hookspec
def register_settings() -> Iterable[tuple[str, type[PluginSettings]]]:  # type: ignore[empty-body]
    """Yield (plugin name, PluginSettings subclass) pairs: the plugin's own settings, read from PLUGIN_<NAME>_<FIELD>.

    They are checked at start if the plugin is in use; `settings.plugin(name, Subclass)` returns them. The name is the
    name of a provider, storage or notifier, or, for observers and filters, of the package's entry point.
    """


@hookspec
def register_ai_providers(  # type: ignore[empty-body]
    settings: Settings, sandbox: Sandbox
) -> Factories[AIProvider | ReportingAIProvider]:
    """Yield (name, factory) pairs; the service calls the factories that AI_PROVIDER and AI_PROVIDER_BY_CATEGORY name.
    Import heavy packages in the factory, not before. A factory raises ConfigurationError when its settings or packages
    are missing.

    sandbox: child processes for work that can hang or crash, such as decoding a photo.
    """


@hookspec
def register_storage_backends(  # type: ignore[empty-body]
    settings: Settings, sandbox: Sandbox
) -> Factories[StorageBackend]:
    """Yield (name, factory) pairs; the service calls the factory that STORAGE_BACKEND names."""


@hookspec
def register_notifiers(settings: Settings, sandbox: Sandbox) -> Factories[Notifier]:  # type: ignore[empty-body]
    """Yield (name, factory) pairs; the service calls the factories that NOTIFIERS names, in that order."""


@hookspec
def register_routes(routes: Routes, settings: Settings) -> None:
    """Add HTTP routes, which are served under /plugins/NAME/; NAME is the name of the package's entry point.

    A provider, storage or notifier may have a method `register_routes(self, routes)` instead; then NAME is its name.
    """


@hookspec
def validate_upload(upload: UploadFacts, settings: Settings) -> None:
    """Filter: raise ValidationError to refuse an upload before it is stored; the client gets it as a 400.

    DependencyUnavailable: a service that the filter needs cannot be reached. The filter is held at once, for the
    error's retry_after_seconds, which the client gets too; without that number single uploads try it again.
    Any other exception is a fault of the plugin. It is logged, and the upload goes on, or gets a 503 if the filter is
    required.
    """


@hookspec
def transform_analysis(analysis: Analysis, request: AnalyzeRequest, settings: Settings) -> Analysis | None:
    """Filter: return the analysis to store instead of the provider's result, None to leave it unchanged.

    Each filter gets the result of the filter before it. A result that breaks the contract counts as an error of the
    plugin and is not used. `request.image` is always None.
    """


@hookspec
def job_enqueued(event: JobEvent, settings: Settings) -> None:
    """Observer: an upload or a retry put a job into the queue."""


@hookspec
def job_started(event: JobEvent, settings: Settings) -> None:
    """Observer: an attempt began."""


@hookspec
def job_retrying(event: JobEvent, settings: Settings) -> None:
    """Observer: an attempt ended and another will follow after event.delay_ms, because of event.error."""


@hookspec
def job_finished(event: JobEvent, settings: Settings) -> None:
    """Observer: the last attempt ended, or there will be none; see event.outcome.

    An observer gets its events in order, each at most once, and never delays a job: if it is too slow, it misses some
    events, which are counted.
    """
