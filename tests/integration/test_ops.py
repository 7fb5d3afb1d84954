"""The operators' routes and queue-status on a real server, also while a dependency is unavailable or hangs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from math import isnan

import pytest
from tornado.ioloop import IOLoop

from pipeline import __version__
from pipeline.errors import DependencyUnavailable
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.running_calls import PluginOverrun
from tests.contract.contracts import API, EVENT, check_value
from tests.factories import make_token
from tests.integration.operator_server import Server, frozen_redis, server
from tests.slowdown import slowdown
from tests.redis_server import RedisServer

__all__ = ["frozen_redis", "server"]  # fixtures

ID = "65b9f0a4c2d1e3f4a5b6c7d8"
DATA = {
    "assetId": ID,
    "userId": "user-1",
    "imageUrl": "https://images.example.com/a.jpg",
    "category": "lego",
    "createdAt": "2026-01-31T12:00:00Z",
}


def value(page: str, name: str) -> float | None:
    """Return the value of a sample on the page of metrics, None if the page does not have it."""
    found = [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith(name + " ")]
    return float(found[0]) if found else None


@pytest.mark.spec("T057")
@pytest.mark.gen_test
async def test_queue_status_counts_jobs(server: Server) -> None:
    """Any user sees how many jobs are in which state."""
    await server.queue.enqueue(f"ai-processing:{ID}", DATA)
    await server.queue.pause()
    reply = await server.get("/api/assets/queue-status", Authorization=f"Bearer {make_token()}")
    assert reply.json()["data"] == {
        "waiting": 1,
        "active": 0,
        "completed": 0,
        "failed": 0,
        "delayed": 0,
        "paused": True,
    }


@pytest.mark.spec("T058")
@pytest.mark.gen_test
async def test_queue_status_needs_a_token(server: Server) -> None:
    """A request without a token is a 401."""
    reply = await server.get("/api/assets/queue-status")
    assert (reply.status_code, reply.json()["error"]["message"]) == (401, "Authentication required")


@pytest.mark.gen_test
async def test_queue_status_without_redis_is_unavailable(io_loop: IOLoop) -> None:
    """Without Redis the reply is a 503 with Retry-After."""
    server = Server("redis://127.0.0.1:1/0")
    reply = await server.get("/api/assets/queue-status", Authorization=f"Bearer {make_token()}")
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "5")
    await server.close()


@pytest.mark.gen_test
async def test_metrics_show_the_current_queue(server: Server) -> None:
    """A scrape shows the queue at this moment, and counts the scrapes before it."""
    await server.get("/metrics")
    await server.queue.enqueue(f"ai-processing:{ID}", DATA)
    page = (await server.get("/metrics")).text
    assert value(page, 'pipeline_queue_depth{queue="ai-processing",state="waiting"}') == 1
    oldest_seconds = value(page, 'pipeline_queue_oldest_seconds{queue="ai-processing"}')
    assert oldest_seconds is not None and oldest_seconds >= 0
    assert value(page, 'pipeline_http_requests_total{method="GET",route="/metrics",status="200"}') == 1


@pytest.mark.gen_test(timeout=20)
async def test_metrics_are_served_while_redis_hangs(server: Server, frozen_redis: Callable[[], None]) -> None:
    """A Redis that never answers delays the scrape by one second, and the queue's numbers are missing."""
    await server.get("/metrics")
    frozen_redis()
    started = time.monotonic()
    page = (await server.get("/metrics")).text
    assert time.monotonic() - started < 2 * slowdown()
    assert isnan(value(page, 'pipeline_processes{role="web",state="alive"}') or 0)
    assert isnan(value(page, 'pipeline_queue_depth{queue="ai-processing",state="waiting"}') or 0)
    assert value(page, 'pipeline_jobs_claimed_total{queue="ai-processing"}') == 0


@pytest.mark.gen_test(timeout=20)
async def test_metrics_have_the_queue_after_an_outage_of_redis(
    server: Server, frozen_redis: Callable[[], None], redis_server: RedisServer
) -> None:
    """The first scrape after the outage has the queue's numbers."""
    frozen_redis()
    depth = 'pipeline_queue_depth{queue="ai-processing",state="waiting"}'
    assert isnan(value((await server.get("/metrics")).text, depth) or 0)
    os.kill(redis_server.pid, signal.SIGCONT)
    assert value((await server.get("/metrics")).text, depth) == 0


@pytest.mark.gen_test
async def test_livez_calls_no_dependency(server: Server) -> None:
    """/livez answers 200 although a dependency is unavailable."""

    async def fail() -> None:
        raise DependencyUnavailable("unavailable")

    server.checks["store"] = fail
    reply = await server.get("/livez")
    assert (reply.status_code, reply.json()["data"]) == (200, {"status": "ok"})
    assert (await server.client.head("/livez")).status_code == 200


@pytest.mark.gen_test
async def test_readyz_is_200_when_each_dependency_answers(server: Server) -> None:
    """/readyz asks each dependency at the time of the request."""
    reply = await server.get("/readyz")
    assert (reply.status_code, reply.json()["data"]) == (200, {"dependencies": [{"name": "queue", "ok": True}]})


