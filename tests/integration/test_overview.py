"""The overview of all processes for operators, and the drain of one process: two real processes on one Redis."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from tests.contract.contracts import API_URI, check_value
from tests.factories import make_token
from tests.integration.operator_calls import call, overview, processes, until
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.sockets import Client

OVERVIEW = {"$ref": f"{API_URI}#/components/schemas/Overview"}
PROCESSES = "pipeline:{ai-processing}:processes"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A Redis that drops keys when it is full, as many hosted ones do by default."""
    with RedisServer("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        yield server


@pytest.fixture
def services(tmp_path: Path, ai_service: AiService, redis: RedisServer) -> Iterator[tuple[Service, Service]]:
    """Two processes. The tests act on the first and ask the second."""
    redis.client().flushall()
    more = {"REDIS_URL": redis.url, "CONCURRENCY": "2"}
    with Service(tmp_path, ai_service.url, **more) as first, Service(tmp_path, ai_service.url, **more) as second:
        yield first, second


def drain_first(first: Service, second: Service) -> str:
    """Let the second process drain the first; return the id of the first."""
    until(lambda: processes(second), lambda found: len(found) == 2)
    first_id: str = processes(second)[first.pid]["id"]
    assert call(second, "POST", f"/api/processes/{first_id}/drain")[1]["isDraining"]
    until(lambda: processes(second), lambda found: found[first.pid]["isDraining"])
    return first_id


def check_second_runs(first: Service, second: Service, assets: list[str]) -> None:
    """Check that the second process shows these assets in its own slots, and none in those of the first."""
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


def test_operators_see_the_slots_and_drain_one_process(
    services: tuple[Service, Service], ai_service: AiService
) -> None:
    """Each process shows the slots of both. A drained process finishes its job and claims no other."""
    first, second = services
    ai_service.configure(paused=True)
    first_id = drain_first(first, second)
    assets = [first.upload().json()["data"]["assetId"] for _ in range(2)]
    check_second_runs(first, second, assets)

    # The second process is full, so the third photo waits until the first process is resumed.
    third = first.upload().json()["data"]["assetId"]
    assert until(lambda: overview(second), lambda shown: shown["queues"][0]["waiting"] == 1)
    assert not call(second, "POST", f"/api/processes/{first_id}/resume")[1]["isDraining"]
    first.wait_log("process_resumed")
    until(lambda: processes(second), lambda found: [each["assetId"] for each in found[first.pid]["slots"]] == [third])

    acts = until(lambda: call(second, "GET", "/api/queue/audit")[1]["items"], lambda found: len(found) == 2)
    assert [(act["action"], act["target"], act["who"]) for act in acts] == [
        ("resume process", first_id, "ops-1"),
        ("drain process", first_id, "ops-1"),
    ]

    # A process that is drained finishes the job that it runs.
    call(first, "POST", f"/api/processes/{first_id}/drain")
    ai_service.configure(paused=False)
    first.wait_log("job_completed", assetId=third)
    until(lambda: overview(first), lambda shown: shown["queues"][0]["endedInLastMinute"] == 3)
    assert processes(first)[first.pid]["isDraining"], "a process that answers for itself shows its drain at once"
    last = first.upload().json()["data"]["assetId"]
    second.wait_log("job_completed", assetId=last)
    assert {line["assetId"] for line in first.find("job_completed")} == {third}


def test_lost_process_is_shown_as_not_alive_and_removed_after_an_hour(
    services: tuple[Service, Service], redis: RedisServer
) -> None:
    """A killed process is shown as not alive and cannot be drained. A process that was stopped is removed at once."""
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
    assert call(second, "POST", "/api/processes/unknown/resume")[0] == 404
    redis.client().hset(PROCESSES, "damaged", "no JSON")
    age(3601)
    assert processes(second).keys() == {second.pid}
    assert redis.client().hlen(PROCESSES) == 1 and redis.client().ttl(PROCESSES) > 3000

    first.start()
    until(lambda: processes(second), lambda found: first.pid in found)
    first.stop()
    assert processes(second).keys() == {second.pid}


def test_overview_answers_while_redis_is_down(services: tuple[Service, Service], redis: RedisServer) -> None:
    """An eviction policy that drops jobs is named unsafe. Without Redis its error is shown; its numbers are null."""
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
async def test_room_of_operators_needs_their_role(services: tuple[Service, Service], ai_service: AiService) -> None:
    """A reader gets the overview at once and after each change, also on a stream; a user does not get it."""
    service, _ = services
    with_operators = "/ws?events=operators"
    reading, admin = {"role": "operator-read"}, {"role": "admin"}
    async with aiohttp.ClientSession() as session:

        async def connect(sub: str, path: str = with_operators, **claims: Any) -> Client:
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
        # Without the role the socket stays in the room of its user and gets no more overviews.
        await late.send({"auth": {"token": make_token("late")}})

        stream = await session.get(
            f"{service.url}/api/events?events=operators", headers=service.headers("streamer", **reading)
        )
        lines = [(await stream.content.readuntil(b"\n\n")).decode() for _ in range(2)]
        assert "event: connected" in lines[0] and "event: overview" in lines[1]

        ai_service.configure(paused=True)
        receipts = [service.upload(sub).json()["data"] for sub in ("user-1", "late")]
        while not (await reader.frame())["queues"][0]["active"]:
            pass
        ai_service.configure(paused=False)
        while (await reader.frame())["queues"][0]["completed"] != 2:
            pass
        for client, receipt in zip((user, late), receipts, strict=True):
            assert (await client.frame())["assetId"] == receipt["assetId"], "the only frame there was"
        stream.close()
