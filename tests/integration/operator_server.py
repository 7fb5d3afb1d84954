"""A server with the operators' routes and a real queue, and a Redis that can be stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.auth import TokenVerifier
from pipeline.handlers import ops
from pipeline.handlers.queue import QueueStatusHandler
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.settings import Settings
from pipeline.usecases.dependencies import Dependencies
from pipeline.usecases.processes import Processes
from tests.factories import SECRET
from tests.handler_server import HandlerServer
from tests.redis_server import RedisServer


class Server(HandlerServer):
    """The handlers on a port, with a queue on the given Redis. /readyz reads `checks`, `plugins` and `missing`."""

    def __init__(self, redis_url: str) -> None:
        self.queue = JobQueue(redis_url)
        self.checks: dict[str, Any] = {"queue": self.queue.ping}
        self.plugins: list[BoundPlugin] = []
        self.missing: dict[str, str] = {}
        settings = Settings(jwt_secret=SECRET, redis_url="redis://:hidden@redis/0", notifiers=("websocket", "<b>"))
        self.metrics = Metrics()
        self.dependencies = Dependencies(self.checks, lambda: self.plugins, self.metrics)
        self.processes = Processes(
            self.queue, {}, role="web", concurrency=0, sockets=lambda: 0, running=lambda job_id: None
        )
        common: dict[str, Any] = {
            "verifier": TokenVerifier(settings),
            "metrics": self.metrics,
            "allowed_origins": (),
        }
        filed = {"categories": settings.categories, "public_url": "https://photos.example.com/service"}
        routes: list[Any] = [
            ("/metrics", ops.MetricsHandler, common | {"queues": [self.queue], "processes": self.processes}),
            ("/livez", ops.LiveHandler, common),
            (
                "/readyz",
                ops.ReadyHandler,
                common
                | {
                    "dependencies": self.dependencies,
                    "plugins": self.plugins,
                    "queues": [self.queue],
                    "missing_storages": lambda: self.missing,
                },
            ),
            ("/openapi.json", ops.OpenApiHandler, common | filed),
            ("/asyncapi.json", ops.AsyncApiHandler, common | filed),
            ("/api/assets/queue-status", QueueStatusHandler, common | {"queue": self.queue}),
        ]
        super().__init__(routes, common)

    async def close(self) -> None:
        await super().close()
        await self.queue.close()


@pytest.fixture
def server(io_loop: IOLoop, redis_url: str) -> Iterator[Server]:
    async def start() -> Server:
        return Server(redis_url)

    server = io_loop.run_sync(start)
    yield server
    io_loop.run_sync(server.close)


@pytest.fixture
def frozen_redis(redis_server: RedisServer) -> Iterator[Callable[[], None]]:
    """Return a function that makes Redis hang: its connections stay open, but it answers nothing."""
    yield lambda: os.kill(redis_server.pid, signal.SIGSTOP)
    os.kill(redis_server.pid, signal.SIGCONT)
