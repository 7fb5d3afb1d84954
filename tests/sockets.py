"""The sockets of one process of the service on the test's own loop, and clients that check every frame."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import tornado.httpserver
import tornado.netutil
import tornado.web

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore
from pipeline.auth import TokenVerifier
from pipeline.handlers import access_log
from pipeline.handlers.events import EventsHandler, TicketHandler
from pipeline.handlers.socket import SocketHandler
from pipeline.metrics import Metrics
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Rooms
from pipeline.rooms.tickets import Tickets
from pipeline.settings import Settings
from pipeline.supervision import cancel
from pipeline.usecases.admission import Admission
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.replay import MAX_REPLAY_EVENTS, Replay
from tests.contract import contracts
from tests.factories import SECRET, make_token
from tests.memory_storage import MemoryStorage
from tests.raw_sockets import make_handshake

ROOMS = contracts.ROOMS
WAIT_SECONDS = 10.0


def check_frame(frame: dict[str, Any]) -> None:
    """Check a server frame against rooms.asyncapi.json and, for the event, asset-processed-event.schema.json."""
    if frame["event"] == "asset_processed":
        contracts.check_event(frame)
    else:
        contracts.check_value(contracts.frame_schema(frame["event"]), frame)


def make_event(number: int = 0, error: str = "AI service unavailable after 3 attempts") -> dict[str, Any]:
    """Return an asset_processed event whose assetId ends in the number."""
    return {
        "event": "asset_processed",
        "assetId": f"{number:024x}",
        "status": "failed",
        "error": error,
        "timestamp": "2026-01-31T12:00:00.123Z",
    }


class Client:
    """A client's WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def frame(self) -> dict[str, Any]:
        """Return the next frame."""
        message = await self.socket.receive(WAIT_SECONDS)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame: dict[str, Any] = json.loads(message.data)
        check_frame(frame)
        return frame

    async def frames(self, count: int) -> list[dict[str, Any]]:
        """Return the next frames."""
        return [await self.frame() for _ in range(count)]

    async def code(self) -> int | None:
        """Return the code with which the server closes; no frame may come before."""
        message = await self.socket.receive(WAIT_SECONDS)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
        return self.socket.close_code

    async def send(self, frame: object) -> None:
        """Send a value as JSON."""
        await self.socket.send_str(json.dumps(frame))


class Stream:
    """A client's event stream."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self.reply = reply
        self.last_id = ""  # like the last event id of a browser
        self.retry_ms = 0

    async def block(self) -> dict[str, str]:
        """Return the fields of the next block, none at the end of the stream; a comment has the name ""."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(WAIT_SECONDS):
            while line := (await self.reply.content.readline()).decode().removesuffix("\n"):
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
        self.last_id = fields.get("id", self.last_id)
        self.retry_ms = int(fields.get("retry", self.retry_ms))
        return fields

    async def frame(self) -> dict[str, Any]:
        """Return the next frame."""
        fields = await self.block()
        frame: dict[str, Any] = json.loads(fields["data"])
        assert fields["event"] == frame["event"]
        check_frame(frame)
        return frame

    async def frames(self, count: int) -> list[dict[str, Any]]:
        """Return the next frames."""
        return [await self.frame() for _ in range(count)]

    async def code(self) -> int:
        """Return the code of the close event, the last one; no other frame may come before."""
        frame = await self.frame()
        assert frame["event"] == "close", frame
        assert await self.block() == {}
        assert self.reply.content.at_eof()
        return int(frame["code"])


