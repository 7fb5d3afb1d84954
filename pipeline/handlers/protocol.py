"""Tornado's WebSocket protocol, but who breaks it is told how before being hung up on.

Tornado itself drops such a connection without a word: clients then see 1006, as if the network had failed, and come
back to do the same again. The codes are those of RFC 6455, section 7.4.1. Compression is never agreed to, so a
compressed frame, a bomb among them, is a breach like any other.
"""

from __future__ import annotations

import asyncio
from typing import Protocol as TypingProtocol

from tornado.websocket import WebSocketProtocol13

PROTOCOL_ERROR = 1002
INVALID_TEXT = 1007
TOO_BIG = 1009
OPCODE_TEXT = 0x1


class Delegate(TypingProtocol):
    """What a handler brings so that it hears of breaches."""

    @property
    def is_ending(self) -> bool:
        """Whether a close code has been sent, or the socket is gone."""

    def end_for_breach(self, code: int) -> None:
        """Close with the code; is_ending from now on."""

    def on_fragment(self) -> None:
        """Another piece of a message begins, which may never end."""


class StrictProtocol(WebSocketProtocol13):
    """One connection. Overrides what Tornado calls when a client breaks the protocol."""

    delegate: Delegate

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if code == TOO_BIG and not self.delegate.is_ending:
            self.delegate.end_for_breach(TOO_BIG)
        else:
            super().close(code, reason)

    def _abort(self) -> None:
        if self.stream is not None and not (self.delegate.is_ending or self.is_closing()):
            self.delegate.end_for_breach(PROTOCOL_ERROR)
        super()._abort()

    async def _read_bytes(self, n: int) -> bytes:
        # Every frame begins with two bytes. Tornado tells handlers of whole messages only.
        if n == 2 and self._fragmented_message_buffer is not None:
            self.delegate.on_fragment()
        return await super()._read_bytes(n)

    def _handle_message(self, opcode: int, data: bytes) -> asyncio.Future[None] | None:
        if opcode == OPCODE_TEXT:
            try:
                data.decode()
            except UnicodeDecodeError:
                self.delegate.end_for_breach(INVALID_TEXT)
                super()._abort()
                return None
        return super()._handle_message(opcode, data)
