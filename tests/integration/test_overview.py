"""What operators see of the service as a whole, and how they drain a process: two real processes on one Redis."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from tests.contract.contracts import API_URI, check_reply, check_value
from tests.factories import make_token
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.sockets import Client

OVERVIEW = {"$ref": f"{API_URI}#/components/schemas/Overview"}
PROCESSES = "pipeline:{ai-processing}:processes"
WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """One that would drop jobs when it is full, as many hosted ones do by default."""
    with RedisServer("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        yield server


@pytest.fixture
def services(tmp_path: Path, ai_service: AiService, redis: RedisServer) -> Iterator[tuple[Service, Service]]:
    """Two processes; the second, which is asked, has no part in what happens to the first."""
    redis.client().flushall()
    more = {"REDIS_URL": redis.url, "CONCURRENCY": "2"}
    with Service(tmp_path, ai_service.url, **more) as first, Service(tmp_path, ai_service.url, **more) as second:
        yield first, second


def call(service: Service, method: str, path: str, role: str | None = "admin") -> tuple[int, Any]:
    """Call a route with a token of that role, hold the reply against the contract; return status and data or error."""
    response = httpx.request(method, service.url + path, headers=service.headers("ops-1", role=role), timeout=60)
    check_reply(method, path, response.status_code, response.json(), response.headers)
    body = response.json()
    return response.status_code, body["data"] if body["success"] else body["error"]


def overview(service: Service, role: str = "operator-read") -> dict[str, Any]:
    status, data = call(service, "GET", "/api/queue/overview", role)
    assert status == 200
    return dict(data)


def processes(service: Service) -> dict[int, dict[str, Any]]:
    """Return the processes by process id."""
    return {each["pid"]: each for each in call(service, "GET", "/api/processes", "operator-read")[1]["items"]}


def until(ask: Callable[[], Any], condition: Callable[[Any], bool]) -> Any:
    """Ask until the condition holds: a process tells of itself every two seconds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer


def test_operators_see_what_runs_and_drain_one_process(
    services: tuple[Service, Service], ai_service: AiService
) -> None:
    """The slots of both are seen from either; the one that is drained finishes its job and claims no other."""
    first, second = services
    ai_service.order(held=True)
    until(lambda: processes(second), lambda found: len(found) == 2)
    first_id = processes(second)[first.pid]["id"]

    assert call(second, "POST", f"/api/processes/{first_id}/drain")[1]["isDraining"]
    until(lambda: processes(second), lambda found: found[first.pid]["isDraining"])
    assets = [first.upload().json()["data"]["assetId"] for _ in range(2)]
    found = until(lambda: processes(second), lambda found: len(found[second.pid]["slots"]) == 2)
    assert found[first.pid]["slots"] == [] and not found[second.pid]["isDraining"]
    assert {slot["assetId"] for slot in found[second.pid]["slots"]} == set(assets)
    assert {(slot["provider"], slot["attempt"]) for slot in found[second.pid]["slots"]} == {("http", 1)}
    assert found[second.pid]["isThisOne"] and not found[first.pid]["isThisOne"]
    assert found[second.pid]["memoryBytes"] > 10_000_000 and found[second.pid]["busy"] == 2

    shown = overview(second)
    queue = shown["queues"][0]
    assert (queue["active"], queue["waiting"], queue["holds"]) == (2, 0, [])
    assert (shown["workersAlive"], shown["processesAlive"], shown["slots"]) == (2, 2, {"used": 2, "all": 4})

    # The second is full, so the third photo waits for the first process, which is asked to go on.
    waits = first.upload().json()["data"]["assetId"]
    assert until(lambda: overview(second), lambda shown: shown["queues"][0]["waiting"] == 1)
    assert not call(second, "POST", f"/api/processes/{first_id}/resume")[1]["isDraining"]
    first.wait_log("process_resumed")
    until(lambda: processes(second), lambda found: [each["assetId"] for each in found[first.pid]["slots"]] == [waits])

    acts = until(lambda: call(second, "GET", "/api/queue/audit")[1]["items"], lambda found: len(found) == 2)
    assert [(act["action"], act["target"], act["who"]) for act in acts] == [
        ("resume process", first_id, "ops-1"),
        ("drain process", first_id, "ops-1"),
    ]

    # A drain lets what runs come to its end.
    call(first, "POST", f"/api/processes/{first_id}/drain")
    ai_service.order(held=False)
    first.wait_log("job_completed", assetId=waits)
    until(lambda: overview(first), lambda shown: shown["queues"][0]["endedInLastMinute"] == 3)
    assert processes(first)[first.pid]["isDraining"], "the process that answers has drained itself at once"
    last = first.upload().json()["data"]["assetId"]
    second.wait_log("job_completed", assetId=last)
    assert {line["assetId"] for line in first.find("job_completed")} == {waits}


