"""Tornado's HTTP/1 connection, with an answer in the envelope for those who break the protocol.

Tornado writes a bare "400 Bad Request" or closes without a word, before any handler exists. Here the head of a request
is checked as soon as it is there; what is wrong with it is told in JSON. Also here, because Tornado lacks it: requests
in absolute form, empty lines before a request, chunk extensions and trailers (RFC 9112, sections 2.2, 3.2.2 and 7.1).

It overrides private methods of Tornado's, whose version setup.cfg pins. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable
from contextlib import suppress
from http.client import responses
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import structlog
from tornado import httputil
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httputil import HTTPHeaders, HTTPInputError, RequestStartLine, ResponseStartLine, format_timestamp
from tornado.iostream import StreamClosedError, UnsatisfiableReadError

from pipeline.clock import utc_now
from pipeline.handlers.peer import Peer
from pipeline.handlers.read_scheduler import PIECE_BYTES, TURN_BYTES, ReadScheduler
from pipeline.texts import clean

if TYPE_CHECKING:
    from pipeline.handlers.server import Stream

log = structlog.get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
# What is read of a head before the connection is cut: enough to say that 64 KB are the most.
READ_HEAD_BYTES = 4 * MAX_HEAD_BYTES
MAX_EMPTY_LINES = 16
MAX_CHUNK_LINE_BYTES = 4096
MAX_TRAILERS = 64
# How many chunks are read in one step of the event loop, however small they are.
CHUNKS_AT_ONCE = 64
# How much a body that waits for its client reads at once: a hundred bodies may all have come by the next step.
WAITED_BYTES = 64 * 1024
TLS_BEGINS = b"\x16\x03"  # a handshake, version 3.x (RFC 8446, section 5.1)
ABSOLUTE = re.compile(r"https?://", re.IGNORECASE)
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
# What is read on after such an answer, so that the client can read it before the connection is reset.
DRAIN_BYTES = 1024 * 1024
DRAIN_SECONDS = 2.0


class ProtocolFault(Exception):
    """The request breaks the protocol. status: of the answer."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class EmptyHead(Exception):
    """Nothing but line ends where a request would begin."""


class Parameters(HTTP1ConnectionParameters):
    """What all connections of a server have in common. turns: in which bodies are read."""

    def __init__(self, of_tornado: HTTP1ConnectionParameters) -> None:
        vars(self).update(vars(of_tornado))
        self.read_scheduler = ReadScheduler()


class Connection(HTTP1Connection):
    """One request of a connection, read and answered.

    has_begun: its head has come.
    """

    context: Peer
    params: Parameters
    has_begun = False
    # Of the bodies of this request and its reply, for the access log.
    bytes_in = bytes_out = 0
    _granted = 0  # bytes_in when it last had its turn

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
        """Whether the whole request has come and its answer is not under way yet."""
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
            start = _in_origin_form(start, headers)
            _check_framing(start, headers)
            # Only looks: it raises for what Tornado would refuse without an answer.
            httputil.HTTPServerRequest(start_line=start, headers=headers)
        except HTTPInputError as error:
            raise ProtocolFault(str(error)) from error
        _tidy_expectation(start, headers)
        self.has_begun = True
        return f"{start.method} {start.path} {start.version}", headers

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        self.bytes_out += len(chunk) if chunk else 0
        # Decided here, not when the request came: a long poll may have come before the process began to leave.
        leaves = self._disconnect_on_finish or self.params.no_keep_alive
        # What has become a WebSocket is no connection of HTTP any more; its "Connection: Upgrade" must stay.
        is_upgrade = isinstance(start_line, ResponseStartLine) and start_line.code == 101
        self._disconnect_on_finish = leaves and not is_upgrade
        return super().write_headers(start_line, headers, chunk)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        self.bytes_out += len(chunk)
        return super().write(chunk)

    async def _deliver_body(self, delegate: httputil.HTTPMessageDelegate, data: bytes) -> None:
        self.bytes_in += len(data)
        await super()._deliver_body(delegate, data)

    async def _read_fixed_body(self, content_length: int, delegate: httputil.HTTPMessageDelegate) -> None:
        """As Tornado's, but in turns, and what is there already is taken as it is."""
        stream = cast("Stream", self.stream)
        while content_length > 0:
            await self._turn()
            piece = stream.take(min(PIECE_BYTES, content_length)) or await stream.read_bytes(
                min(WAITED_BYTES, content_length), partial=True
            )
            content_length -= len(piece)
            await self._deliver_body(delegate, piece)
            del piece  # nobody keeps one while waiting for a turn

    async def _turn(self) -> None:
        """Return when this body may go on."""
        if self.bytes_in - self._granted >= TURN_BYTES:
            self._granted = self.bytes_in
            await self.params.read_scheduler.next()

    async def _read_chunked_body(self, delegate: httputil.HTTPMessageDelegate) -> None:
        """As Tornado's, but with chunk extensions and trailers, which are dropped."""
        pending, count, total = bytearray(), 0, 0

        async def read(coming: Awaitable[bytes]) -> bytes:
            # What is there is not held back while the rest is waited for.
            if pending and not (isinstance(coming, asyncio.Future) and coming.done()):
                piece = bytes(pending)
                pending.clear()
                await self._deliver_body(delegate, piece)
            return await coming

        while size := _chunk_size(await read(self.stream.read_until(b"\n", max_bytes=MAX_CHUNK_LINE_BYTES))):
            total += size
            if total > self._max_body_size:
                raise ProtocolFault("The body is too long", 413)
            while size:
                piece = await read(self.stream.read_bytes(min(size, WAITED_BYTES), partial=True))
                size -= len(piece)
                pending += piece
                if len(pending) >= WAITED_BYTES:
                    whole = bytes(pending)
                    pending.clear()
                    await self._deliver_body(delegate, whole)
                    del whole
                    await self._turn()
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
        """Write the answer, unless there is one already, and read on for a moment."""
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
                left = DRAIN_BYTES
                while left > 0:
                    left -= len(await self.stream.read_bytes(65536, partial=True))


