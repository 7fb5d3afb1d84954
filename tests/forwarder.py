"""A fixed address in front of servers: each new connection is made to the current server; old ones do not change."""

from __future__ import annotations

import asyncio
import ssl
from types import TracebackType

from pipeline.supervision import cancel


class Forwarder:
    """A TCP proxy on the loop of the test; `async with` starts and ends it.

    upstream_port: the port of the current server.
    tls: the TLS context for clients; the servers get plain text.
    """

    def __init__(self, upstream_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.upstream_port = upstream_port
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._silenced: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Forwarder:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await cancel(self._tasks)

    def silence(self) -> None:
        """Drop all further data of the current connections, like a firewall that has lost their state."""
        self._silenced.update(self._writers)

    def changed_data(self, data: bytes) -> bytes:
        """Return the data that the other side gets; a subclass may change them."""
        return data

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        self._writers += [writer, upstream_writer]
        for source, target in ((reader, upstream_writer), (upstream_reader, writer)):
            self._tasks.add(asyncio.create_task(self._carry(source, target)))

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                if target not in self._silenced:
                    target.write(self.changed_data(data))
        except ConnectionError:
            pass
        if target not in self._silenced:
            target.close()
