"""Proxies that break WebSockets, like those of companies, hotels and phone networks.

They speak HTTP/1.1 in front of a real server, one request per connection.

| mode | what it does |
|---|---|
| honest | passes everything |
| refuses-upgrade | answers an Upgrade with the status `refusal` (0: removes it from the request); passes the rest |
| mute | answers an Upgrade with a correct 101 and then passes no byte; passes the rest |
| buffers | passes a response only when it is complete; answers an Upgrade with the status `refusal` |
| cuts | passes everything, and closes every connection after `cut_seconds` |

As a process: `python -m tests.hostile_proxy MODE http://127.0.0.1:8080`; it prints its own address.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from urllib.parse import urlsplit

from pipeline.supervision import cancel

MODES = ("honest", "refuses-upgrade", "mute", "buffers", "cuts")
HANDSHAKE_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CHUNK_BYTES = 1 << 16


class Head:
    """The request line and the headers of a request."""

    def __init__(self, text: bytes) -> None:
        self.line, *lines = text.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def get(self, wanted: str) -> str:
        """Return the value of a header, "" without one."""
        return next((value for name, value in self.headers if name.lower() == wanted.lower()), "")

    @property
    def is_upgrade(self) -> bool:
        return self.get("Upgrade").lower() == "websocket"

    def encoded(self, *, keeps_upgrade: bool) -> bytes:
        """Return the head that the server gets; without an Upgrade it has `Connection: close`."""
        headers = self.headers
        if not keeps_upgrade:
            dropped = ("connection", "upgrade")
            headers = [each for each in headers if each[0].lower() not in dropped] + [("Connection", "close")]
        lines = [self.line, *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class HostileProxy:
    """One proxy; `async with` starts and ends it.

    A change of `mode` or `refusal` while it runs is for new connections.
    requests: the request lines so far.
    """

    def __init__(
        self, upstream: str, mode: str = "honest", *, refusal: int = 403, cut_seconds: float = 20.0, port: int = 0
    ) -> None:
        address = urlsplit(upstream)
        self._upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self._port = port
        self.mode = mode
        self.refusal = refusal
        self.cut_seconds = cut_seconds
        self.requests: list[str] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> HostileProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        await cancel(self._tasks)

    def cut(self) -> None:
        """Abort all current connections."""
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        limit = asyncio.timeout(self.cut_seconds if self.mode == "cuts" else None)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                async with limit:
                    await self._answer(reader, writer)
            if limit.expired():
                writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = Head(await reader.readuntil(b"\r\n\r\n"))
        self.requests.append(head.line)
        refuses = self.mode in ("refuses-upgrade", "buffers")
        if head.is_upgrade and self.mode == "mute":
            writer.write(_switching(head))
            while await reader.read(CHUNK_BYTES):
                pass
        elif head.is_upgrade and refuses and self.refusal:
            writer.write(_refusal(self.refusal))
            await writer.drain()
        else:
            await self._pass(head, reader, writer, keeps_upgrade=head.is_upgrade and not refuses)

    async def _pass(
        self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keeps_upgrade: bool
    ) -> None:
        buffers = self.mode == "buffers"
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.write(_refusal(502))
            await writer.drain()
            return
        self._writers.add(upstream_writer)
        sending = asyncio.create_task(_carry(reader, upstream_writer))
        try:
            upstream_writer.write(head.encoded(keeps_upgrade=keeps_upgrade))
            if buffers:
                writer.write(await upstream_reader.read())
                await writer.drain()
            else:
                await _carry(upstream_reader, writer)
        finally:
            self._writers.discard(upstream_writer)
            upstream_writer.close()
            await cancel([sending])


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass bytes until the source ends; then close the target."""
    with suppress(ConnectionError):
        while data := await source.read(CHUNK_BYTES):
            target.write(data)
            await target.drain()
    target.close()


def _switching(head: Head) -> bytes:
    key = head.get("Sec-WebSocket-Key") + HANDSHAKE_GUID
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines.append(f"Sec-WebSocket-Accept: {accept}")
    if protocol := head.get("Sec-WebSocket-Protocol").split(",")[0].strip():
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
    return "\r\n".join([*lines, "", ""]).encode()


def _refusal(status: int) -> bytes:
    text = f"<h1>{status} {HTTPStatus(status).phrase}</h1>"
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/html\r\n"
    return f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()


async def _run(mode: str, upstream: str, cut_seconds: float, port: int) -> None:
    async with HostileProxy(upstream, mode, cut_seconds=cut_seconds, port=port) as proxy:
        print(proxy.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Run one proxy until it is interrupted."""
    parser = argparse.ArgumentParser(description="A proxy that breaks WebSockets.")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("upstream", help="address of the server, http://host:port")
    parser.add_argument("--cut-seconds", type=float, default=20.0, help="age at which `cuts` closes a connection")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(options.mode, options.upstream, options.cut_seconds, options.port))


if __name__ == "__main__":
    main()
