"""A very fast sender that shows the limit of the load client: python -m benchmarks.rooms.blaster

It accepts every client without a check, and writes prepared frames to plain sockets, with one system call for each, as
the servers under test do. Prints its port; GET /emit?count=&rate=&users= emits.
"""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import parse_qs, urlsplit

import jwt

from benchmarks.rooms.emission import emit, make_event, make_value
from pipeline.rooms.frames import encode, text_frame

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
CONNECTED = text_frame(b'{"event":"connected"}')


class Blaster:
    """Sends frames to its sockets, which it has by user number."""

    def __init__(self) -> None:
        self.sockets: dict[int, socket.socket] = {}
        event = make_event(0)
        head, _, tail = text_frame(encode(event)).partition(event["aiMetadata"]["brand"]["value"].encode())
        self.parts = head, tail

    async def serve(self, raw: socket.socket) -> None:
        """Answer one request: of an emission or of a client."""
        loop = asyncio.get_running_loop()
        request = (await loop.sock_recv(raw, 65536)).decode()
        if request.startswith("GET /emit"):
            query = parse_qs(urlsplit(request.split()[1]).query)
            await emit(self.send, int(query["count"][0]), int(query["rate"][0]))
            await loop.sock_sendall(raw, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        token = request.partition("bearer.")[2].split()[0]
        subject = jwt.decode(token, options={"verify_signature": False})["sub"]
        self.sockets[int(subject.rpartition("-")[2])] = raw
        await loop.sock_sendall(raw, SWITCH + CONNECTED)

    async def send(self, numbers: range) -> None:
        head, tail = self.parts
        for number in numbers:
            self.sockets[number % len(self.sockets)].send(head + make_value(number).encode() + tail)


async def main() -> None:
    blaster = Blaster()
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    tasks = set()
    while True:
        raw, _ = await loop.sock_accept(listener)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tasks.add(asyncio.create_task(blaster.serve(raw)))


if __name__ == "__main__":
    asyncio.run(main())
