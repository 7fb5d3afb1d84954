"""The base of fake services: a real HTTP server that sends scripted answers, in the test's loop or in a thread."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Generic, Protocol, TypeVar

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

WAIT_SECONDS = 30
Reply = TypeVar("Reply")


class ScriptedServer(Generic[Reply]):
    """Sends good answers unless `script` or `pause` says otherwise; a subclass makes the answers."""

    # The path at the end of its URL.
    root = ""

    def __init__(self, routes: list[tuple[Any, ...]]) -> None:
        """Start nothing yet.

        routes: those of Tornado's Application.
        """
        self.url = ""
        self._script: deque[Reply] = deque()
        self._open = asyncio.Event()
        self._open.set()
        self._server = HTTPServer(Application(routes, log_function=_silent))

    def start(self, port: int = 0) -> str:
        """Listen on 127.0.0.1 and return the base URL."""
        sockets = bind_sockets(port, "127.0.0.1")
        self._server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}{self.root}"
        return self.url

    async def stop(self) -> None:
        """Stop listening, answer the paused calls and close every connection."""
        self._server.stop()
        self.resume()
        await self._server.close_all_connections()

    def script(self, *replies: Reply) -> None:
        """Answer the next calls with these, in order; later calls get good answers."""
        self._script.extend(replies)

    def pause(self) -> None:
        """Answer no call until `resume`."""
        self._open.clear()

    def resume(self) -> None:
        """Answer the paused calls."""
        self._open.set()


class JsonReply(Protocol):
    """What begin_reply needs of a scripted answer.

    cut: close the connection instead of answering.
    """

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def cut(self) -> bool: ...


def begin_reply(handler: RequestHandler, reply: JsonReply) -> bool:
    """Set the status and the headers of a JSON answer; return False when the connection is closed instead."""
    if reply.cut:
        handler.request.connection.stream.close()  # type: ignore[union-attr]
        return False
    handler.set_status(reply.status)
    handler.set_header("Content-Type", "application/json")
    for name, value in reply.headers.items():
        handler.set_header(name, value)
    return True


class _Server(Protocol):
    def start(self) -> Any: ...

    async def stop(self) -> None: ...


Server = TypeVar("Server", bound=_Server)


@contextmanager
def serving_in_thread(make: Callable[[], Server]) -> Iterator[Server]:
    """Run a server on its own event loop in a thread, for tests that block their loop.

    make: returns the server; called on that loop.
    """
    servers: list[Server] = []
    ready = Event()
    loop = asyncio.new_event_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    async def serve() -> None:
        server = make()
        server.start()
        servers.append(server)
        ready.set()
        await stopped
        await server.stop()

    thread = Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(WAIT_SECONDS)
    try:
        yield servers[0]
    finally:
        loop.call_soon_threadsafe(stopped.set_result, None)
        thread.join(WAIT_SECONDS)
        loop.close()


async def until_terminated() -> None:
    """Return when this process gets SIGTERM or SIGINT."""
    terminated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, terminated.set)
    await terminated.wait()


def _silent(_handler: RequestHandler) -> None:
    """Do not log: scripted 5xx answers are no warnings."""
