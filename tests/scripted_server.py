"""What the fakes of AI services share: a real HTTP server in the test's loop that gives the answers a test ordered."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Generic, TypeVar

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

Reply = TypeVar("Reply")


class ScriptedServer(Generic[Reply]):
    """Answers well unless told otherwise with `script` or `hold`; a subclass says how."""

    # What its URL ends with.
    root = ""

    def __init__(self, routes: list[tuple[Any, ...]]) -> None:
        """routes: as Tornado's Application takes them."""
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
        """Stop listening and drop every connection; held calls are let go."""
        self._server.stop()
        self.release()
        await self._server.close_all_connections()

    def script(self, *replies: Reply) -> None:
        """Answer the next calls with these, in order; after them all is well again."""
        self._script.extend(replies)

    def hold(self) -> None:
        """Leave every call unanswered until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Answer the held calls."""
        self._open.set()


def _silent(_handler: RequestHandler) -> None:
    """Scripted 5xx answers are no warnings."""
