"""A plugin with its own routes, and what its notifier gets: a real service with an installed package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.packages import install
from tests.service import AiService, Service

DESK = '''
import time

from pipeline.errors import Conflict, DependencyUnavailable, NotReady, PermanentJobError
from pipeline.hooks import PluginReply, hookimpl

BAD = {
    "type": lambda: {"a": 1},
    "json": lambda: PluginReply(json={1, 2}),
    "cookie": lambda: PluginReply(headers={"Set-Cookie": "a=b"}),
    "split": lambda: PluginReply(headers={"X-A": "b\\r\\nSet-Cookie: a=b"}),
    "status": lambda: PluginReply(status=99),
    "raises": lambda: 1 / 0,
    "job": lambda: (_ for _ in ()).throw(PermanentJobError("secret of the job")),
}


class Desk:
    durable = True
    batch_size = 3
    batch_seconds = 5

    def __init__(self):
        self.batches, self.notified = [], []

    async def notify(self, notification):
        raise AssertionError("it has notify_many")

    async def notify_many(self, notifications):
        self.batches.append(len(notifications))
        for each in notifications:
            self.notified.append((each.event["assetId"], each.category, each.job_id, dict(each.claims)))
        return ["at the desk"] * len(notifications)

    def register_routes(self, routes):
        routes.add("GET", "/notified", self.show, role="operator-read")
        routes.add("POST", "/notes/{name}", self.note, max_body_bytes=100)
        routes.add("GET", "/notes/mine", lambda request: PluginReply(json="fixed"))
        routes.add("GET", "/notes/{name}", lambda request: PluginReply(json=request.path_params["name"]))
        routes.add("DELETE", "/notes/{name}", lambda request: None, role="admin")
        routes.add("POST", "/hello", self.hello, role="public")
        routes.add("GET", "/bad/{how}", lambda request: BAD[request.path_params["how"]](), role="public")
        routes.add("GET", "/slow", lambda request: time.sleep(30), role="public")
        routes.add("GET", "/away", self.away)
        routes.add("GET", "/page", lambda request: PluginReply(body=b"<h1>", content_type="text/html"), role="public")

    async def show(self, request):
        return PluginReply(json={"batches": self.batches, "notified": self.notified})

    def note(self, request):
        if request.json() == "taken":
            raise Conflict("It is taken")
        caller = {"user": request.user_id, "role": request.role, "claims": dict(request.claims)}
        what = {"name": request.path_params["name"], "query": dict(request.query), "headers": sorted(request.headers)}
        return PluginReply(201, json=caller | what, headers={"X-Desk": "here"})

    async def hello(self, request):
        return PluginReply(body=request.body + b"!", content_type="text/plain")

    async def away(self, request):
        raise DependencyUnavailable("The desk is away", retry_after_seconds=7)


@hookimpl
def register_notifiers(settings):
    yield "desk", Desk


@hookimpl
def register_routes(routes, settings):
    routes.add("GET", "/categories", lambda request: PluginReply(json=list(settings.categories)))
'''

ALLOWED_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
TOO_LARGE = (400, "VALIDATION_ERROR", "Request body too large")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests: none of their requests changes it."""
    folder = tmp_path_factory.mktemp("desk")
    with AiService() as ai_service:
        own = {"NOTIFIERS": "websocket,desk", "USER_CLAIMS": "email,locale,bio,odd"}
        own |= {"NOTIFIER_TIMEOUT_SECONDS": "1", "HOOK_TIMEOUT_SECONDS": "30"}
        # The entry point of the package has another name than the notifier.
        with Service(folder, ai_service.url, **own, **install(folder / "packages", frontdesk=DESK)) as service:
            yield service


def ask(service: Service, method: str, path: str, sub: str = "user-1", **options: Any) -> httpx.Response:
    """Call a route of a plugin with a token of the user `sub`; with "" no token is sent."""
    claims = options.pop("claims", {})
    headers = (service.headers(sub, **claims) if sub else {}) | options.pop("headers", {})
    return httpx.request(method, f"{service.url}/plugins{path}", headers=headers, timeout=20, **options)


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    """Return status, code and message of an error in the usual envelope."""
    reply = response.json()
    assert reply["success"] is False
    return response.status_code, reply["error"]["code"], reply["error"]["message"]