def test_process_that_was_lost_is_shown_as_gone_and_forgotten_after_an_hour(
    services: tuple[Service, Service], redis: RedisServer
) -> None:
    """One that ends in order is gone at once; one that is killed is shown not alive, and cannot be drained."""
    first, second = services
    until(lambda: processes(second), lambda found: len(found) == 2)
    lost = processes(second)[first.pid]["id"]
    first.signal(signal.SIGKILL)
    first.wait()

    def age(seconds: int) -> None:
        entry = json.loads(str(redis.client().hget(PROCESSES, lost)))
        entry["seenAt"] = to_timestamp(utc_now() - timedelta(seconds=seconds))
        redis.client().hset(PROCESSES, lost, json.dumps(entry))

    age(16)
    found = processes(second)
    assert (found[first.pid]["isAlive"], found[second.pid]["isAlive"]) == (False, True)
    assert overview(second)["workersAlive"] == 1
    assert call(second, "POST", f"/api/processes/{lost}/drain")[0] == 404
    assert call(second, "POST", "/api/processes/nobody/resume")[0] == 404
    redis.client().hset(PROCESSES, "damaged", "no JSON")
    age(3601)
    assert processes(second).keys() == {second.pid}
    assert redis.client().hlen(PROCESSES) == 1 and redis.client().ttl(PROCESSES) > 3000

    first.start()
    until(lambda: processes(second), lambda found: first.pid in found)
    first.stop()
    assert processes(second).keys() == {second.pid}


def test_overview_answers_without_redis_and_says_so(services: tuple[Service, Service], redis: RedisServer) -> None:
    """A policy that drops jobs is named unsafe; what is away is said, and what is not known is null."""
    first, _ = services
    shown = overview(first)
    about = shown["redis"]
    assert (about["isUp"], about["evictionPolicy"], about["isEvictionSafe"]) == (True, "allkeys-lru", False)
    assert (about["maxBytes"], about["persistence"], about["role"]) == (100 * 1024**2, "aof", "master")
    assert not about["isEmbedded"] and about["version"].split()[0] in ("Redis", "Valkey")
    assert (shown["store"]["kind"], shown["store"]["isUp"], shown["storage"]["name"]) == ("sqlite", True, "local")
    redis.stop()
    try:
        shown = until(lambda: overview(first), lambda shown: not shown["redis"]["isUp"])
        assert shown["queues"][0].keys() == {"name", "error"} and shown["redis"]["error"]
        assert (shown["workersAlive"], shown["slots"]) == (None, {"used": None, "all": None})
        assert shown["redis"]["isEvictionSafe"] is None and shown["store"]["isUp"]
        assert call(first, "GET", "/api/processes")[0] == 503
    finally:
        redis.start()
    until(lambda: overview(first), lambda shown: shown["processesAlive"] == 2)


