"""What operators see of plugins and of a process that runs no jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.integration.operator_calls import call, overview, processes, until
from tests.redis_server import RedisServer
from tests.service import Service


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/queue/overview"),
        ("GET", "/api/processes"),
        ("GET", "/api/plugins"),
        ("POST", "/api/processes/x/drain"),
        ("POST", "/api/processes/x/resume"),
    ],
)
def test_routes_of_operators_need_their_role(operated: Service, method: str, path: str) -> None:
    """A user may call none of them. A reader may read but not change. A page of another origin may not change."""
    assert call(operated, method, path, None)[0] == 403
    assert httpx.request(method, operated.url + path).status_code == 401
    assert call(operated, method, path, "operator-read")[0] == (200 if method == "GET" else 403)
    if method == "POST":
        headers = operated.headers("ops-1", role="admin") | {"Origin": "https://elsewhere.example"}
        assert httpx.post(operated.url + path, headers=headers).status_code == 403


DECLARED = """
from pipeline.hooks import Analysis, Rate, hookimpl

API_VERSION = 2

class Declared:
    needs_image = True
    categories = ["lego"]
    image_formats = ["png", "jpeg"]
    max_in_flight = 3
    rate = Rate(2, 10)

    async def analyze(self, request):
        return Analysis()

    def register_routes(self, routes):
        routes.add("GET", "/hello", self.hello)

    async def hello(self, request):
        raise AssertionError("not called by a test")

@hookimpl
def register_ai_providers():
    yield "declared", Declared
"""


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A process that runs no jobs, with the provider `local`, a provider that declares limits, and a broken plugin."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "declared.py").write_text(DECLARED)
    (folder / "shattered.py").write_text("raise ValueError('no \\x1b[31mlicence')")
    settings = {"PLUGINS_DIR": str(folder), "AI_PROVIDER": "local,declared", "ROLE": "web"}
    with RedisServer() as own, Service(tmp_path_factory.mktemp("data"), REDIS_URL=own.url, **settings) as service:
        yield service


def test_process_that_runs_no_jobs_cannot_be_drained(operated: Service) -> None:
    """A drain of a process with the role web is refused, and the process is not counted as a worker."""
    (process,) = until(lambda: processes(operated), lambda found: len(found) == 1).values()
    assert call(operated, "POST", f"/api/processes/{process['id']}/drain")[0] == 409
    # An id that is no UTF-8 is an unknown process.
    assert call(operated, "POST", "/api/processes/%ff/drain")[0] == 404
    shown = overview(operated)
    assert (shown["workersAlive"], shown["processesAlive"], shown["slots"]["all"]) == (0, 1, 0)
    assert (process["role"], process["concurrency"], process["isDraining"]) == ("web", 0, False)


def test_plugins_are_listed_with_state_and_abilities(operated: Service) -> None:
    """`sees` describes in words what a provider can recognise. /api/about has the same words for all users."""
    assert overview(operated)["storage"]["isUp"]
    listed = call(operated, "GET", "/api/plugins")[1]
    plugins: Mapping[tuple[str, str], Any] = {(each["kind"], each["name"]): each for each in listed["items"]}
    provider, storage = plugins["provider", "local"], plugins["storage", "local"]
    notifier = plugins["notifier", "websocket"]
    assert "lettering" in provider["sees"] and provider["categories"] == ["sneaker", "lego", "camera", "other"]
    assert (storage["name"], storage["state"], storage["categories"]) == ("local", "ok", None)
    assert storage["calls"] >= 1 and (storage["errors"], storage["maxInFlight"]) == (0, 16)
    assert (notifier["isDurable"], notifier["quarantinedUntil"]) == (False, None)
    about = httpx.get(f"{operated.url}/api/about").json()["data"]["providers"]
    assert about == [{"name": "local", "sees": provider["sees"]}, {"name": "declared", "sees": None}]
    assert listed["aiBudget"] is None and provider["today"]["calls"] == 0


def test_plugins_are_listed_with_limits_and_faults(operated: Service) -> None:
    """The list has what a plugin declares, its package and its routes. A broken plugin is listed with the reason."""
    plugins: Mapping[str, Any] = {each["name"]: each for each in call(operated, "GET", "/api/plugins")[1]["items"]}
    declared = plugins["declared"]
    assert (declared["package"], declared["version"], declared["apiVersion"]) == ("PLUGINS_DIR", None, 2)
    assert (declared["categories"], declared["imageFormats"]) == (["lego"], ["jpeg", "png"])
    assert (declared["rate"], declared["maxInFlightInAll"]) == ({"calls": 2, "perSeconds": 10}, 3)
    assert declared["routes"] == ["GET /hello (user)"] and declared["importMs"] >= 0
    broken = plugins["shattered"]
    assert (broken["kind"], broken["state"], broken["package"]) == (None, "broken", "PLUGINS_DIR")
    assert broken["reason"] == "ValueError: no licence"
