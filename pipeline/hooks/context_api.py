"""The context that a plugin gets, as the plugin sees it: the argument of `start`. context.py implements it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import aiohttp

    from pipeline.settings import Settings

# Of one value in a plugin's store, as JSON.
MAX_VALUE_BYTES = 64 * 1024


class PluginStore(Protocol):
    """A few small values of one plugin in the asset store: all processes see the same values.

    They are backed up and moved with the assets. A value is JSON of at most MAX_VALUE_BYTES. A key is 1 to 200
    printable characters. A value about a user is stored with its `user_id`: it is deleted when the user is erased.
    Every method raises DependencyUnavailable while the store cannot be reached.
    """

    async def get(self, key: str) -> Any:
        """Return the value, None when there is none."""

    async def put(self, key: str, value: Any, *, user_id: str = "") -> None:
        """Store the value, replacing the one before. ValueError when it cannot be stored."""

    async def put_first(self, key: str, value: Any, *, user_id: str = "") -> Any:
        """Store the value unless there is one; return the stored one. When several processes do so at once, all get
        the value of the first.
        """

    async def delete(self, *keys: str) -> None:
        """Remove the values; missing ones are no error."""

    def list(self) -> AsyncIterator[tuple[str, Any]]:
        """Yield all keys with their values, oldest first."""

    def of_user(self, user_id: str) -> AsyncIterator[tuple[str, Any]]:
        """Yield the keys with their values that were stored for that user."""


class Measure(Protocol):
    """A counter or histogram of a plugin.

    labels: the value of each of its labels, by name.
    """

    def inc(self, amount: float = 1, **labels: str) -> None:
        """Add to the counter."""

    def observe(self, value: float, **labels: str) -> None:
        """Add a value to the histogram."""


class Context(Protocol):
    """The services that one plugin may use while it runs: the argument of `start`.

    http: one session for all plugins, with the proxies of the environment, the machine's certificates, the user agent
    of the service and the trace of the current call. It stores no cookies, and the service closes it. Give each
    request its `timeout`.
    data_dir: a folder of the plugin's own under DATA_DIR, on this machine only.
    store: for values that all processes share.
    log: a structlog logger that names the plugin.
    settings: of the service.
    """

    http: aiohttp.ClientSession
    data_dir: Path
    store: PluginStore
    log: Any
    settings: Settings

    def task(self, coroutine: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        """Run the coroutine in the background. It is cancelled before `close` is called. A failure is logged and
        counted, and the task is not started again.
        """

    def counter(self, name: str, text: str, *labels: str) -> Measure:
        """Return the counter `pipeline_plugin_<PLUGIN>_<name>_total` of /metrics, the same for the same name."""

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = ()) -> Measure:
        """Return the histogram `pipeline_plugin_<PLUGIN>_<name>` of /metrics, the same for the same name."""


class Starting(Protocol):
    """Optional methods of a provider, storage or notifier; a module with observers or filters may have them as
    functions of the same names. Each is `async def` or `def`.
    """

    def start(self, context: Context) -> None | Awaitable[None]:
        """Get ready; called once, when the service starts, before any other method.

        NotReady: the plugin cannot be used yet. It is held, and `start` is called again after the time in the error.
        After any other error the service does not start.
        """

    def check(self) -> None | Awaitable[None]:
        """Return when all services that the plugin needs can be reached; raise DependencyUnavailable, or any other
        error, otherwise.

        Called by `run.py check`, by /readyz?verbose and every 10 s for `pipeline_dependency_up`; it must cost nothing.
        While it fails for the current storage, the service is not ready.
        """

    def close(self) -> None | Awaitable[None]:
        """Release all resources; called once, at the end."""
