"""The base of the fake AI services: a real HTTP server in the test's loop that sends scripted answers."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Generic, TypeVar

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

Reply = TypeVar("Reply")


class ScriptedServer(Generic[Reply]):
    """Answers well unless `script` or `hold` order otherwise; a subclass makes the answers."""

    # The path at the end of its URL.
    root = ""

    def __init__(self, routes: list[tuple[Any, ...]]) -> None:
        """Start nothing yet; routes: those of Tornado's Application."""
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
        """Stop listening, answer the held calls and close every connection."""
        self._server.stop()
        self.release()
        await self._server.close_all_connections()

    def script(self, *replies: Reply) -> None:
        """Answer the next calls with these, in order; later calls are answered well."""
        self._script.extend(replies)

    def hold(self) -> None:
        """Leave every call unanswered until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Answer the held calls."""
        self._open.set()


def _silent(_handler: RequestHandler) -> None:
    """Do not log: scripted 5xx answers are no warnings."""
