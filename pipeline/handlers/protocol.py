"""Tornado's WebSocket protocol, but strict in what it reads: RFC 6455 to the letter.

Tornado accepts unmasked frames, echoes close codes that must not be sent, logs a trace for a close reason that is not
UTF-8, and drops the connection after a breach without a close frame: clients then see 1006, as after a network failure,
reconnect and do the same again. Here a breach is answered with a close code of section 7.4.1, then the connection ends.
Every check is made as soon as its bytes have arrived. Compression is never negotiated, so a compressed frame, even a
decompression bomb, is a breach like any other.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import structlog
from tornado.websocket import WebSocketHandler, WebSocketProtocol13

log = structlog.get_logger(__name__)

PROTOCOL_ERROR = 1002
INVALID_TEXT = 1007
TOO_BIG = 1009
FINAL_BIT, RESERVED_BITS, OPCODE_BITS = 0x80, 0x70, 0x0F
MASK_BIT, LENGTH_BITS = 0x80, 0x7F
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
CONTROL_BIT = 0x8
MAX_CONTROL_BYTES = 125
KEY_BYTES = 16
# The length's second field: how many bytes it has, and the least length that needs it.
LONG_LENGTHS = {126: (2, 126), 127: (8, 65536)}


class Delegate(Protocol):
    """The methods that StrictProtocol calls on its handler."""

    @property
    def is_ending(self) -> bool:
        """True when a close code has been sent, or the connection is closed."""

    def end_for_breach(self, code: int) -> None:
        """Close the connection with the code; is_ending is True from now on."""

    def on_fragment(self) -> None:
        """Called for each continuation frame; a message may have endlessly many."""


class Breach(Exception):
    """The client broke the protocol.

    code: the close code for it.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Head(NamedTuple):
    """The first two bytes of a frame.

    length: of the payload; 126 and 127 mean that a second field has the length.
    """

    is_final: bool
    opcode: int
    length: int

    @property
    def is_control(self) -> bool:
        """True for a close, a ping or a pong."""
        return bool(self.opcode & CONTROL_BIT)


@dataclass(slots=True)
class Message:
    """A message of one or more frames. Text is checked frame by frame; a character may be split over two frames."""

    opcode: int
    data: bytearray = field(default_factory=bytearray)
    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def add(self, piece: bytes, is_final: bool) -> None:
        """Add the payload of a frame; Breach when the text so far is not UTF-8."""
        if self.opcode == TEXT:
            try:
                self.decoder.decode(piece, is_final)
            except UnicodeDecodeError:
                raise Breach(INVALID_TEXT, "text that is not UTF-8") from None
        self.data += piece


class StrictProtocol(WebSocketProtocol13):
    """The connection of a handler that is also a Delegate. Reads the frames instead of Tornado."""

    _message: Message | None = None

    @property
    def _delegate(self) -> Delegate:
        return cast(Delegate, self.handler)

    async def accept_connection(self, handler: WebSocketHandler) -> None:
        # No extension is negotiated, and Tornado would log a trace for a malformed header.
        handler.request.headers.pop("Sec-WebSocket-Extensions", None)
        await super().accept_connection(handler)

    async def _receive_frame_loop(self) -> None:
        # In a task of its own, so that the handshake ends here: otherwise its six coroutines, with the token, stay in
        # memory as long as the socket.
        task = asyncio.create_task(super()._receive_frame_loop())
        task.add_done_callback(lambda task: task.cancelled() or task.result())

    async def _receive_frame(self) -> None:
        try:
            head = read_head(await self._read_bytes(2), is_message_open=self._message is not None)
            if self._message is not None:
                self._delegate.on_fragment()
            length = await self._read_length(head)
            mask = await self._read_bytes(4)
            await self._process(head, unmasked(await self._read_bytes(length), mask))
        except Breach as breach:
            if not (self._delegate.is_ending or self.is_closing()):
                log.info("websocket_protocol_broken", code=breach.code, reason=str(breach))
                self._delegate.end_for_breach(breach.code)
            self._abort()

    async def _read_length(self, head: Head) -> int:
        """Return the length of the payload."""
        length = head.length
        if head.length in LONG_LENGTHS:
            size, least = LONG_LENGTHS[head.length]
            length = int.from_bytes(await self._read_bytes(size))
            if length < least or length >> 63:
                raise Breach(PROTOCOL_ERROR, "a length that is not written as it must be")
        earlier = len(self._message.data) if self._message is not None and not head.is_control else 0
        if earlier + length > self.params.max_message_size:
            raise Breach(TOO_BIG, "a message too large")
        return length

    async def _process(self, head: Head, data: bytes) -> None:
        """Handle a complete frame."""
        opcode = head.opcode
        if not head.is_control:
            message = self._message or Message(opcode)
            message.add(data, head.is_final)
            self._message = None if head.is_final else message
            opcode, data = message.opcode, bytes(message.data)
        elif opcode == CLOSE:
            check_close(data)
        if head.is_final and (handled := self._handle_message(opcode, data)) is not None:
            await handled


def is_handshake(headers: Mapping[str, str]) -> bool:
    """True for the headers of a WebSocket handshake (RFC 6455, section 4.2.1). Does not check the version."""
    try:
        key = base64.b64decode(headers.get("Sec-WebSocket-Key", ""), validate=True)
    except ValueError:
        return False
    options = [each.strip().lower() for each in headers.get("Connection", "").split(",")]
    return headers.get("Upgrade", "").lower() == "websocket" and "upgrade" in options and len(key) == KEY_BYTES


def read_head(first: bytes, *, is_message_open: bool) -> Head:
    """Return the first two bytes of a client's frame, parsed; Breach when such a frame is not allowed.

    is_message_open: the last data frame was not final.
    """
    head = Head(bool(first[0] & FINAL_BIT), first[0] & OPCODE_BITS, first[1] & LENGTH_BITS)
    if first[0] & RESERVED_BITS:
        raise Breach(PROTOCOL_ERROR, "a reserved bit, as a compressed frame has it")
    if head.opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        raise Breach(PROTOCOL_ERROR, f"an unknown kind of frame, {head.opcode}")
    if not first[1] & MASK_BIT:
        raise Breach(PROTOCOL_ERROR, "a frame that is not masked")
    if head.is_control:
        if not head.is_final:
            raise Breach(PROTOCOL_ERROR, "a control frame in pieces")
        if head.length > MAX_CONTROL_BYTES:
            raise Breach(PROTOCOL_ERROR, "a control frame that is too long")
    elif (head.opcode == CONTINUATION) != is_message_open:
        raise Breach(PROTOCOL_ERROR, "a message in a message" if is_message_open else "a continuation of nothing")
    return head


def check_close(payload: bytes) -> None:
    """Raise Breach unless a close frame may have this payload: nothing, or an allowed code and a text."""
    if not payload:
        return
    if len(payload) == 1:
        raise Breach(PROTOCOL_ERROR, "half a close code")
    code = int.from_bytes(payload[:2])
    if not may_be_sent(code):
        raise Breach(PROTOCOL_ERROR, f"the close code {code}, which may not be sent")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Breach(INVALID_TEXT, "a close reason that is not UTF-8") from None


def may_be_sent(code: int) -> bool:
    """True for a close code that RFC 6455, section 7.4, and IANA's list allow in a frame; 3000 to 4999 are free."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def unmasked(data: bytes, mask: bytes) -> bytes:
    """Return the payload without its mask."""
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(key)).to_bytes(size)
