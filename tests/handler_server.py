"""Handlers of the service on a port and on the event loop of the test, without the rest of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import tornado.netutil
import tornado.web

from pipeline.handlers import access_log, base
from pipeline.handlers.server import HttpServer
from tests.contract.contracts import check_reply

WAIT_SECONDS = 10.0


class HandlerServer:
    """A server with these routes, and an HTTP client of it.

    routes: those of tornado.web.Application.
    common: the arguments of every handler, see BaseHandler.initialize.
    """

    def __init__(self, routes: Sequence[Any], common: dict[str, Any]) -> None:
        app = tornado.web.Application(
            list(routes),
            default_handler_class=base.NotFoundHandler,
            default_handler_args=common,
            log_function=access_log.log_request,
        )
        (listener,) = tornado.netutil.bind_sockets(0, "127.0.0.1")
        self.address = listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._server = HttpServer(app, metrics=common["metrics"])
        self._server.add_socket(listener)
        self.client = httpx.AsyncClient(base_url=self.url, timeout=10)

    async def close(self) -> None:
        await self.client.aclose()
        self._server.stop()
        await self._server.close_all_connections()
        # A handler may still close its file in a thread after its reply.
        execute = tornado.web.RequestHandler._execute.__code__
        if handlers := [each for each in asyncio.all_tasks() if getattr(each.get_coro(), "cr_code", None) is execute]:
            await asyncio.wait(handlers, timeout=WAIT_SECONDS)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """GET and check the reply against the contract."""
        reply = await self.client.get(path, headers=headers)
        is_json = reply.headers.get("Content-Type", "").startswith("application/json")
        check_reply("GET", path, reply.status_code, reply.json() if is_json else None, reply.headers)
        return reply