class ServerConnection(HTTP1ServerConnection):
    """All requests of a connection. As Tornado's, but with Connection, and after empty lines.

    request: the one that comes, is answered or is waited for.
    answered: how many have been.
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


def _in_origin_form(start: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """Return the start line with a path where it had an address, as for a proxy; the address's host counts then."""
    if not ABSOLUTE.match(start.path):
        return start
    try:
        address = urlsplit(start.path)
        host = address.netloc.rpartition("@")[2]
    except ValueError as error:
        raise HTTPInputError("Malformed HTTP request line") from error
    if not host:
        raise HTTPInputError("Malformed HTTP request line: an address without a host")
    headers["Host"] = host
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    return start._replace(path=path)


def _check_framing(start: RequestStartLine, headers: HTTPHeaders) -> None:
    """HTTPInputError for a body whose end cannot be known: what one server reads as a body is a request to another."""
    encoding, length = headers.get("Transfer-Encoding"), headers.get("Content-Length")
    if encoding is not None and length is not None:
        raise HTTPInputError("Message with both Transfer-Encoding and Content-Length")
    if encoding is not None and start.version == "HTTP/1.0":
        # A proxy of that age knows no chunks, and would take them for the next request.
        raise HTTPInputError("HTTP/1.0 has no Transfer-Encoding")
    if encoding is not None and encoding.lower() != "chunked":
        raise HTTPInputError(f"Unsupported Transfer-Encoding {encoding}")
    if length is not None:
        values = {value.strip() for value in length.split(",")}
        if len(values) > 1:
            raise HTTPInputError("Multiple unequal Content-Lengths")
        # Python refuses to convert thousands of digits, and nobody sends a body of a petabyte.
        if not re.fullmatch(r"0*[0-9]{1,15}", value := values.pop()):
            raise HTTPInputError(f"Only integer Content-Length is allowed: {value}")
        headers["Content-Length"] = value.lstrip("0") or "0"


def _tidy_expectation(start: RequestStartLine, headers: HTTPHeaders) -> None:
    """Write an expectation as Tornado compares it; HTTP/1.0 has none."""
    if (expected := headers.get("Expect")) is None:
        return
    if start.version == "HTTP/1.0" or not expected.strip():
        del headers["Expect"]
    elif expected.strip().lower() == "100-continue":
        headers["Expect"] = "100-continue"


def _chunk_size(line: bytes) -> int:
    found = CHUNK_SIZE.fullmatch(line)
    if found is None:
        raise ProtocolFault("The size of a chunk of the body is malformed")
    return int(found[1], 16)