@pytest.mark.gen_test(timeout=90)
async def test_operators_room_is_for_operators(services: tuple[Service, Service], ai_service: AiService) -> None:
    """A reader hears of the whole service at once and of every change, also on a stream; a user who asks never does."""
    service, _ = services
    asked = "/ws?events=operators"
    reading, admin = {"role": "operator-read"}, {"role": "admin"}
    async with aiohttp.ClientSession() as session:

        async def connect(sub: str, path: str = asked, **claims: Any) -> Client:
            headers = {"Authorization": f"Bearer {make_token(sub, **claims)}"}
            client = Client(await session.ws_connect(service.url + path, headers=headers))
            assert (await client.frame())["event"] == "connected"
            return client

        user, reader = await connect("user-1"), await connect("reader", **reading)
        first = await reader.frame()
        check_value(OVERVIEW, {name: each for name, each in first.items() if name != "event"})

        late = await connect("late", "/ws", **admin)
        await late.send({"auth": {"token": make_token("late", **admin)}, "events": ["operators", "unknown"]})
        assert (await late.frame())["event"] == "overview"
        # It lost its role: it stays in its own room and hears no more of the service.
        await late.send({"auth": {"token": make_token("late")}})

        stream = await session.get(
            f"{service.url}/api/events?events=operators", headers=service.headers("streamer", **reading)
        )
        lines = [(await stream.content.readuntil(b"\n\n")).decode() for _ in range(2)]
        assert "event: connected" in lines[0] and "event: overview" in lines[1]

        ai_service.order(held=True)
        receipts = [service.upload(sub).json()["data"] for sub in ("user-1", "late")]
        while not (await reader.frame())["queues"][0]["active"]:
            pass
        ai_service.order(held=False)
        while (await reader.frame())["queues"][0]["completed"] != 2:
            pass
        for client, receipt in zip((user, late), receipts, strict=True):
            assert (await client.frame())["assetId"] == receipt["assetId"], "the only frame there was"
        stream.close()


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
def test_routes_of_the_whole_are_for_operators(operated: Service, method: str, path: str) -> None:
    """A user gets none of them; a reader reads and changes nothing; a foreign page changes nothing."""
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
        raise AssertionError("nobody asks")

@hookimpl
def register_ai_providers():
    yield "declared", Declared
"""


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A process that answers HTTP only, with a provider that is told from others by what it sees, one that declares its
    limits, and a plugin that is broken.
    """
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "declared.py").write_text(DECLARED)
    (folder / "shattered.py").write_text("raise ValueError('no \\x1b[31mlicence')")
    settings = {"PLUGINS_DIR": str(folder), "AI_PROVIDER": "local,declared", "ROLE": "web"}
    with RedisServer() as own, Service(tmp_path_factory.mktemp("data"), REDIS_URL=own.url, **settings) as service:
        yield service


def test_process_that_runs_no_jobs_cannot_be_drained(operated: Service) -> None:
    """A process of the role web says so, and counts as no worker."""
    (process,) = until(lambda: processes(operated), lambda found: len(found) == 1).values()
    assert call(operated, "POST", f"/api/processes/{process['id']}/drain")[0] == 409
    # Nor can one whose id is no text.
    assert call(operated, "POST", "/api/processes/%ff/drain")[0] == 404
    shown = overview(operated)
    assert (shown["workersAlive"], shown["processesAlive"], shown["slots"]["all"]) == (0, 1, 0)
    assert (process["role"], process["concurrency"], process["isDraining"]) == ("web", 0, False)


def test_plugins_are_shown_with_what_they_see(operated: Service) -> None:
    """The provider says in plain words what it can see; the same words stand in what anybody may ask."""
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


def test_plugins_are_shown_with_their_limits_and_faults(operated: Service) -> None:
    """What a plugin declares, where it comes from, what it serves; and one that cannot be used, with the reason."""
    plugins: Mapping[str, Any] = {each["name"]: each for each in call(operated, "GET", "/api/plugins")[1]["items"]}
    declared = plugins["declared"]
    assert (declared["package"], declared["version"], declared["apiVersion"]) == ("PLUGINS_DIR", None, 2)
    assert (declared["categories"], declared["imageFormats"]) == (["lego"], ["jpeg", "png"])
    assert (declared["rate"], declared["maxInFlightInAll"]) == ({"calls": 2, "perSeconds": 10}, 3)
    assert declared["routes"] == ["GET /hello (user)"] and declared["importMs"] >= 0
    broken = plugins["shattered"]
    assert (broken["kind"], broken["state"], broken["package"]) == (None, "broken", "PLUGINS_DIR")
    assert broken["reason"] == "ValueError: no licence"