def test_handler_gets_the_caller_and_the_request(service: Service) -> None:
    """A plain function in a thread gets the decoded path, the query, the body and the caller, but not the token."""
    options: dict[str, Any] = {"json": {"a": 1}, "headers": {"Cookie": "a=b"}, "claims": {"email": "a@b.c", "age": 9}}
    response = ask(service, "POST", "/desk/notes/caf%C3%A9%2F7?x=1&x=2", **options)
    assert response.status_code == 201
    seen = response.json()
    assert (seen["user"], seen["role"], seen["claims"]) == ("user-1", "", {"email": "a@b.c"})
    assert (seen["name"], seen["query"]) == ("café/7", {"x": "2"})
    assert {"authorization", "cookie"}.isdisjoint(seen["headers"])
    assert response.headers["X-Desk"] == "here"
    assert ask(service, "GET", "/desk/notes/mine").json() == "fixed"
    assert ask(service, "GET", "/desk/notes/others").json() == "others"
    assert ask(service, "GET", "/frontdesk/categories").json() == ["sneaker", "lego", "camera", "other"]


def test_refused_calls_of_plugin_routes_have_the_usual_errors(service: Service) -> None:
    """Tokens, roles, origins, sizes, paths and methods are checked as on the routes of the service."""
    as_admin, as_reader = {"claims": {"role": "admin"}}, {"claims": {"role": "operator-read"}}
    foreign = {"headers": {"Origin": "https://evil.example"}}
    table: list[tuple[Any, tuple[int, str, str]]] = [
        (ask(service, "GET", "/desk/notes/a", ""), (401, "UNAUTHORIZED", "Authentication required")),
        (ask(service, "GET", "/desk/notified"), (403, "FORBIDDEN", "Only for operators")),
        (ask(service, "DELETE", "/desk/notes/a"), (403, "FORBIDDEN", "Only for admins")),
        (ask(service, "DELETE", "/desk/notes/a", **as_reader), (403, "FORBIDDEN", "Only for admins")),
        (ask(service, "DELETE", "/desk/notes/a", **as_admin, **foreign), (403, "FORBIDDEN", "Origin not allowed")),
        (ask(service, "POST", "/desk/hello", "", **foreign), (403, "FORBIDDEN", "Origin not allowed")),
        (ask(service, "GET", "/desk/none"), (404, "NOT_FOUND", "Not found")),
        (ask(service, "GET", "/desk"), (404, "NOT_FOUND", "Not found")),
        (ask(service, "GET", "/unknown/notes/a"), (404, "NOT_FOUND", "Not found")),
        (ask(service, "GET", "/desk/notes/"), (404, "NOT_FOUND", "Not found")),
        (ask(service, "PUT", "/desk/notes/a", content=b"x"), (405, "METHOD_NOT_ALLOWED", "Method Not Allowed")),
        (ask(service, "POST", "/desk/notes/a", content=b"{"), (400, "VALIDATION_ERROR", "Must be JSON")),
        (ask(service, "POST", "/desk/notes/a", content=b"[" * 100), (400, "VALIDATION_ERROR", "Must be JSON")),
        (ask(service, "POST", "/desk/notes/a", content=b"x" * 101), TOO_LARGE),
        (ask(service, "POST", "/desk/notes/a", content=iter([b"x" * 60, b"x" * 60])), TOO_LARGE),
        (ask(service, "POST", "/desk/notes/a", json="taken"), (409, "CONFLICT", "It is taken")),
        (ask(service, "GET", "/desk/away"), (503, "UNAVAILABLE", "The desk is away")),
        (ask(service, "GET", "/desk/slow", ""), (503, "UNAVAILABLE", "The plugin did not answer in time")),
    ]
    for number, (response, expected) in enumerate(table):
        assert error_of(response) == expected, (number, response.request.method, response.url)
    # A route has the time limit of the plugin's kind, and the log names the route.
    late = service.find("plugin_route_failed", plugin="desk", path="/slow")
    assert [line["cause"] for line in late] == ["PluginOverrun: notifier desk: GET /slow took longer than 1 s"]
    assert table[10][0].headers["Allow"] == ALLOWED_METHODS
    assert table[16][0].headers["Retry-After"] == "7"


