"""A receiver of webhooks: a real HTTP server that records all requests and answers 204, or as scripted.

In a test: `with running_in_thread() as receiver: ...`. It has its own event loop and thread, because some notifiers
block; its methods may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tests.scripted_server import serving_in_thread

WAIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer.

    raw: sent instead of an HTTP response, then the connection is closed.
    is_endless: the body has no end.
    path: the answer is only for requests to this path, "" for any.
    """

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    is_endless: bool = False
    path: str = ""


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived.

    headers: names are spelled like Webhook-Id.
    client_port: one per connection.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client_port: int


class FakeReceiver:
    """The receiver.

    requests: all requests.
    accepted: the requests that got an answer with 2xx.
    connections: the number of connections, also of those without a request.
    sender_closed: set when the sender closes the connection during an endless answer.
    ssl_options: for TLS.
    """

    def __init__(self, ssl_options: dict[str, Any] | None = None) -> None:
        self.requests: list[Received] = []
        self.accepted: list[Received] = []
        self.connections = 0
        self.sender_closed = threading.Event()
        self.url = ""
        self.port = 0
        self._replies: list[Reply] = []
        self._arrived = threading.Condition()
        self._open = asyncio.Event()
        self._open.set()
        self._loop = asyncio.get_running_loop()
        application = Application([(".*", _Receive, {"receiver": self})], log_function=lambda handler: None)
        self._server = _Server(application, ssl_options=ssl_options)
        self._server.receiver = self

    def start(self) -> None:
        """Listen on 127.0.0.1."""
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server.add_sockets(sockets)

    async def stop(self) -> None:
        """Stop listening, answer the paused requests and close every connection."""
        self._server.stop()
        self._open.set()
        await self._server.close_all_connections()

    def script(self, *replies: Reply) -> None:
        """Answer the next requests with these, in order; later requests get good answers."""
        self._replies.extend(replies)

    def clear_replies(self) -> None:
        """Remove the rest of the script: later requests get good answers."""
        self._loop.call_soon_threadsafe(self._replies.clear)

    def pause(self) -> None:
        """Answer no request until `resume`."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def resume(self) -> None:
        """Answer the paused requests."""
        self._loop.call_soon_threadsafe(self._open.set)

    def wait_for_requests(self, count: int) -> None:
        """Return when that many requests have arrived."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, WAIT_SECONDS)

    async def answer(self, received: Received) -> Reply:
        """Record the request and return its answer once it is due."""
        with self._arrived:
            self.requests.append(received)
            self._arrived.notify_all()
        await self._open.wait()
        reply = self._next_reply(received.path)
        if reply.raw is None and 200 <= reply.status < 300:
            self.accepted.append(received)
        return reply

    def _next_reply(self, path: str) -> Reply:
        for reply in self._replies:
            if reply.path in ("", path):
                self._replies.remove(reply)
                return reply
        return Reply()


def running_in_thread(ssl_options: dict[str, Any] | None = None) -> AbstractContextManager[FakeReceiver]:
    """Run one on its own event loop in a thread.

    ssl_options: for TLS.
    """
    return serving_in_thread(lambda: FakeReceiver(ssl_options))


class _Server(HTTPServer):
    receiver: FakeReceiver

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        self.receiver.connections += 1
        super().handle_stream(stream, address)


class _Receive(RequestHandler):
    def initialize(self, receiver: FakeReceiver) -> None:
        self.receiver = receiver

    async def prepare(self) -> None:
        request = self.request
        connection: Any = request.connection
        headers = dict(request.headers.get_all())
        port = connection.context.address[1]
        assert request.method is not None
        reply = await self.receiver.answer(Received(request.method, request.uri or "", headers, request.body, port))
        if reply.raw is not None:
            stream = connection.detach()
            await stream.write(reply.raw)
            stream.close()
            self._finished = True
            return
        self.set_status(reply.status)
        for name, value in reply.headers.items():
            self.set_header(name, value)
        try:
            while reply.is_endless:
                self.write(b"x" * 65536)
                await self.flush()
            self.finish()
        except StreamClosedError:
            self.receiver.sender_closed.set()
            self._finished = True
