"""Tornado's WebSocket protocol, but who breaks it is told how before being hung up on.

Tornado itself drops such a connection without a word: clients then see 1006, as if the network had failed, and come
back to do the same again. The codes are those of RFC 6455, section 7.4.1. Compression is never agreed to, so a
compressed frame, a bomb among them, is a breach like any other.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from tornado.websocket import WebSocketProtocol13

PROTOCOL_ERROR = 1002
INVALID_TEXT = 1007
TOO_BIG = 1009
OPCODE_TEXT = 0x1


class Delegate(Protocol):
    """What a handler brings so that it hears of breaches."""

    @property
    def is_ending(self) -> bool:
        """Whether a close code has been sent, or the socket is gone."""

    def end_for_breach(self, code: int) -> None:
        """Close with the code; is_ending from now on."""

    def on_fragment(self) -> None:
        """Another piece of a message begins, which may never end."""


class StrictProtocol(WebSocketProtocol13):
    """One connection of a handler that is also a Delegate. Overrides what Tornado calls when the protocol is broken."""

    @property
    def _delegate(self) -> Delegate:
        return cast(Delegate, self.handler)

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if code == TOO_BIG and not self._delegate.is_ending:
            self._delegate.end_for_breach(TOO_BIG)
        else:
            super().close(code, reason)

    def _abort(self) -> None:
        if self.stream is not None and not (self._delegate.is_ending or self.is_closing()):
            self._delegate.end_for_breach(PROTOCOL_ERROR)
        super()._abort()

    async def _receive_frame_loop(self) -> None:
        # In a task of its own, so that the handshake ends here: Tornado would keep all of it, six coroutines and the
        # token with them, for as long as the socket lives.
        task = asyncio.create_task(super()._receive_frame_loop())
        task.add_done_callback(lambda task: task.cancelled() or task.result())

    async def _read_bytes(self, n: int) -> bytes:
        # Every frame begins with two bytes. Tornado tells handlers of whole messages only.
        if n == 2 and self._fragmented_message_buffer is not None:
            self._delegate.on_fragment()
        return await super()._read_bytes(n)

    def _handle_message(self, opcode: int, data: bytes) -> asyncio.Future[None] | None:
        if opcode == OPCODE_TEXT:
            try:
                data.decode()
            except UnicodeDecodeError:
                self._delegate.end_for_breach(INVALID_TEXT)
                super()._abort()
                return None
        return super()._handle_message(opcode, data)
