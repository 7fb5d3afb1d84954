"""The service as a Redis user with no more rights than docs/operations.md lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.client import Client
from pipeline.commands.checks.redis_rights import acl_rules
from tests.factories import make_token
from tests.redis_server import RedisServer
from tests.service import AiService, Service


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis with the user `pipeline`, who has the documented rights."""
    with RedisServer() as server:
        server.client().execute_command("ACL", "SETUSER", "pipeline", "on", ">word", *acl_rules("pipeline"))
        yield server


@pytest.mark.fault("O7")
def test_service_works_with_the_documented_rights(
    server: RedisServer, tmp_path: Path, ai_service: AiService
) -> None:
    """Jobs, retries, dead letters, pause, events of another process and the console work with these rights.

    Readiness is green, and Redis has refused no command.
    """
    url = f"redis://pipeline:word@127.0.0.1:{server.port}/0"
    ai_service.configure(replies=[{"status": 500, "times": 1}, {"status": 422, "times": 1}])
    settings = {"REDIS_URL": url, "BACKOFF_MS": "1"}
    one = Service(tmp_path, ai_service.url, ROLE="web", **settings)
    two = Service(tmp_path, ai_service.url, QUEUE_FAIRNESS="user", **settings)

    async def see(service: Service) -> set[str]:
        async with Client(service.url, make_token(), progress=True) as client:
            await client.listen()
            for _ in range(3):
                await asyncio.to_thread(service.upload)
            statuses = []
            async for event in client.events():
                if event["event"] == "asset_processed":
                    statuses.append(event["status"])
                if len(statuses) == 3:
                    return set(statuses)
        raise AssertionError("the stream of events ended")

    with one, two:
        assert asyncio.run(see(one)) == {"active", "failed"}
        admin = one.headers(role="admin")
        for method, path in (
            *(("POST", "/api/queue/pause"), ("POST", "/api/queue/resume"), ("GET", "/api/queue/overview")),
            *(("GET", "/api/queue/failed"), ("GET", "/api/queue/users"), ("GET", "/api/processes")),
            *(("GET", "/api/queue/jobs"), ("POST", "/api/queue/failed/retry"), ("GET", "/metrics"), ("GET", "/readyz")),
        ):
            reply = httpx.request(method, one.url + path, headers=admin)
            assert reply.status_code < 300, (path, reply.text)
    assert server.client().execute_command("ACL", "LOG") == []