@pytest.mark.gen_test(timeout=20)
async def test_readyz_names_each_dependency_that_fails(server: Server) -> None:
    """/readyz gives type and text of each cause, with secrets masked. The checks run at the same time, at most 2 s."""

    async def fail() -> None:
        raise DependencyUnavailable("The store cannot be reached") from OSError("mongodb://app:hidden@db")

    async def raise_other() -> None:
        raise ValueError("cloudinary://1:hidden@cloud")

    async def print_controls() -> None:
        raise DependencyUnavailable("Not \x1b[31mset up\x07", retry_after_seconds=1)

    async def hang() -> None:
        await asyncio.Event().wait()

    server.checks.update(store=fail, storage=raise_other, steering=print_controls, slow=hang, slower=hang)
    started = time.monotonic()
    reply = await server.get("/readyz")
    assert time.monotonic() - started < 3.5 * slowdown()
    assert reply.status_code == 503
    assert reply.json()["data"]["dependencies"] == [
        {"name": "queue", "ok": True},
        {"name": "store", "ok": False, "error": "The store cannot be reached (OSError: mongodb://app:***@db)"},
        {"name": "storage", "ok": False, "error": "Check failed (ValueError: cloudinary://1:***@cloud)"},
        {"name": "steering", "ok": False, "error": "Not set up"},
        {"name": "slow", "ok": False, "error": "No answer within 2 s"},
        {"name": "slower", "ok": False, "error": "No answer within 2 s"},
    ]
    assert reply.json()["error"]["message"] == "Not ready: store, storage, steering, slow, slower"
    assert "hidden" not in reply.text


@pytest.mark.gen_test
async def test_readyz_verbose_shows_plugins_and_queues(server: Server) -> None:
    """It has the state of each plugin and queue and the duration of each check. Only dependencies decide the status."""
    released = threading.Event()
    for name in ("good", "failing", "hanging"):
        methods = {"analyze": lambda: released.wait(60)}
        server.plugins.append(BoundPlugin("provider", name, object(), methods, threads=1, metrics=server.metrics))
    breaker = server.plugins[1].breaker("analyze")
    breaker.busy(60, "AI service is busy", "Answer: HTTP 429 from ai.example")
    with pytest.raises(PluginOverrun):
        await server.plugins[2].call("analyze", 0.01)
    reply = await server.get("/readyz?verbose")
    data = reply.json()["data"]
    assert (reply.status_code, data["dependencies"][0]["ok"]) == (200, True)
    assert 0 < data["dependencies"][0]["tookMs"] < 2000
    assert data["plugins"] == [
        {"name": "good", "kind": "provider", "state": "ok"},
        {
            "name": "failing",
            "kind": "provider",
            "state": "held",
            "reason": "analyze: AI service is busy (Answer: HTTP 429 from ai.example)",
        },
        {"name": "hanging", "kind": "provider", "state": "stuck"},
    ]
    assert data["queues"] == [{"name": "ai-processing", "state": "running"}]
    released.set()
    await server.queue.pause()
    assert (await server.get("/readyz?verbose=1")).json()["data"]["queues"][0]["state"] == "paused"
    assert (await server.get("/readyz?other")).json()["data"] == {"dependencies": [{"name": "queue", "ok": True}]}


@pytest.mark.gen_test(timeout=20)
async def test_readyz_verbose_answers_while_redis_hangs(server: Server, frozen_redis: Callable[[], None]) -> None:
    """A hanging Redis costs the time limit once. The state of its queue is unknown, and the plugins are listed."""
    await server.get("/readyz?verbose")
    frozen_redis()
    started = time.monotonic()
    reply = await server.get("/readyz?verbose")
    assert time.monotonic() - started < 3.5 * slowdown()
    data = reply.json()["data"]
    assert (reply.status_code, data["plugins"]) == (503, [])
    assert data["queues"] == [{"name": "ai-processing", "state": "unknown"}]
    assert data["dependencies"][0]["tookMs"] >= 2000


@pytest.mark.gen_test
async def test_openapi_is_the_contract(server: Server) -> None:
    """/openapi.json is the contract of these tests, with the address and version of the service."""
    document = (await server.get("/openapi.json")).json()
    assert document["servers"] == [{"url": "https://photos.example.com/service"}]
    assert document["info"]["version"] == __version__
    assert document | {"servers": API["servers"]} == API


@pytest.mark.gen_test
async def test_asyncapi_is_the_contract_without_external_references(server: Server) -> None:
    """/asyncapi.json contains the schema of the event and refers to no other file. It names the service's address."""
    document = (await server.get("/asyncapi.json")).json()
    assert document["channels"].keys() == {"socket", "events"}
    assert document["info"]["version"] == __version__
    place = {"host": "photos.example.com", "pathname": "/service", "description": "This service."}
    assert document["servers"] == {"socket": place | {"protocol": "wss"}, "stream": place | {"protocol": "https"}}
    assert set(re.findall(r'"\$ref": "([^#][^"]*)"', json.dumps(document))) == set()
    schema = {"$ref": "#/components/schemas/AssetProcessed", "components": document["components"]}
    for example in EVENT["examples"]:
        check_value(schema, example)
        with pytest.raises(AssertionError):
            check_value(schema, example | {"userId": "ann"})


@pytest.mark.fault("U12")
@pytest.mark.gen_test
async def test_missing_storage_of_older_images_is_listed_among_the_plugins(server: Server) -> None:
    """The process is ready all the same: new images are saved in another storage."""
    server.missing["cloudinary"] = "STORAGE_BACKEND=cloudinary needs CLOUDINARY_URL"
    reply = await server.get("/readyz?verbose")
    assert reply.status_code == 200
    assert reply.json()["data"]["plugins"] == [
        {
            "name": "cloudinary",
            "kind": "storage",
            "state": "missing",
            "reason": "STORAGE_BACKEND=cloudinary needs CLOUDINARY_URL",
        }
    ]
