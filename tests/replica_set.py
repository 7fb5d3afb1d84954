"""A replica set whose secondary never gets data: a proxy that makes one real server look like two members."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import bson

from pipeline.supervision import cancel

NAME = "lagging"
OP_MSG, OP_QUERY, OP_REPLY = 2013, 2004, 1


class LaggingReplicaSet:
    """The primary forwards every command to the server; the secondary has no document.

    reads_of_secondary: the names of the reads that the secondary got.
    before: awaited with the name of each command before the primary forwards it. A document that it returns is the
        answer, and the primary does not forward the command.
    """

    def __init__(self, database_uri: str) -> None:
        """Start nothing yet.

        database_uri: the address of the real database, on a server of this machine that needs no password.
        """
        parts = urlsplit(database_uri)
        self._server_port, self._database = parts.port, parts.path
        self._listeners: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[Any]] = set()
        self._primary = self._secondary = ""
        self.reads_of_secondary: list[str] = []
        self.before: Callable[[str], Awaitable[dict[str, Any] | None]] = _forward

    async def __aenter__(self) -> LaggingReplicaSet:
        for serve in (self._serve_primary, self._serve_secondary):
            self._listeners.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        self._primary, self._secondary = (
            f"127.0.0.1:{listener.sockets[0].getsockname()[1]}" for listener in self._listeners
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.close()
        # Else the garbage collector warns in a later test about a connection that is still open.
        await cancel(self._serving)

    def uri(self, options: str = "") -> str:
        """Return the address of the database at this replica set, with further options."""
        members = f"{self._primary},{self._secondary}"
        return f"mongodb://{members}{self._database}?replicaSet={NAME}{options and '&'}{options}"

    def _hello(self, is_primary: bool) -> dict[str, Any]:
        return {
            "ok": 1.0,
            "helloOk": True,
            "isWritablePrimary": is_primary,
            "ismaster": is_primary,
            "secondary": not is_primary,
            "setName": NAME,
            "setVersion": 1,
            "hosts": [self._primary, self._secondary],
            "primary": self._primary,
            "me": self._primary if is_primary else self._secondary,
            "maxBsonObjectSize": 16_777_216,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 21,
        }

    def _record_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)

    async def _serve_primary(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._record_task()
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            while True:
                header, body, command = await _receive(reader)
                if _is_hello(command):
                    writer.write(_reply(header, self._hello(is_primary=True)))
                    continue
                if (answer := await self.before(next(iter(command)))) is not None:
                    writer.write(_reply(header, answer))
                    continue
                server_writer.write(header + body)
                reply_header = await server_reader.readexactly(16)
                writer.write(reply_header + await server_reader.readexactly(_length(reply_header)))
        except asyncio.IncompleteReadError:
            pass
        finally:
            server_writer.close()
            writer.close()

    async def _serve_secondary(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._record_task()
        try:
            while True:
                header, _body, command = await _receive(reader)
                name = next(iter(command))
                if _is_hello(command):
                    writer.write(_reply(header, self._hello(is_primary=False)))
                elif name in ("find", "aggregate", "listIndexes"):
                    self.reads_of_secondary.append(name)
                    cursor = {"id": 0, "ns": f"{command['$db']}.{command[name]}", "firstBatch": []}
                    writer.write(_reply(header, {"ok": 1.0, "cursor": cursor}))
                else:
                    writer.write(_reply(header, {"ok": 1.0}))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


async def _forward(_name: str) -> None:
    return None


def _length(header: bytes) -> int:
    return int(struct.unpack_from("<i", header)[0]) - 16


async def _receive(reader: asyncio.StreamReader) -> tuple[bytes, bytes, dict[str, Any]]:
    """Return the header and the body of the next message, and the command in it."""
    header = await reader.readexactly(16)
    body = await reader.readexactly(_length(header))
    if struct.unpack_from("<i", header, 12)[0] == OP_QUERY:
        start = body.index(b"\0", 4) + 1 + 8
    else:
        start = 5  # flags, and the kind of the first section: the command itself
    size = struct.unpack_from("<i", body, start)[0]
    return header, body, bson.decode(body[start : start + size])


def _is_hello(command: dict[str, Any]) -> bool:
    return next(iter(command)).lower() in ("hello", "ismaster")


def _reply(header: bytes, document: dict[str, Any]) -> bytes:
    request_id, asked = struct.unpack_from("<i", header, 4)[0], struct.unpack_from("<i", header, 12)[0]
    if asked == OP_QUERY:
        body, code = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(document), OP_REPLY
    else:
        body, code = struct.pack("<ib", 0, 0) + bson.encode(document), OP_MSG
    return struct.pack("<iiii", 16 + len(body), 0, request_id, code) + body
