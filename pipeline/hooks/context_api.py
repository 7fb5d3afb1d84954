"""What the service lends a plugin while it runs, as the plugin sees it: the argument of `start`. context.py has it."""

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
    """A few small values that a plugin keeps in the asset store: all processes have the same.

    They are backed up and moved with the assets. A value is JSON of at most MAX_VALUE_BYTES. A key is 1 to 200
    printable characters. What is about a user is kept with `user_id`: it goes when the user is erased. Every method
    raises DependencyUnavailable while the store is away.
    """

    async def get(self, key: str) -> Any:
        """Return the value, None when there is none."""

    async def put(self, key: str, value: Any, *, user_id: str = "") -> None:
        """Keep the value, in place of the one before. ValueError when it cannot be kept."""

    async def put_first(self, key: str, value: Any, *, user_id: str = "") -> Any:
        """Keep the value unless there is one; return the one that is there then. Of several processes that do so at
        once, all get that of the first.
        """

    async def delete(self, *keys: str) -> None:
        """Remove the values; those that are not there do not matter."""

    def list(self) -> AsyncIterator[tuple[str, Any]]:
        """Yield all keys with their values, those that were put longest ago first."""

    def of_user(self, user_id: str) -> AsyncIterator[tuple[str, Any]]:
        """Yield the keys with their values that were put for that user."""


class Measure(Protocol):
    """A counter or histogram of a plugin. labels: all that it was made with, by name."""

    def inc(self, amount: float = 1, **labels: str) -> None:
        """Add to the counter."""

    def observe(self, value: float, **labels: str) -> None:
        """Add a value to the histogram."""


class Context(Protocol):
    """What the service lends one plugin while it runs: the argument of `start`.

    http: one session for all plugins, with the proxies of the environment, the machine's certificates, the user agent
    of the service and the trace of the call that is under way; it keeps no cookies, and the service closes it. Give
    each request its `timeout`.
    data_dir: a folder of the plugin's own under DATA_DIR, on this machine alone. store: for what all processes share.
    log: a structlog logger that names the plugin. settings: of the service.
    """

    http: aiohttp.ClientSession
    data_dir: Path
    store: PluginStore
    log: Any
    settings: Settings

    def task(self, coroutine: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        """Run the coroutine beside everything else. It is cancelled before `close` is called; one that fails is logged
        and counted, and not started again.
        """

    def counter(self, name: str, text: str, *labels: str) -> Measure:
        """Return the counter `pipeline_plugin_<PLUGIN>_<name>_total` of /metrics, the same for the same name."""

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = ()) -> Measure:
        """Return the histogram `pipeline_plugin_<PLUGIN>_<name>` of /metrics, likewise."""


class Starting(Protocol):
    """Optional methods of a provider, storage or notifier; a module with observers or filters may have them as
    functions of the same names. Each is `async def` or `def`.
    """

    def start(self, context: Context) -> None | Awaitable[None]:
        """Get ready; called once, on start, before anything else is.

        Raises NotReady while that cannot be: the plugin is held, and `start` is called again after the time it says.
        After any other error the service does not start.
        """

    def check(self) -> None | Awaitable[None]:
        """Return when whatever the plugin leans on can be reached; raise DependencyUnavailable, or anything, otherwise.
        Asked by `run.py check`, /readyz?verbose and every 10 s for `pipeline_dependency_up`; it is to cost nothing. A
        storage that fails it is not ready.
        """

    def close(self) -> None | Awaitable[None]:
        """Let everything go; called once, at the end."""
