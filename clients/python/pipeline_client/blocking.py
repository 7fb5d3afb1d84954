"""The client for programs without an event loop: each method waits for its result.

It wraps a `Client` that runs on a loop in a thread of its own. It may be used from many threads, and in a REPL.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from .access import ClientError, Token
from .client import Client
from .events import Frame

CLOSE_SECONDS = 10
T = TypeVar("T")


class BlockingClient:
    """The service as one user sees it. `with` or `close` ends the client; so does the end of the program.

    Many methods because each is a method of `Client`.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        since: str | None = None,
        progress: bool = False,
        on_notice: Callable[[str], None] = lambda words: None,
        on_transport: Callable[[str], None] = lambda transport: None,
    ) -> None:
        """Parameters as of `Client`. Functions are called in the client's thread and must not use this client."""
        self._client = Client(
            url, token, since=since, progress=progress, on_notice=on_notice, on_transport=on_transport
        )
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a program can end without closing the client.
        self._thread = threading.Thread(target=self._loop.run_forever, name="pipeline client", daemon=True)
        self._thread.start()
        self._ending = threading.Lock()
        self._end = weakref.finalize(self, _end, self._client, self._loop, self._thread)
        self._wait_for(self._client.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. A thread that waits for an event gets a ClientError."""
        with self._ending:
            self._end()

    def upload(
        self,
        path: str | Path,
        category: str,
        *,
        idempotency_key: str | None = None,
        on_progress: Callable[[int], None] = lambda sent: None,
    ) -> dict[str, Any]:
        """Upload a photo; return {"assetId", "jobId", "status", "message"}. Parameters as of `Client`."""
        upload = self._client.upload(path, category, idempotency_key=idempotency_key, on_progress=on_progress)
        return self._wait_for(upload)

    def asset(self, asset_id: str) -> dict[str, Any]:
        """Return the asset as it is now."""
        return self._wait_for(self._client.asset(asset_id))

    def wait(self, asset_id: str, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Return the asset as soon as it is finished, or TimeoutError."""
        return self._wait_for(self._client.wait(asset_id, timeout_seconds=timeout_seconds))

    def retry(self, asset_id: str) -> dict[str, Any]:
        """Run a failed or partial asset again; return {"assetId", "jobId", "status", "message"}."""
        return self._wait_for(self._client.retry(asset_id))

    def cancel(self, asset_id: str) -> dict[str, Any]:
        """Cancel the job of an asset: the asset fails with the error "Cancelled", and its event is sent."""
        return self._wait_for(self._client.cancel(asset_id))

    def correct(self, asset_id: str, **values: str | None) -> dict[str, Any]:
        """Correct fields, as brand="Adidas", model=None. A text stays for good; None returns the field to the AI."""
        return self._wait_for(self._client.correct(asset_id, **values))

    def delete(self, asset_id: str) -> None:
        """Delete the asset with its images."""
        self._wait_for(self._client.delete(asset_id))

    @property
    def since(self) -> str | None:
        """The timestamp up to which `events` has yielded all events. Another client can continue from it."""
        return self._client.since

    @property
    def transport(self) -> str | None:
        """How events come: "socket", "sse" or "poll"; None before `listen`."""
        return self._client.transport

    def listen(self) -> str:
        """Connect, and return the room. From then on `events` misses no event."""
        return self._wait_for(self._client.listen())

    def events(self, *, timeout_seconds: float | None = None) -> Iterator[Frame]:
        """Yield each event once, as `Client.events`; end when none has come for timeout_seconds."""
        while True:
            try:
                event = self._wait_for(_next_event(self._client, timeout_seconds))
            except TimeoutError:
                return
            yield event

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            work.close()
            raise ClientError("A function that the client calls must not use the client")
        with self._ending:
            if not self._end.alive:
                work.close()
                raise ClientError("This client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ClientError("This client is closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C
            raise


async def _next_event(client: Client, timeout_seconds: float | None) -> Frame:
    async with asyncio.timeout(timeout_seconds):
        return await client.next_event()


def _end(client: Client, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close the client on its loop, then end the loop. Hanging tasks do not block the end of the program."""
    if threading.current_thread() is thread:  # the garbage collector ran in that thread
        loop.create_task(_close(client)).add_done_callback(lambda _: loop.stop())
        return
    with suppress(Exception):
        asyncio.run_coroutine_threadsafe(_close(client), loop).result(CLOSE_SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(CLOSE_SECONDS)
    if not thread.is_alive():
        loop.close()


async def _close(client: Client) -> None:
    await client.__aexit__()
    remaining = asyncio.all_tasks() - {asyncio.current_task()}
    for task in remaining:
        task.cancel()
    await asyncio.gather(*remaining, return_exceptions=True)
