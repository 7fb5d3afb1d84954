"""A TLS context takes up to 300 ms on the event loop: the real process makes one for each kind of server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.forwarder import Forwarder
from tests.service import AiService, Service
from tests.redis_server import RedisServer


class Counted(Service):
    """A process that logs which package makes a context."""

    command = (
        "-c",
        "import json, runpy, ssl, sys\n"
        "make = ssl.create_default_context\n"
        "def logged(*options, **named):\n"
        "    maker = sys._getframe(1).f_globals['__name__'].split('.')[0]\n"
        "    print(json.dumps({'event': 'tls_context_made', 'maker': maker}), file=sys.stderr, flush=True)\n"
        "    return make(*options, **named)\n"
        "ssl.create_default_context = logged\n"
        "runpy.run_path('run.py', run_name='__main__')\n",
    )


@pytest.mark.fault("O16")
@pytest.mark.gen_test(timeout=90)
async def test_process_makes_one_tls_context_for_redis(tmp_path: Path, ai_service: AiService) -> None:
    """Queues, rooms and tickets share it over reconnects; aiohttp makes its own when it is imported."""
    authority = Authority(tmp_path, "ours")
    with RedisServer() as redis:
        async with Forwarder(redis.port, tls=authority.server_context("127.0.0.1")) as address:
            url = f"{address.url}?ssl_ca_certs={authority.ca_file}"
            await asyncio.to_thread(use, Counted(tmp_path / "data", ai_service.url, REDIS_URL=url), redis)


def use(service: Service, redis: RedisServer) -> None:
    with service:
        service.upload()
        service.wait_log("job_completed")
        assert httpx.post(service.url + "/api/events/ticket", headers=service.headers()).status_code == 201
        redis.client().client_kill_filter(_type="pubsub")
        service.wait_log("fanout_reconnected")
        service.upload()
        service.wait_log("job_completed", 2)
        assert sorted(line["maker"] for line in service.find("tls_context_made")) == ["aiohttp", "redis"]
