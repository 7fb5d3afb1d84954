"""Our side of the comparison, one process: python -m benchmarks.rooms.server [REDIS_URL]

The real rooms, fanout, socket handler and token check in a Tornado server, without store, queue and worker. Prints its
port; GET /emit?count=&rate=&users= emits. Without Redis into the local rooms, with Redis as the worker does: through
the fanout, for the sockets of another process. For slow.py: GET /flood?rounds=&first=&users=&bytes=&pace_ms= sends
large events, GET /closed?code= tells how many sockets were closed with a code. For crowd.py: GET /finish?users=&first=
puts an asset of each user in the store, finished now, that nobody is told of: as one that another process finished
while Redis was away.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
import tornado.netutil
import tornado.web

from benchmarks.rooms.emission import emit, make_event, room_of
from pipeline.assets.asset import AiMetadata, Asset, AssetStatus
from pipeline.clock import utc_now
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.auth import TokenVerifier
from pipeline.handlers import access_log
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.events import EventsHandler
from pipeline.handlers.server import HttpServer
from pipeline.handlers.socket import SocketHandler
from pipeline.metrics import Metrics
from pipeline.usecases.admission import Admission
from pipeline.usecases.replay import Replay
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.frames import event_frame
from pipeline.rooms.rooms import Rooms
from pipeline.rooms.tickets import Tickets
from pipeline.settings import Settings
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.limits import NoBuckets, limits_of
from tests.factories import SECRET, make_asset
from tests.memory_storage import MemoryStorage

# Few, so that the other sockets do not wait for the flood itself.
FLOOD_SLICE = 10
STORE_SLICE = 500


class Wiring:
    """The parts and the routes of sockets and streams, put together as app.py does it."""

    def __init__(self, folder: Path, redis_url: str | None) -> None:
        settings = Settings(jwt_secret=SECRET)
        metrics = self.metrics = Metrics()
        self.rooms = Rooms(max_bytes=settings.outbox_bytes, metrics=metrics)
        self.store = SqliteAssetStore(folder / "assets.sqlite")
        self.replay = Replay(
            self.store,
            self.rooms,
            metrics,
            urls=ImageUrls(MemoryStorage()),
            max_bytes=settings.outbox_bytes,
            lease_seconds=settings.lease_seconds,
        )
        self.fanout = RoomFanout(self.rooms, redis_url, metrics=metrics) if redis_url else None
        common = {"verifier": TokenVerifier(settings), "metrics": metrics, "allowed_origins": ()}
        common |= {"limits": limits_of(settings, NoBuckets(), metrics)}
        common |= {"admission": Admission(self.rooms, self.replay, settings), "settings": settings}
        tickets = Tickets(redis_url or "redis://127.0.0.1", prefix=settings.queue_prefix)
        self.routes: list[Any] = [
            ("/ws", SocketHandler, common),
            ("/api/events", EventsHandler, common | {"tickets": tickets}),
        ]

    async def start(self) -> None:
        """Open what the parts lean on; the process ends by a signal, so nothing closes it."""
        await self.store.open()
        self._replaying = asyncio.create_task(self.replay.run())
        if self.fanout:
            self.fanout.on_gap = self.replay.request
            await self.fanout.start()


class EmitHandler(tornado.web.RequestHandler):
    """Emits inside the server and answers when all is handed on."""

    def initialize(self, *, rooms: Rooms, fanout: RoomFanout | None) -> None:
        self.rooms = rooms
        self.fanout = fanout

    async def get(self) -> None:
        count, rate, users = (int(self.get_argument(name)) for name in ("count", "rate", "users"))

        async def send_here(numbers: range) -> None:
            for number in numbers:
                # As RoomFanout.publish does first of all.
                self.rooms.deliver(room_of(number, users), event_frame(make_event(number)))

        async def send_everywhere(numbers: range) -> None:
            assert self.fanout is not None
            await asyncio.gather(*(self.fanout.publish(room_of(each, users), make_event(each)) for each in numbers))

        await emit(send_everywhere if self.fanout else send_here, count, rate)
        self.finish("ok")


class FloodHandler(tornado.web.RequestHandler):
    """Sends an event of so many bytes to each of a range of users, again and again."""

    def initialize(self, *, rooms: Rooms) -> None:
        self.rooms = rooms

    async def get(self) -> None:
        rounds, first, users, size, pace_ms = (
            int(self.get_argument(name)) for name in ("rounds", "first", "users", "bytes", "pace_ms")
        )
        event = {"event": "asset_processed", "assetId": "0" * 24, "status": "failed", "error": "x" * size}
        event["timestamp"] = "2026-01-31T12:00:07.456Z"
        started_at = time.monotonic()
        for number in range(rounds):
            for at in range(first, first + users, FLOOD_SLICE):
                for user in range(at, min(at + FLOOD_SLICE, first + users)):
                    # Each encoded anew: a frame shared by all outboxes would lie in memory only once.
                    self.rooms.deliver(room_of(user, first + users), event_frame(event))
                await asyncio.sleep(0)
            await asyncio.sleep(started_at + (number + 1) * pace_ms / 1000 - time.monotonic())
        self.finish("ok")


class FinishHandler(tornado.web.RequestHandler):
    """Puts a finished asset of each user in the store."""

    def initialize(self, *, store: SqliteAssetStore) -> None:
        self.store = store

    async def get(self) -> None:
        users, first = int(self.get_argument("users")), int(self.get_argument("first"))
        for start in range(0, users, STORE_SLICE):
            numbers = range(start, min(start + STORE_SLICE, users))
            await asyncio.gather(*(self.store.create(_finished(f"user-{each}", first + each)) for each in numbers))
        self.finish("ok")


def _finished(user: str, number: int) -> Asset:
    ai_metadata = AiMetadata(**make_event(number)["aiMetadata"])
    return make_asset(user, status=AssetStatus.ACTIVE, ai_metadata=ai_metadata, finished_at=utc_now())


class ClosedHandler(tornado.web.RequestHandler):
    """Tells how many sockets were closed with a code."""

    def initialize(self, *, metrics: Metrics) -> None:
        self.metrics = metrics

    def get(self) -> None:
        labels = {"code": self.get_argument("code")}
        self.finish(str(int(self.metrics.registry.get_sample_value("pipeline_sockets_closed_total", labels) or 0)))


def log_request(handler: tornado.web.RequestHandler) -> None:
    """Log requests of users as in production; the benchmark's own are nobody's."""
    if isinstance(handler, BaseHandler):
        access_log.log_request(handler)


async def main(redis_url: str | None = None) -> None:
    # As in production, less the writing of the log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    folder = tempfile.TemporaryDirectory()
    wiring = Wiring(Path(folder.name), redis_url)
    await wiring.start()
    routes: list[Any] = [
        *wiring.routes,
        ("/emit", EmitHandler, {"rooms": wiring.rooms, "fanout": wiring.fanout}),
        ("/flood", FloodHandler, {"rooms": wiring.rooms}),
        ("/closed", ClosedHandler, {"metrics": wiring.metrics}),
        ("/finish", FinishHandler, {"store": wiring.store}),
    ]
    application = tornado.web.Application(routes, log_function=log_request)
    server = HttpServer(application, metrics=wiring.metrics)
    listeners = tornado.netutil.bind_sockets(0, "127.0.0.1", backlog=1024)
    server.add_sockets(listeners)
    print(listeners[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
