"""The HTTP routes of plugins: which ones are valid, how a path finds its route, and what a reply may contain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.auth import TokenVerifier
from pipeline.errors import ConfigurationError, DependencyUnavailable, NotReady, ValidationError
from pipeline.handlers import plugin_routes
from pipeline.hooks import PluginReply, PluginRequest
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.context import ContextFactory
from pipeline.hooks.routes import Route, RouteList, find_routes
from pipeline.hooks.route_calls import RouteFailed, WrongReply, checked_reply
from pipeline.hooks.route_calls import answer as call_route
from pipeline.hooks.values import MemoryValues
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from tests.factories import SECRET
from tests.fake_plugins import ManagerFactory, make_catalogue, make_module
from tests.handler_server import HandlerServer


def answer(request: PluginRequest) -> None:
    """Handle a request with an empty reply."""


@pytest.mark.parametrize(
    ("arguments", "options", "fault"),
    [
        (("TRACE", "/a", answer), {}, "the method must be one of"),
        (("get", "/a", answer), {}, "the method must be one of"),
        (("GET", "a", answer), {}, "must begin with /"),
        (("GET", "/" + "a" * 200, answer), {}, "at most 200"),
        (("GET", "/a//b", answer), {}, "each part"),
        (("GET", "/..", answer), {}, "each part"),
        (("GET", "/{a}b", answer), {}, "each part"),
        (("GET", "/{a}/{a}", answer), {}, "twice"),
        (("GET", "/a", answer), {"role": "root"}, "the role must be one of"),
        (("POST", "/a", answer), {"role": "operator-read"}, "may change nothing"),
        (("POST", "/a", answer), {"max_body_bytes": 10**9}, "max_body_bytes"),
        (("GET", "/a", "answer"), {}, "must be a function"),
        (("GET", "/a", lambda: None), {}, "one argument"),
        (("GET", "/there/{other}", answer), {}, "has it already"),
    ],
)
def test_invalid_route_is_refused(arguments: Any, options: Any, fault: str) -> None:
    """The error at load names the fault for the author of the plugin."""
    routes = RouteList()
    routes.add("GET", "/there/{name}", answer)
    with pytest.raises(ValueError, match=fault):
        routes.add(*arguments, **options)


def test_fixed_part_of_a_path_precedes_a_name() -> None:
    """The order of adding does not count; each part is decoded separately, so that %2F stays in its part."""
    routes = RouteList()
    for method, path in (("GET", "/a/{b}"), ("GET", "/a/new"), ("POST", "/a/{c}")):
        routes.add(method, path, answer)
    found = {route.method: (route.path, params) for route, params in find_routes(routes.all, "/a/new")}
    assert found == {"GET": ("/a/new", {}), "POST": ("/a/{c}", {"c": "new"})}
    assert [params for _, params in find_routes(routes.all, "/a/x%2F%C3%A9")] == [{"b": "x/é"}, {"c": "x/é"}]
    for path in ("", "/", "/a", "/a/", "/a/x/y", "/A/new"):
        assert find_routes(routes.all, path) == []


@pytest.mark.parametrize(
    "reply",
    [
        *("text", PluginReply(True), PluginReply(600), PluginReply(body="x"), PluginReply(json=1, body=b"x")),
        *(PluginReply(json=float("nan")), PluginReply(204, body=b"x"), PluginReply(headers={"Content-Length": "9"})),
        *(PluginReply(headers={"Access-Control-Allow-Origin": "*"}), PluginReply(headers={"X": 1})),
        *(PluginReply(headers=[("X", "1")]), PluginReply(headers={"X Y": "1"}), PluginReply(content_type="a\r\nb: c")),
    ],
)  # type: ignore[arg-type]
def test_reply_that_cannot_be_sent_is_an_error_of_the_plugin(reply: Any) -> None:
    """The reply is refused before any part of it reaches the client."""
    with pytest.raises(WrongReply):
        checked_reply(reply)


def test_request_without_valid_json_is_an_error_of_the_client() -> None:
    """Invalid JSON raises ValidationError (400), also very deeply nested JSON."""
    for body in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValidationError):
            PluginRequest("POST", body=body).json()


@pytest.mark.gen_test
async def test_plugin_that_is_not_ready_is_not_called() -> None:
    """Its routes reply 503 with Retry-After and do not start it at each request; a failing route is still called."""
    starts: list[Any] = []

    def start(context: Any) -> None:
        starts.append(context)
        raise NotReady("no licence yet", retry_after_seconds=60)

    async def fail(request: PluginRequest) -> None:
        raise ValueError("odd")

    contexts = ContextFactory(Settings(), Metrics(), lambda name: MemoryValues())
    methods = {"start": start, "register_routes": lambda routes: None}
    plugin = BoundPlugin("notifier", "bell", object(), methods, threads=1, metrics=Metrics(), contexts=contexts)
    route = Route("GET", "/a", answer)
    for _ in range(3):
        with pytest.raises(DependencyUnavailable, match="The plugin is not ready") as caught:
            await call_route(plugin, route, PluginRequest("GET"), 5)
        assert 1 <= caught.value.retry_after_seconds <= 60
    assert len(starts) == 1
    ready = BoundPlugin("notifier", "bell", object(), {"register_routes": answer}, threads=1, metrics=Metrics())
    for _ in range(10):
        with capture_logs(), pytest.raises(RouteFailed):
            await call_route(ready, Route("GET", "/a", fail), PluginRequest("GET"), 5)
    assert (await call_route(ready, route, PluginRequest("GET"), 5)).status == 204


def test_routes_are_collected_by_the_name_of_the_plugin() -> None:
    """Objects and modules have routes; a faulty route or the same route twice stops the start and names the plugin."""

    class Notifier:
        def notify(self, notification: Any) -> None:
            pass

        def register_routes(self, routes: Any) -> None:
            routes.add("GET", "/a", answer)

    class Old(Notifier):
        pass

    def of_module(routes: Any, settings: Settings) -> None:
        routes.add("GET", "/a" if settings.port == 1 else "/b", answer)

    module = make_module("bell", register_notifiers=lambda: [("bell", Notifier)], register_routes=of_module)
    managers = ManagerFactory()
    manager = managers.open(module, notifiers=("bell",))
    served = [(plugin.kind, route.path) for plugin, route in manager.routes["bell"]]
    assert served == [("notifier", "/a"), ("hook", "/b")]
    infos = make_catalogue(Settings(notifiers=("bell",)), module)
    infos.inspect_plugins()
    listed = {info.kind: info.routes for info in infos.infos() if info.name == "bell"}
    assert listed == {"notifier": ("GET /a (user)",), "hook": ("GET /b (user)",)}
    with pytest.raises(ConfigurationError, match="two plugins 'bell' have the route GET /a"):
        managers.open(module, notifiers=("bell",), port=1)

    async def late(self: Any, routes: Any) -> None:
        pass

    Notifier.register_routes = late  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigurationError, match="NOTIFIERS: notifier 'bell' cannot start: register_routes must be"):
        managers.open(module, notifiers=("bell",))
    old = make_module("old", register_notifiers=lambda: [("old", Old)])
    old.API_VERSION = 1  # type: ignore[attr-defined]
    catalogue = make_catalogue(Settings(notifiers=("old",)), old)
    (kind,) = catalogue.kinds_of("old")
    assert catalogue.build(kind, "old", Metrics()).routes == ()


@pytest.mark.gen_test
async def test_client_that_does_not_read_its_reply_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is closed and its reply is freed; other clients get their replies."""
    monkeypatch.setattr(plugin_routes, "SEND_SECONDS", 0.2)
    large = PluginReply(body=bytes(64 * 1024 * 1024))

    async def show(request: PluginRequest) -> PluginReply:
        return large if request.query else PluginReply(body=b"small")

    plugin = BoundPlugin("hook", "bell", object(), {"register_routes": answer}, threads=1, metrics=Metrics())
    served = {"bell": [(plugin, Route("GET", "/a", show, role="public"))]}
    common = {"verifier": TokenVerifier(Settings(jwt_secret=SECRET)), "metrics": Metrics(), "allowed_origins": ()}
    own = {"plugin_routes": lambda: served, "seconds": {"hook": 5.0}}
    server = HandlerServer([("/plugins/(.*)", plugin_routes.PluginRouteHandler, common | own)], common)
    reader, writer = await asyncio.open_connection(*server.address, limit=1024)
    with capture_logs() as logs:
        writer.write(b"GET /plugins/bell/a?large=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(15):
            while not [line for line in logs if line["event"] == "plugin_reply_cut_off"]:
                await asyncio.sleep(0.01)
    writer.close()
    assert (await server.client.get("/plugins/bell/a")).content == b"small"
    await server.close()
