"""The load client: a thousand WebSockets, or streams of events, in one thread, reading as cheaply as Python can.

It checks that every event comes once and to its owner, and counts; what it costs itself is shown by the row of the
blaster (blaster.py), which has nothing to do but write.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection

from benchmarks.rooms.emission import MARK

WAIT_SECONDS = 60.0
BURST = 50
# Larger ones are mapped and unmapped by malloc each time, which costs more than reading twice.
RECEIVE_BYTES = 16 * 1024
CLOSE, PING, PONG = 0x8, 0x9, 0xA
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{header}\r\n"
)
REQUEST = "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
TEXT = 0x81


class Failure(Exception):
    """A run that does not count: a lost, repeated or foreign event, a closed socket, a refused token."""


@dataclass(frozen=True)
class Codec:
    """How a client of one server comes in; `%s` in header, greeting and answers stands for the token.

    is_in: what a text begins with that tells the client is in its room. greeting: sent after the handshake.
    answers: (what a text begins with, what to send back). is_stream: server-sent events, no WebSocket.
    """

    path: str
    is_in: bytes
    header: str = ""
    greeting: bytes = b""
    answers: tuple[tuple[bytes, bytes], ...] = ()
    is_stream: bool = False


OURS = Codec("/ws", b'{"event":"connected"', header="Sec-WebSocket-Protocol: pipeline.v1, bearer.%s\r\n")
OURS_STREAM = Codec(
    "/api/events", b'{"event":"connected"', header="Authorization: Bearer %s\r\n", is_stream=True
)
SOCKET_IO = Codec(
    "/socket.io/?EIO=4&transport=websocket", b"40{", answers=((b"0{", b'40{"token":"%s"}'), (b"2", b"3"))
)
CENTRIFUGO = Codec(
    "/connection/websocket",
    b'{"id":1,"connect":{',
    greeting=b'{"id":1,"connect":{"token":"%s"}}',
    answers=((b"{}", b"{}"),),
)


class Client:
    """One socket and what has come of the next frame."""

    __slots__ = ("socket", "index", "token", "rest", "is_upgraded")

    def __init__(self, raw: socket.socket, index: int, token: str) -> None:
        self.socket = raw
        self.index = index
        self.token = token
        self.rest = b""
        self.is_upgraded = False

    def send(self, opcode: int, payload: bytes) -> None:
        """Send a masked frame; a mask of zeros is one too."""
        size = bytes((0x80 | len(payload),)) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
        self.socket.sendall(bytes((0x80 | opcode,)) + size + b"\0\0\0\0" + payload)

    def say(self, text: bytes) -> None:
        """Send a text with the token in its place."""
        self.send(1, text.replace(b"%s", self.token.encode()))


class Load:
    """Client i is user i. `with` closes the sockets.

    received: events since `expect`. waits: nanoseconds from the making of each to its arrival. last_at: when the last
    one came, on CLOCK_MONOTONIC.
    """

    def __init__(
        self, codec: Codec, port: int, tokens: Sequence[str], *, first: int = 0, receive_bytes: int = 0
    ) -> None:
        """first: user of the first socket. receive_bytes: of the kernel's buffer, 0 for the usual."""
        self.received = 0
        self.last_at = 0
        self.waits = array("q")
        self._codec = codec
        self._port = port
        self._tokens = tokens
        self._first = first
        self._receive_bytes = receive_bytes
        self._clients: dict[int, Client] = {}
        self._ready = 0
        self._seen = bytearray()
        self._lowest = 0
        self._epoll = select.epoll()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._epoll.close()

    def connect(self, count: int) -> None:
        """Open so many sockets, and return when all are in their rooms."""
        while self._ready < count:
            for index in range(self._ready, min(self._ready + BURST, count)):
                self._open(self._first + index)
            self.run(lambda: self._ready == len(self._clients))

    def close(self) -> None:
        """Close all sockets, properly."""
        for client in self._clients.values():
            self._epoll.unregister(client.socket)
            with suppress(OSError):
                if not self._codec.is_stream:
                    client.send(CLOSE, struct.pack("!H", 1000))
            client.socket.close()
        self._clients.clear()
        self._ready = 0

    def expect(self, count: int, first: int = 0) -> None:
        """Begin to count from nothing. first: the lowest number; events of before may come again and do not count."""
        self._seen, self._lowest = bytearray(count), first
        self.received = self.last_at = 0
        self.waits = array("q")

    def emit(self, port: int, count: int, rate: int = 0) -> float:
        """Let the server emit so many events, take all of them, and return the seconds until the last one."""
        self.expect(count)
        control = HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
        control.connect()
        started_at = time.monotonic_ns()
        control.request("GET", f"/emit?count={count}&rate={rate}&users={len(self._tokens)}")
        self.run(lambda: self.received >= count, WAIT_SECONDS + count / 1000)
        reply = control.getresponse()
        if reply.status != 200:
            raise Failure(reply.read())
        control.close()
        # A repeated event would come now.
        self.read_for(0.1)
        if self.received != count or self._seen.count(1) != count:
            raise Failure(f"{self.received} events instead of {count}")
        return (self.last_at - started_at) / 1e9

    def read_for(self, seconds: float) -> None:
        """Go on reading for a while."""
        until = time.monotonic() + seconds
        self.run(lambda: time.monotonic() >= until)

    def run(self, is_done: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Read until done; Failure when that takes too long."""
        deadline = time.monotonic() + seconds
        clients, poll, now = self._clients, self._epoll.poll, time.monotonic_ns
        while not is_done():
            for fd, _ in poll(0.02):
                client = clients[fd]
                data = client.socket.recv(RECEIVE_BYTES)
                if not data:
                    raise Failure(f"the server has closed socket {client.index}")
                self._feed(client, client.rest + data if client.rest else data, now())
            if time.monotonic() > deadline:
                raise Failure(f"{self._ready} sockets are in and {self.received} events came, but that was not all")

    def _open(self, index: int) -> None:
        raw = socket.socket()
        if self._receive_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        raw.settimeout(WAIT_SECONDS)
        raw.connect(("127.0.0.1", self._port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(raw, index, self._tokens[index])
        header = self._codec.header % client.token if self._codec.header else ""
        request = REQUEST if self._codec.is_stream else HANDSHAKE
        raw.sendall(request.format(path=self._codec.path, header=header).encode())
        raw.setblocking(False)  # with a timeout Python would ask the kernel twice for each read
        self._clients[raw.fileno()] = client
        self._epoll.register(raw, select.EPOLLIN)

    def _feed(self, client: Client, data: bytes, now: int) -> None:
        at, end = 0, len(data)
        if not client.is_upgraded:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                client.rest = data
                return
            if not data.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 ")):
                raise Failure(data)
            client.is_upgraded = True
            if self._codec.greeting:
                client.say(self._codec.greeting)
        if self._codec.is_stream:
            self._feed_stream(client, data, at, now)
            return
        while end - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = (data[at + 2] << 8 | data[at + 3] if end >= at + 4 else end), at + 4
            elif length == 127:
                length, start = (int.from_bytes(data[at + 2 : at + 10]) if end >= at + 10 else end), at + 10
            stop = start + length
            if stop > end:
                break
            found = data.find(MARK, start, stop) if data[at] == TEXT else -1
            if found < 0:
                self._control(client, data[at], data[start:stop])
            while found >= 0:
                self._take(client, data, found, now)
                # Centrifugo puts several events into a frame.
                found = data.find(MARK, found + 33, stop)
            at = stop
        client.rest = data[at:]

    def _feed_stream(self, client: Client, data: bytes, at: int, now: int) -> None:
        """Take the events whose end has come; what HTTP puts between them is passed over."""
        stop = data.rfind(b"\n\n", at) + 2
        if stop < 2:
            client.rest = data[at:]
            return
        if self._codec.is_in in data[at:stop]:
            self._ready += 1
        found = data.find(MARK, at, stop)
        while found >= 0:
            self._take(client, data, found, now)
            found = data.find(MARK, found + 33, stop)
        client.rest = data[stop:]

    def _take(self, client: Client, data: bytes, found: int, now: int) -> None:
        number = int(data[found + 5 : found + 13])
        place = number - self._lowest
        if place < 0:
            return
        if number % len(self._tokens) != client.index or self._seen[place]:
            raise Failure(f"event {number} came to user {client.index} or came twice")
        self._seen[place] = 1
        self.waits.append(now - int(data[found + 14 : found + 33]))
        self.received += 1
        self.last_at = now

    def _control(self, client: Client, head: int, payload: bytes) -> None:
        if head == 0x80 | PING:
            client.send(PONG, payload)
        elif head == TEXT and payload.startswith(self._codec.is_in):
            self._ready += 1
        else:
            for beginning, answer in self._codec.answers:
                if head == TEXT and payload.startswith(beginning):
                    return client.say(answer)
            raise Failure(f"frame {head:#x} {payload!r}")


def wait_for_port(port: int) -> None:
    """Return when somebody listens there."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