class Process:
    """Server, rooms and fanout; `async with` starts and ends them and their clients."""

    def __init__(
        self,
        redis_url: str,
        *,
        verifier: TokenVerifier | None = None,
        store: AssetStore | None = None,
        fanout_options: dict[str, Any] = {},
        max_frames: int | None = None,
        max_replay_events: int = MAX_REPLAY_EVENTS,
        **settings: Any,
    ) -> None:
        """Build the parts as app.py does; nothing runs yet.

        verifier: of the tokens, by default one with SECRET.
        store: by default a new SQLite store.
        fanout_options: of RoomFanout.
        max_frames: of each outbox, by default no limit.
        settings: fields of Settings.
        """
        if "jwt_jwks_url" not in settings:
            settings["jwt_secret"] = SECRET
        self.settings = Settings(**settings)
        self.metrics = Metrics()
        self.rooms = Rooms(max_frames=max_frames, max_bytes=self.settings.outbox_bytes, metrics=self.metrics)
        self.fanout = RoomFanout(self.rooms, redis_url, metrics=self.metrics, **fanout_options)
        self._folder = tempfile.TemporaryDirectory()
        self.store = store or SqliteAssetStore(Path(self._folder.name) / "assets.sqlite")
        self.replay = self._make_replay(max_replay_events)
        self.fanout.on_gap = self.replay.request
        self.admission = Admission(self.rooms, self.replay, self.settings)
        self.tickets = Tickets(redis_url, prefix=self.settings.queue_prefix)
        self._server = self._make_server(verifier or TokenVerifier(self.settings))
        self._clients: list[Client] = []  # a socket without a reference closes itself
        self._streams: list[Stream] = []
        self._listeners = tornado.netutil.bind_sockets(0, "127.0.0.1")
        self.port: int = self._listeners[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/ws"
        self.events_url = f"http://127.0.0.1:{self.port}/api/events"

    def _make_replay(self, max_events: int) -> Replay:
        return Replay(
            self.store,
            self.rooms,
            self.metrics,
            urls=ImageUrls(MemoryStorage()),
            max_events=max_events,
            max_bytes=self.settings.outbox_bytes,
            lease_seconds=self.settings.lease_seconds,
        )

    def _make_server(self, verifier: TokenVerifier) -> tornado.httpserver.HTTPServer:
        common = {"verifier": verifier, "metrics": self.metrics, "allowed_origins": self.settings.page_origins}
        of_members = common | {"admission": self.admission, "settings": self.settings}
        routes: list[Any] = [
            ("/ws", SocketHandler, of_members),
            ("/api/events", EventsHandler, of_members | {"tickets": self.tickets}),
            ("/api/events/ticket", TicketHandler, common | {"tickets": self.tickets}),
        ]
        return tornado.httpserver.HTTPServer(tornado.web.Application(routes, log_function=access_log.log_request))

    async def __aenter__(self) -> Process:
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        await self.store.open()
        self._replaying = asyncio.create_task(self.replay.run())
        await self.fanout.start()
        self._server.add_sockets(self._listeners)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*[client.socket.close() for client in self._clients])
        for stream in self._streams:
            stream.reply.close()
        await self.session.close()
        self._server.stop()
        await self._server.close_all_connections()
        await self.wait_closed()
        await self.fanout.stop()
        await self.tickets.close()
        await cancel([self._replaying])
        await self.store.close()
        self._folder.cleanup()

    async def open(self, **options: Any) -> Client:
        """Open a socket and send nothing.

        options: of aiohttp's ws_connect.
        """
        timeout = aiohttp.ClientWSTimeout(ws_close=1)
        self._clients.append(Client(await self.session.ws_connect(self.url, timeout=timeout, **options)))
        return self._clients[-1]

    async def connect(self, sub: str = "user-1", **options: Any) -> Client:
        """Open a socket with the user's token and read the first frame.

        options: of aiohttp's ws_connect.
        """
        client = await self.open(headers={"Authorization": f"Bearer {make_token(sub)}"}, **options)
        assert (await client.frame())["room"] == f"user:{sub}"
        return client

    async def open_stream(self, **options: Any) -> Stream:
        """Open an event stream.

        options: of aiohttp's get.
        """
        self._streams.append(Stream(await self.session.get(self.events_url, **options)))
        assert self._streams[-1].reply.status == 200, await self._streams[-1].reply.text()
        return self._streams[-1]

    async def stream(self, sub: str = "user-1", since: str = "", **options: Any) -> Stream:
        """Open an event stream with the user's token and read the first frame.

        since: the query parameter of this name, "" for none.
        options: of aiohttp's get.
        """
        headers = {"Authorization": f"Bearer {make_token(sub)}"} | options.pop("headers", {})
        params = {"since": since} if since else {}
        stream = await self.open_stream(params=params, headers=headers, **options)
        assert (await stream.frame())["room"] == f"user:{sub}"
        return stream

    async def connect_raw(self, sub: str = "user-1", receive_bytes: int = 4096) -> socket.socket:
        """Return a plain TCP socket after its upgrade; the `connected` frame is not read."""
        raw = self.tcp(receive_bytes)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", self.port))
        await loop.sock_sendall(raw, self.handshake(sub))
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            received += await loop.sock_recv(raw, 1)
        assert received.startswith(b"HTTP/1.1 101 ")
        return raw

    def tcp(self, receive_bytes: int = 4096) -> socket.socket:
        """Return an unconnected TCP socket with a small buffer."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.setblocking(False)
        return raw

    def handshake(self, sub: str = "user-1") -> bytes:
        """Return the bytes of an upgrade request with the user's token."""
        return make_handshake(f"127.0.0.1:{self.port}", f"Authorization: Bearer {make_token(sub)}")

    async def wait_closed(self, left: int = 0) -> None:
        """Return when at most `left` sockets are open."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.rooms.connections) > left:
                closing = [connection.closed for connection in self.rooms.connections]
                await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a series."""
        value = self.metrics.registry.get_sample_value(f"pipeline_{name}", labels)
        assert value is not None, f"no series {name} {labels}"
        return value
