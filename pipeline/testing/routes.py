"""The tests of plugins with HTTP routes: of `register_routes` and its handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import iscoroutinefunction
from typing import Any

import pytest

from pipeline.errors import NotReady, PipelineError
from pipeline.hooks import PluginReply, PluginRequest
from pipeline.hooks.routes import ADMIN, OPERATOR, PUBLIC, Route, RouteList
from pipeline.hooks.route_calls import WrongReply, checked_reply
from pipeline.testing.check_tests import under_test
from pipeline.testing.findings import IN_VARIABLES, describe, expect, fail_test
from pipeline.testing.outcomes import outcome_of
from pipeline.testing.suite import Call, PluginSuite, api_version_of

# Texts in place of a {name}; the client chooses them.
MARK, OUTSIDE = "<b>suite</b>", "../" * 12 + "etc/passwd"
PARAMS = {
    "an id that is none": "suite",
    "an id with .. in it": OUTSIDE,
    "a path as id": "/etc/passwd",
    "an id of other letters": f"ä{MARK}",
}
BODIES = {"no body": b"", "a body that is no JSON": b"{suite", "a list as body": b"[]", "{} as body": b"{}"}
ANSWER = "raise ValidationError or NotFound for what the client does wrong; this is a 500"


class RouteTests(PluginSuite):
    """Part of all suites.

    asks_admin_routes: whether routes for admins that change something are called too.
    """

    asks_admin_routes = True

    @pytest.fixture
    def routes(self, request: pytest.FixtureRequest) -> Sequence[Route]:
        """The routes that the plugin serves under /plugins/."""
        return self._routes_of(under_test(request))

    def test_routes_answer_every_request(self, routes: Sequence[Route], call: Call) -> None:
        """Every request gets a valid reply or an error of the service, also one with an invalid id or body."""
        for route in self._routes_to_ask(routes):
            for what, request in _odd_requests(route):
                with self._timed_as_routes():
                    outcome = call(handler_of(route), request)
                reply = self._answer(outcome, route, what)
                if route.role == PUBLIC and route.method != "GET" and what in BODIES:
                    is_taken = isinstance(reply, PluginReply) and reply.status < 400
                    expect(not is_taken, f"{_shown(route)} is public and takes {what} from anybody: check the caller")

    def test_routes_answer_calls_at_once(self, routes: Sequence[Route], call: Call, call_together: Call) -> None:
        """Five users at the same time each get their own answer."""
        for route in [each for each in self._routes_to_ask(routes) if each.method == "GET"]:
            requests = [_request(route, f"user-{number}", f"suite-{number}") for number in range(5)]
            alone = [self._answered(call, route, each) for each in requests]
            if alone != [self._answered(call, route, each) for each in requests]:
                continue  # its answers differ anyway
            with self._timed_as_routes():
                outcomes = call_together(*((handler_of(route), each) for each in requests))
            at_once = [repr(self._answer(each, route, "five calls at once")) for each in outcomes]
            expect(at_once == alone, f"{_shown(route)} answers otherwise when calls run at once: {IN_VARIABLES}")

    def _routes_of(self, plugin: Any) -> Sequence[Route]:
        register = getattr(plugin, "register_routes", None)
        if api_version_of(plugin) < 2 or not callable(register):
            return ()
        routes = RouteList()
        expect(not iscoroutinefunction(register), "register_routes is async: write a plain def")
        try:
            self._register(plugin, routes)
        except Exception as error:
            fail_test(f"register_routes raised {describe(error)}: add each route once, as in the reference")
        return routes.all

    def _register(self, plugin: Any, routes: RouteList) -> None:
        plugin.register_routes(routes)

    @contextmanager
    def _timed_as_routes(self) -> Iterator[None]:
        """Apply the time limit of hooks, which handlers have for every kind of plugin."""
        former, self.time_limit = self.time_limit, self.route_time_limit or self.time_limit
        try:
            yield
        finally:
            self.time_limit = former

    def _routes_to_ask(self, routes: Sequence[Route]) -> list[Route]:
        if not routes:
            pytest.skip("the plugin has no routes, which are optional")
        return [each for each in routes if self._may_ask(each)]

    def _may_ask(self, route: Route) -> bool:
        return self.asks_admin_routes or route.role != ADMIN or route.method == "GET"

    def _answered(self, call: Call, route: Route, request: PluginRequest) -> str:
        with self._timed_as_routes():
            outcome = call(handler_of(route), request)
        return repr(self._answer(outcome, route, "a user's request"))

    def _answer(self, outcome: object, route: Route, what: str) -> PluginReply | PipelineError:
        """Return the reply or error that the client gets."""
        if isinstance(outcome, NotReady) or (isinstance(outcome, PipelineError) and outcome.http_status != 500):
            return outcome if isinstance(outcome, PipelineError) else PipelineError("Not ready")
        if isinstance(outcome, Exception):
            fail_test(f"{_shown(route)} raised {describe(outcome)} for {what}: {ANSWER}")
        try:
            reply = checked_reply(outcome)
        except WrongReply as error:
            fail_test(f"{_shown(route)}: {error}: return PluginReply(json=...), or nothing")
        expect(b"root:" not in reply.body, f"{_shown(route)} reads any file for {what}: look ids up, join no paths")
        is_echo = reply.content_type.startswith("text/html") and MARK.encode() in reply.body
        expect(not is_echo, f"{_shown(route)} shows in HTML what it is asked, with its tags: use html.escape")
        return reply


def _odd_requests(route: Route) -> Iterator[tuple[str, PluginRequest]]:
    if any(each.startswith("{") for each in route.segments):
        for what, text in PARAMS.items():
            yield what, _request(route, "user-1", text)
    else:
        yield "a query of other letters", replace(_request(route, "user-1", ""), query={"id": MARK, "limit": "suite"})
    for what, body in BODIES.items() if route.method != "GET" else [("no query", b"")]:
        yield what, replace(_request(route, "user-1", "suite"), body=body)


def _request(route: Route, user_id: str, text: str) -> PluginRequest:
    params = {each[1:-1]: text for each in route.segments if each.startswith("{")}
    if route.role == PUBLIC:
        return PluginRequest(route.method, params, request_id="request-1")
    role = route.role if route.role in (ADMIN, OPERATOR) else ""
    return PluginRequest(route.method, params, user_id=user_id, role=role, request_id="request-1")


def handler_of(route: Route) -> Callable[..., Any]:
    """Return the handler as a function that returns what it raises."""
    return outcome_of(route.handler, _shown(route))


def _shown(route: Route) -> str:
    return f"{route.method} {route.path}"
