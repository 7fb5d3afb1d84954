"""Tests of a storage that serves its images by a route of its own: its URLs lead there and show the saved bytes."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pipeline.errors import PipelineError
from pipeline.hooks import PluginRequest
from pipeline.hooks.routes import PUBLIC, Route, find_routes
from pipeline.testing.findings import expect, fail_test
from pipeline.testing.routes import RouteTests, handler_of
from pipeline.testing.suite import Call

UNDER = "/plugins/"


class OwnRoutes(RouteTests):
    """Part of the suite of storages."""

    def _expect_served(self, call: Call, storage: Any, method: str, url: str, saved: tuple[bytes, str]) -> None:
        """Call the handler of a URL of the service itself, as a browser would."""
        base = self.service_settings.served_at + UNDER
        if not url.startswith(base):
            return
        name, slash, path = urlsplit(url[len(base) :]).path.partition("/")
        routes = self._routes_of(storage)
        if not routes and callable(getattr(sys.modules.get(type(storage).__module__), "register_routes", None)):
            return  # a hook of the module, under the name of its entry point
        expect(routes, f"{method} returns {url}, but the storage has no routes: add one in register_routes")
        is_own = not self.plugin_name or name == self.plugin_name
        expect(is_own, f"{method} returns a URL under {UNDER}{name}/: its routes are under {UNDER}{self.plugin_name}/")
        matching = [(each, params) for each, params in find_routes(routes, slash + path) if each.method == "GET"]
        cure = "quote the id, a / in it too, for one {name}"
        expect(matching, f"{method} returns {url}, where no route of it is: {cure}")
        route, params = matching[0]
        query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
        user = "" if route.role == PUBLIC else "user-1"
        with self._timed_as_routes():
            outcome = call(handler_of(route), PluginRequest("GET", params, query, user_id=user, request_id="request-1"))
        self._expect_image(outcome, route, method, saved)

    def _expect_image(self, outcome: object, route: Route, method: str, saved: tuple[bytes, str]) -> None:
        what = f"what {method} returns"
        reply = self._answer(outcome, route, what)
        shown = f"GET {route.path}"
        if isinstance(reply, PipelineError):
            fail_test(f"{shown} refuses {what} ({type(reply).__name__}: {reply.message}): answer with the image")
        if 300 <= reply.status < 400:
            return  # it is shown elsewhere
        expect(reply.status == 200, f"{shown} answers {what} with {reply.status}: answer with the image")
        expect(reply.body == saved[0], f"{shown} shows other bytes than were saved: return them unchanged")
        kind = reply.content_type.partition(";")[0].strip().lower()
        expect(kind == saved[1], f"{shown} says {kind!r} of an image saved as {saved[1]!r}: store the content type")
