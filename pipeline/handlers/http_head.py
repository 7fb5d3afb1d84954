"""Tornado's HTTP/1 connection, with an error reply in the envelope for requests that break the protocol.

Before a handler exists, Tornado writes a bare "400 Bad Request" or closes the connection. Here the head of a request is
checked as soon as it has arrived, and a fault is answered in JSON. Also here, because Tornado lacks it: requests in
absolute form, empty lines before a request, chunk extensions and trailers (RFC 9112, sections 2.2, 3.2.2 and 7.1).

It overrides private methods of Tornado, whose version setup.cfg pins. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable
from contextlib import suppress
from http.client import responses
from typing import TYPE_CHECKING, cast

import structlog
from tornado import httputil
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httputil import HTTPHeaders, HTTPInputError, RequestStartLine, ResponseStartLine, format_timestamp
from tornado.iostream import StreamClosedError, UnsatisfiableReadError

from pipeline.clock import utc_now
from pipeline.handlers.http_framing import (
    EmptyHead,
    ProtocolFault,
    check_framing,
    chunk_size,
    in_origin_form,
    normalize_expectation,
)
from pipeline.handlers.peer import Peer
from pipeline.handlers.read_scheduler import PIECE_BYTES, SHARE_BYTES, ReadScheduler
from pipeline.texts import clean

if TYPE_CHECKING:
    from pipeline.handlers.server import Stream

log = structlog.get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
# How much of a head is read before the connection is closed: enough to answer that 64 KB are the limit.
READ_HEAD_BYTES = 4 * MAX_HEAD_BYTES
MAX_EMPTY_LINES = 16
MAX_CHUNK_LINE_BYTES = 4096
MAX_TRAILERS = 64
# The most chunks, however small, that are read in one iteration of the event loop.
CHUNKS_AT_ONCE = 64
# The most bytes of one read that waits for its client: a hundred bodies may arrive by the next iteration.
WAITED_BYTES = 64 * 1024
TLS_BEGINS = b"\x16\x03"  # a handshake, version 3.x (RFC 8446, section 5.1)
# How much is read after an error reply, so that the client can read the reply before the connection is reset.
DRAIN_BYTES = 1024 * 1024
DRAIN_SECONDS = 2.0


class Parameters(HTTP1ConnectionParameters):
    """The parameters that all connections of a server share.

    read_scheduler: shares the event loop between their bodies.
    """

    def __init__(self, parameters: HTTP1ConnectionParameters) -> None:
        vars(self).update(vars(parameters))
        self.read_scheduler = ReadScheduler()


class Connection(HTTP1Connection):
    """One request of a connection, and its reply.

    has_begun: the head of the request has arrived.
    bytes_in: of the request's body, for the access log.
    bytes_out: of the reply's body, for the access log.
    """

    context: Peer
    params: Parameters
    has_begun = False
    bytes_in = bytes_out = 0
    _scheduled_bytes = 0  # bytes_in when the scheduler last let the body continue

    async def _read_message(self, delegate: httputil.HTTPMessageDelegate) -> bool:
        self.context.settle({})
        try:
            for _ in range(MAX_EMPTY_LINES):
                with suppress(EmptyHead):
                    return await super()._read_message(delegate)
        except ProtocolFault as fault:
            client = self.context.remote_ip
            log.info("request_malformed", client=client, reason=clean(str(fault))[:200], status=fault.status)
            with suppress(StreamClosedError):
                await self._answer(fault)
        self.close()
        return False

    @property
    def is_making_answer(self) -> bool:
        """True when the request has arrived completely and no reply is being written yet."""
        return self._read_finished and not self.stream.writing()

    def _parse_headers(self, data: bytes) -> tuple[str, HTTPHeaders]:
        if len(data) > MAX_HEAD_BYTES:
            raise ProtocolFault(f"The request line and headers have more than {MAX_HEAD_BYTES // 1024} KB", 431)
        if data == TLS_BEGINS:
            raise ProtocolFault("This port speaks plain HTTP, not TLS: use http://, or a proxy that takes the TLS off")
        text = data.decode("latin1").lstrip("\r\n")
        if not text:
            raise EmptyHead
        line, _, rest = text.partition("\n")
        try:
            start = httputil.parse_request_start_line(line.removesuffix("\r"))
            headers = HTTPHeaders.parse(rest)
            self.context.settle(headers)
            start = in_origin_form(start, headers)
            check_framing(start, headers)
            # Raises for a request that Tornado would refuse without a reply.
            httputil.HTTPServerRequest(start_line=start, headers=headers)
        except HTTPInputError as error:
            raise ProtocolFault(str(error)) from error
        normalize_expectation(start, headers)
        self.has_begun = True
        return f"{start.method} {start.path} {start.version}", headers

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        self.bytes_out += len(chunk) if chunk else 0
        # Decided here, not when the request arrived: during a long poll the drain may have begun.
        closes = self._disconnect_on_finish or self.params.no_keep_alive
        # The reply of a WebSocket handshake must keep its "Connection: Upgrade".
        is_upgrade = isinstance(start_line, ResponseStartLine) and start_line.code == 101
        self._disconnect_on_finish = closes and not is_upgrade
        return super().write_headers(start_line, headers, chunk)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        self.bytes_out += len(chunk)
        return super().write(chunk)

    async def _deliver_body(self, delegate: httputil.HTTPMessageDelegate, data: bytes) -> None:
        self.bytes_in += len(data)
        await super()._deliver_body(delegate, data)

    async def _read_fixed_body(self, content_length: int, delegate: httputil.HTTPMessageDelegate) -> None:
        """Read the body as Tornado does, but share the event loop, and avoid a future for bytes that have arrived."""
        stream = cast("Stream", self.stream)
        while content_length > 0:
            await self._share_loop()
            piece = stream.take(min(PIECE_BYTES, content_length)) or await stream.read_bytes(
                min(WAITED_BYTES, content_length), partial=True
            )
            content_length -= len(piece)
            await self._deliver_body(delegate, piece)
            del piece  # free it before waiting

    async def _share_loop(self) -> None:
        """Let other bodies read, if this one has read SHARE_BYTES since its last wait."""
        if self.bytes_in - self._scheduled_bytes >= SHARE_BYTES:
            self._scheduled_bytes = self.bytes_in
            await self.params.read_scheduler.next()

    async def _read_chunked_body(self, delegate: httputil.HTTPMessageDelegate) -> None:
        """Read the body as Tornado does, but accept and drop chunk extensions and trailers."""
        pending, count, total = bytearray(), 0, 0

        async def read(coming: Awaitable[bytes]) -> bytes:
            # Deliver what has arrived before waiting for more.
            if pending and not (isinstance(coming, asyncio.Future) and coming.done()):
                piece = bytes(pending)
                pending.clear()
                await self._deliver_body(delegate, piece)
            return await coming

        while size := chunk_size(await read(self.stream.read_until(b"\n", max_bytes=MAX_CHUNK_LINE_BYTES))):
            total += size
            if total > self._max_body_size:
                raise ProtocolFault("The body is too long", 413)
            while size:
                piece = await read(self.stream.read_bytes(min(size, WAITED_BYTES), partial=True))
                size -= len(piece)
                pending += piece
                if len(pending) >= WAITED_BYTES:
                    collected = bytes(pending)
                    pending.clear()
                    await self._deliver_body(delegate, collected)
                    del collected
                    await self._share_loop()
            if await read(self.stream.read_bytes(2)) != b"\r\n":
                raise ProtocolFault("A chunk of the body does not end where it says")
            count += 1
            if count % CHUNKS_AT_ONCE == 0:
                await asyncio.sleep(0)
        for _ in range(MAX_TRAILERS + 1):
            if await read(self.stream.read_until(b"\n", max_bytes=MAX_CHUNK_LINE_BYTES)) in (b"\r\n", b"\n"):
                break
        else:
            raise ProtocolFault(f"The body has more than {MAX_TRAILERS} trailers", 431)
        if pending:
            await self._deliver_body(delegate, bytes(pending))

    async def _answer(self, fault: ProtocolFault) -> None:
        """Write an error reply, unless a reply has begun, and read for a moment longer."""
        if self._response_start_line is not None:
            return
        message = f"{responses[fault.status]}: {clean(str(fault))[:200]}"
        body = json.dumps({"success": False, "error": {"code": "VALIDATION_ERROR", "message": message}}).encode()
        head = (
            f"HTTP/1.1 {fault.status} {responses[fault.status]}",
            f"Date: {format_timestamp(utc_now())}",
            "Content-Type: application/json; charset=UTF-8",
            f"Content-Length: {len(body)}",
            "X-Content-Type-Options: nosniff",
            "Cache-Control: no-store",
            "Connection: close",
        )
        await self.stream.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        with suppress(OSError, TimeoutError):
            self.stream.socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(DRAIN_SECONDS):
                bytes_left = DRAIN_BYTES
                while bytes_left > 0:
                    bytes_left -= len(await self.stream.read_bytes(65536, partial=True))


class ServerConnection(HTTP1ServerConnection):
    """All requests of a connection, read with Connection.

    request: the current one, or the next one that is waited for.
    answered: the number of answered requests.
    """

    request: Connection | None = None
    answered = 0

    async def _server_request_loop(self, delegate: httputil.HTTPServerConnectionDelegate) -> None:
        try:
            while True:
                self.request = connection = Connection(self.stream, False, self.params, self.context)
                request = delegate.start_request(self, connection)
                if not await connection.read_response(request):
                    return
                self.answered += 1
                await asyncio.sleep(0)
        except (StreamClosedError, UnsatisfiableReadError, asyncio.CancelledError):
            return
        except Exception:
            log.exception("connection_failed")
            self.stream.close()
        finally:
            delegate.on_close(self)