def test_allowed_calls_of_plugin_routes_are_answered(service: Service) -> None:
    """Roles, preflight, origin, HEAD and page policy are as on other routes. An admin's change is in the audit list."""
    as_admin, as_reader = {"claims": {"role": "admin"}}, {"claims": {"role": "operator-read"}}
    assert ask(service, "DELETE", "/desk/notes/a", **as_admin).status_code == 204
    assert ask(service, "GET", "/desk/notified", **as_reader).status_code == 200
    own = {"headers": {"Origin": service.url}}
    preflight = ask(service, "OPTIONS", "/desk/notes/a", "", **own)
    allowed = preflight.headers["Access-Control-Allow-Methods"]
    assert (preflight.status_code, allowed) == (204, ALLOWED_METHODS)
    hello = ask(service, "POST", "/desk/hello", "", content=b"hi", **own)
    assert (hello.text, hello.headers["Access-Control-Allow-Origin"]) == ("hi!", service.url)
    page = ask(service, "GET", "/desk/page", "")
    head = ask(service, "HEAD", "/desk/page", "")
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", "4")
    assert head.headers["Content-Type"] == page.headers["Content-Type"] and page.text == "<h1>"
    assert ask(service, "HEAD", "/desk/hello", "").status_code == 405, "only POST"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    audit = httpx.get(f"{service.url}/api/queue/audit", headers=service.headers("boss", role="admin")).json()
    done = [(each["action"], each["outcome"]) for each in audit["data"]["items"]]
    assert ("DELETE /plugins/desk/notes/{name}", "done") in done


def test_access_lines_name_path_and_route(service: Service) -> None:
    """The route is the template of the plugin, the path is that of the request. The query is not logged."""
    reply = httpx.get(f"{service.url}/plugins/desk/notes/a%20b?key=hidden", headers=service.headers("ann"))
    line = service.wait_log("request_completed", requestId=reply.headers["X-Request-Id"])
    named = {"route": "/plugins/desk/notes/{name}", "path": "/plugins/desk/notes/a%20b", "userId": "ann", "status": 200}
    assert named.items() <= line.items() and "hidden" not in str(line)


def test_handler_that_fails_is_a_500_without_details(service: Service) -> None:
    """Each wrong result and each exception is logged and counted for the plugin. The next call is made."""
    ways = ("type", "json", "cookie", "split", "status", "raises", "job")
    for how in ways:
        response = ask(service, "GET", f"/desk/bad/{how}", "")
        assert error_of(response) == (500, "INTERNAL_ERROR", "Internal server error")
        assert "Set-Cookie" not in response.headers
    causes = [line["cause"] for line in service.find("plugin_route_failed", plugin="desk", path="/bad/{how}")]
    assert len(causes) == len(ways) and causes[5].startswith("ZeroDivisionError")
    page = httpx.get(f"{service.url}/metrics").text
    sample = 'pipeline_plugin_errors_total{kind="notifier",method="register_routes",plugin="desk"}'
    (line,) = [each for each in page.splitlines() if each.startswith(sample)]
    assert float(line.rpartition(" ")[2]) >= len(ways)
    assert 'route="/plugins/desk/bad/{how}"' in page and "/bad/raises" not in page
    assert "plugin_held" not in [line["event"] for line in service.lines]


def test_notifier_gets_batches_with_the_claims_of_the_owner(service: Service) -> None:
    """An event has category, job and the claims of the upload's token. No reply and no log line shows the claims."""
    claims = {"email": "ada@example.com", "locale": "fr", "bio": "x" * 3000, "odd": {"$set": 1}, "age": 9}
    headers = service.headers("ada", **claims)
    uploads = [service.upload("ada", category="lego", headers=headers) for _ in range(6)]
    ids = [each.json()["data"]["assetId"] for each in uploads]
    service.wait_log("job_completed", 6, notifier="desk")
    reply = ask(service, "GET", "/desk/notified", "boss", claims={"role": "admin"}).json()
    expected = {"email": "ada@example.com", "locale": "fr"}
    notified = {asset_id: (category, job_id, seen) for asset_id, category, job_id, seen in reply["notified"]}
    assert notified == {each: ("lego", f"ai-processing:{each}", expected) for each in ids}
    assert reply["batches"] == [3, 3]
    admin = service.headers("boss", role="admin")
    paths = [f"/api/assets/{ids[0]}", "/api/assets", f"/api/queue/jobs/ai-processing:{ids[0]}", "/api/queue/deliveries"]
    shown = [httpx.get(service.url + path, headers=headers | (admin if "queue" in path else {})) for path in paths]
    shown.append(httpx.get(f"{service.url}/api/users/ada", headers=admin))
    assert [each.status_code for each in shown] == [200] * 5
    for text in (*(each.text for each in shown), json.dumps(service.lines)):
        assert "ada@example" not in text
    left_out = {line["claim"] for line in service.find("claim_left_out")}
    assert left_out == {"bio", "odd"}
