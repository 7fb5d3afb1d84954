"""/plugins/NAME/...: the routes of plugins, with the tokens, limits, errors and access log of the service.

The service has no route of its own below /plugins/, so a plugin cannot replace one. The caller is authenticated before
the body is read. Runs on the event loop; a plain `def` of a plugin runs in the plugin's threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import structlog
import tornado.web
from tornado.iostream import StreamClosedError

from pipeline.errors import Forbidden, NotFound, PipelineError, ValidationError
from pipeline.handlers.base import SEND_SECONDS, BaseHandler
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.routes import ADMIN, OPERATOR, PUBLIC, PluginReply, PluginRequest, Route, find_routes
from pipeline.hooks.route_calls import RouteFailed, answer

log = structlog.get_logger(__name__)

PREFIX = "/plugins/"
# The default for replies of plugins: a page of a plugin would have the origin of the service's pages.
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Plugins do not get the caller's credentials.
SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization")
Served = Mapping[str, Sequence[tuple[BoundPlugin, Route]]]


class PluginRouteHandler(BaseHandler):
    """Every route of every plugin."""

    def initialize(  # type: ignore[override]
        self, *, plugin_routes: Callable[[], Served], seconds: Mapping[str, float], **common: Any
    ) -> None:
        """plugin_routes: returns the routes by the plugin's name.

        seconds: how long a route of a plugin may take, by the plugin's kind.
        """
        super().initialize(**common)
        self._seconds = seconds
        self._body = bytearray()
        self._chosen: tuple[BoundPlugin, Route, Mapping[str, str]] | None = None
        name, slash, rest = (self.request.path or "").removeprefix(PREFIX).partition("/")
        served = plugin_routes().get(unquote(name), ()) if slash else ()
        plugins = {id(route): plugin for plugin, route in served}
        found = find_routes([route for _, route in served], slash + rest)
        self._found = {route.method: (plugins[id(route)], route, params) for route, params in found}
        if found:
            plugin, route, _ = self._found.get(self._method, next(iter(self._found.values())))
            # The template, not the path: labels of metrics must come from a small set.
            self.route = f"{PREFIX}{plugin.name}{route.path}"  # type: ignore[misc]

    async def prepare(self) -> None:
        try:
            super().prepare()
            if self.request.method == "OPTIONS":
                self._check_found()
            else:
                self._chosen = await self._admit()
        except (PipelineError, tornado.web.HTTPError) as error:
            self.refuse_early(error)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._chosen is None or self.is_refused:
            return super().data_received(chunk)
        most = self._chosen[1].max_body_bytes
        self._body += chunk
        if len(self._body) > most:
            self._body.clear()
            self.refuse(_too_large(most), is_body_begun=True)
        return None

    async def _serve(self, *_path: str) -> None:
        if self.ends_early():
            return
        assert self._chosen is not None
        plugin, route, params = self._chosen
        await self._send(await answer(plugin, route, self._request_of(route, params), self._seconds[plugin.kind]))

    get = head = post = put = patch = delete = _serve

    def options(self, *path: str) -> None:
        if not self.ends_early():
            super().options(*path)

    async def _admit(self) -> tuple[BoundPlugin, Route, Mapping[str, str]]:
        """Return the requested route; raise when there is none or the caller may not use it."""
        self._check_found()
        chosen = self._found.get(self._method)
        if chosen is None:
            raise tornado.web.HTTPError(405)
        route = chosen[1]
        if route.role != PUBLIC:
            await self.authenticate()
            self._check_role(chosen[0], route)
        if not self.is_read_only:
            self.refuse_foreign_page()
        if int(self.request.headers.get("Content-Length", "0")) > route.max_body_bytes:
            raise _too_large(route.max_body_bytes)
        return chosen

    def _check_found(self) -> None:
        if not self._found:
            raise NotFound("Not found")

    def _check_role(self, plugin: BoundPlugin, route: Route) -> None:
        if route.role == ADMIN and not self.principal.is_admin:
            raise Forbidden("Only for admins")
        if route.role == OPERATOR and not self.principal.is_operator:
            raise Forbidden("Only for operators")
        if route.role == ADMIN and not self.is_read_only:
            self.begin_act(f"{route.method} {self.route}", plugin.name)

    def _request_of(self, route: Route, params: Mapping[str, str]) -> PluginRequest:
        query = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        headers = {name.lower(): value for name, value in self.request.headers.get_all()}
        if route.role == PUBLIC:
            caller: dict[str, Any] = {}
        else:
            headers = {name: value for name, value in headers.items() if name not in SECRET_HEADERS}
            principal = self.principal
            caller = {"user_id": principal.user_id, "role": principal.role, "claims": principal.claims}
        body = bytes(self._body)
        return PluginRequest(self._method, params, query, headers, body, request_id=self.request_id, **caller)

    async def _send(self, reply: PluginReply) -> None:
        self.set_status(reply.status)
        self.set_header("Content-Security-Policy", POLICY)
        if reply.body:
            self.set_header("Content-Type", reply.content_type)
        else:
            self.clear_header("Content-Type")
        for name, value in reply.headers.items():
            self.set_header(name, value)
        sent = self.finish(reply.body or None)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await sent
        except StreamClosedError:
            return
        except TimeoutError:
            # The reply must not stay in memory for a client that reads too slowly.
            log.info("plugin_reply_cut_off", requestId=self.request_id, route=self.route, bytes=len(reply.body))
            self.connection.close()

    @property
    def _method(self) -> str:
        """The method that the plugin sees: GET for HEAD; Tornado drops the body of the reply."""
        return "GET" if self.request.method == "HEAD" else str(self.request.method)

    def _allowed_methods(self) -> str:
        methods = {*self._found, "OPTIONS"} | ({"HEAD"} if "GET" in self._found else set())
        return ", ".join(name for name in self.SUPPORTED_METHODS if name in methods)

    def log_exception(self, *exc_info: Any) -> None:
        if not isinstance(exc_info[1], RouteFailed):  # was logged at the call of the plugin
            super().log_exception(*exc_info)


def _too_large(most: int) -> ValidationError:
    return ValidationError.of("body", f"Must have at most {most} bytes", "Request body too large")
