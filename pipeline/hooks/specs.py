"""The hooks a plugin may implement, in pluggy's terms.

pluggy finds, validates and orders the implementations; catalogue.py and hook_calls.py call them, one by one and
guarded, because pluggy itself is synchronous and stops at the first exception. An implementation names only those
arguments it wants; those of one hook are called in pluggy's order: built-in plugins before packages, unless one says
`tryfirst` or `trylast`. The `register_` hooks run once, at start, on the main thread, and must not block. The others
are called while the service works: written as `async def` on the event loop, which they must not block, as `def` in a
thread of the plugin's own; each call has HOOK_TIMEOUT_SECONDS, is timed and counted. A hook whose calls fail in a row
is held: it is not called for a while.
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
# Raised when a hook's arguments or a Protocol change so that plugins written for the old ones might not do what they
# were written for. A plugin may declare the one it was written for as `API_VERSION`. Those of version 1 go on working:
# nothing of what has come since is asked of them.
API_VERSION = 2
API_VERSIONS = (1, 2)
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Plugin = TypeVar("Plugin")
Factories = Iterable[tuple[str, Callable[[], Plugin]]]


@hookspec
def register_settings() -> Iterable[tuple[str, type[PluginSettings]]]:  # type: ignore[empty-body]
    """Yield (plugin name, PluginSettings subclass) pairs: the plugin's own settings, read from PLUGIN_<NAME>_<FIELD>.

    They are checked at start if the plugin is in use; `settings.plugin(name, Subclass)` returns them. The name is that
    of a provider, storage or notifier, or, for observers and filters, that of the package's entry point.
    """


@hookspec
def register_ai_providers(  # type: ignore[empty-body]
    settings: Settings, sandbox: Sandbox
) -> Factories[AIProvider | ReportingAIProvider]:
    """Yield (name, factory) pairs; those that AI_PROVIDER and AI_PROVIDER_BY_CATEGORY name are built. Import heavy
    packages in the factory, not before.

    sandbox: child processes for work that can hang or crash, such as decoding a photo. A factory raises
    ConfigurationError when its settings or packages are missing.
    """


@hookspec
def register_storage_backends(  # type: ignore[empty-body]
    settings: Settings, sandbox: Sandbox
) -> Factories[StorageBackend]:
    """Yield (name, factory) pairs; the one that STORAGE_BACKEND names is built."""


@hookspec
def register_notifiers(settings: Settings, sandbox: Sandbox) -> Factories[Notifier]:  # type: ignore[empty-body]
    """Yield (name, factory) pairs; those that NOTIFIERS names are built, in that order."""


@hookspec
def register_routes(routes: Routes, settings: Settings) -> None:
    """Add HTTP routes, which are served under /plugins/NAME/; NAME is that of the package's entry point.

    A provider, storage or notifier may have a method `register_routes(self, routes)` instead; NAME is its own then.
    """


@hookspec
def validate_upload(upload: UploadFacts, settings: Settings) -> None:
    """Filter: raise ValidationError to refuse an upload before it is stored; the client gets it as a 400.

    Any other exception is the plugin's own fault: it is logged, and the upload goes on, or gets a 503 where the filter
    is required. DependencyUnavailable for a service that cannot be asked: the filter is held at once, for its
    retry_after_seconds, which the client is told, or but for single uploads that try it.
    """


@hookspec
def transform_analysis(analysis: Analysis, request: AnalyzeRequest, settings: Settings) -> Analysis | None:
    """Filter: return what is to be kept instead of a provider's result, None to keep it as it is.

    Each implementation gets what the one before returned. A result that breaks the contract counts as an error of the
    plugin and is not used. `request.image` is always None.
    """


@hookspec
def job_enqueued(event: JobEvent, settings: Settings) -> None:
    """Observer: a job was put in the queue by an upload or a retry."""


@hookspec
def job_started(event: JobEvent, settings: Settings) -> None:
    """Observer: an attempt began."""


@hookspec
def job_retrying(event: JobEvent, settings: Settings) -> None:
    """Observer: an attempt ended and another will follow after event.delay_ms, because of event.error."""


@hookspec
def job_finished(event: JobEvent, settings: Settings) -> None:
    """Observer: the last attempt ended, or there will be none; event.outcome tells how.

    Observers get their events in order, each at most once, and never delay a job: one too slow for them misses some,
    which is counted.
    """
