"""The load client: a thousand WebSockets or event streams in one thread, with as little work per event as possible.

It counts the events and checks that each comes once and to its owner. The row of the blaster (blaster.py), which only
writes, shows the cost of the load client itself.
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
# malloc maps and unmaps a larger buffer each time, which costs more than a second read.
RECEIVE_BYTES = 16 * 1024
CLOSE, PING, PONG = 0x8, 0x9, 0xA
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{header}\r\n"
)
REQUEST = "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
TEXT = 0x81


class Failure(Exception):
    """The run is not valid: a lost, repeated or foreign event, a closed socket, or a refused token."""


@dataclass(frozen=True)
class Codec:
    """How a client of one server connects; `%s` in header, greeting and answers stands for the token.

    joined: the beginning of the text that says that the client is in its room.
    greeting: sent after the handshake.
    answers: (the beginning of a text, the answer to it).
    is_stream: server-sent events instead of a WebSocket.
    """

    path: str
    joined: bytes
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
    """One socket.

    rest: the part of the next frame that has arrived.
    """

    __slots__ = ("socket", "index", "token", "rest", "is_upgraded")

    def __init__(self, raw: socket.socket, index: int, token: str) -> None:
        self.socket = raw
        self.index = index
        self.token = token
        self.rest = b""
        self.is_upgraded = False

    def send(self, opcode: int, payload: bytes) -> None:
        """Send a frame, masked with zeros."""
        size = bytes((0x80 | len(payload),)) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
        self.socket.sendall(bytes((0x80 | opcode,)) + size + b"\0\0\0\0" + payload)

    def send_text(self, text: bytes) -> None:
        """Send a text, with the token in place of `%s`."""
        self.send(1, text.replace(b"%s", self.token.encode()))


class Load:
    """The sockets of users; socket i is that of user i. `with` closes them.

    received: the number of events since `expect`.
    waits: for each event the nanoseconds from its creation to its arrival.
    last_at: when the last event came, in nanoseconds of CLOCK_MONOTONIC.
    """

    def __init__(
        self, codec: Codec, port: int, tokens: Sequence[str], *, first: int = 0, receive_bytes: int = 0
    ) -> None:
        """Open no socket yet.

        first: the user of the first socket.
        receive_bytes: the size of the kernel's receive buffer, 0 for the default.
        """
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
        """Open that many sockets and return when all are in their rooms."""
        while self._ready < count:
            for index in range(self._ready, min(self._ready + BURST, count)):
                self._open(self._first + index)
            self.run(lambda: self._ready == len(self._clients))

    def close(self) -> None:
        """Close all sockets, WebSockets with a close frame."""
        for client in self._clients.values():
            self._epoll.unregister(client.socket)
            with suppress(OSError):
                if not self._codec.is_stream:
                    client.send(CLOSE, struct.pack("!H", 1000))
            client.socket.close()
        self._clients.clear()
        self._ready = 0

    def expect(self, count: int, first: int = 0) -> None:
        """Count from zero.

        count: the number of events that will come.
        first: the number of the first event; events with a lower number may be repeated and do not count.
        """
        self._seen, self._lowest = bytearray(count), first
        self.received = self.last_at = 0
        self.waits = array("q")

    def emit(self, port: int, count: int, rate: int = 0) -> float:
        """Let the server emit events, receive them all, and return the seconds until the last.

        port: of the server's GET /emit.
        rate: events a second, 0 for as fast as possible.
        """
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
        # Time for repeated events.
        self.read_for(0.1)
        if self.received != count or self._seen.count(1) != count:
            raise Failure(f"{self.received} events instead of {count}")
        return (self.last_at - started_at) / 1e9

    def read_for(self, seconds: float) -> None:
        """Read for that many seconds."""
        until = time.monotonic() + seconds
        self.run(lambda: time.monotonic() >= until)

    def run(self, is_done: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Read until `is_done` answers true. Raises Failure when that takes longer than `seconds`."""
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
                raise Failure(f"only {self._ready} sockets joined and {self.received} events came in time")

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
        raw.setblocking(False)  # with a timeout Python makes two system calls for each read
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
                client.send_text(self._codec.greeting)
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
                self._count(client, data, found, now)
                # Centrifugo puts several events into a frame.
                found = data.find(MARK, found + 33, stop)
            at = stop
        client.rest = data[at:]

    def _feed_stream(self, client: Client, data: bytes, at: int, now: int) -> None:
        """Count the complete events in the data; skip the chunk sizes that HTTP puts between them."""
        stop = data.rfind(b"\n\n", at) + 2
        if stop < 2:
            client.rest = data[at:]
            return
        if self._codec.joined in data[at:stop]:
            self._ready += 1
        found = data.find(MARK, at, stop)
        while found >= 0:
            self._count(client, data, found, now)
            found = data.find(MARK, found + 33, stop)
        client.rest = data[stop:]

    def _count(self, client: Client, data: bytes, start: int, now: int) -> None:
        number = int(data[start + 5 : start + 13])
        index = number - self._lowest
        if index < 0:
            return
        if number % len(self._tokens) != client.index or self._seen[index]:
            raise Failure(f"event {number} came to user {client.index} or came twice")
        self._seen[index] = 1
        self.waits.append(now - int(data[start + 14 : start + 33]))
        self.received += 1
        self.last_at = now

    def _control(self, client: Client, head: int, payload: bytes) -> None:
        if head == 0x80 | PING:
            client.send(PONG, payload)
        elif head == TEXT and payload.startswith(self._codec.joined):
            self._ready += 1
        else:
            for beginning, answer in self._codec.answers:
                if head == TEXT and payload.startswith(beginning):
                    return client.send_text(answer)
            raise Failure(f"frame {head:#x} {payload!r}")


def wait_for_port(port: int) -> None:
    """Return when a server listens on the port."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
