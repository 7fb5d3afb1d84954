"""WebSocket frames as bytes: made once for each event, however many sockets and processes get it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

TEXT_FRAME = 0x81  # final fragment of a text message, RFC 6455 section 5.2
PIECE_BYTES = 64 * 1024


def encode(event: Mapping[str, Any]) -> bytes:
    """Return the event as JSON text."""
    try:
        return orjson.dumps(event)
    except TypeError:
        # A provider cut a text inside a surrogate pair: half a pair can only be sent escaped.
        return json.dumps(event, separators=(",", ":")).encode()


def text_frame(payload: bytes) -> bytes:
    """Return the payload as an unmasked, uncompressed WebSocket text frame, as servers send them."""
    length = len(payload)
    if length < 126:
        return bytes((TEXT_FRAME, length)) + payload
    if length <= 0xFFFF:
        return bytes((TEXT_FRAME, 126)) + length.to_bytes(2) + payload
    return bytes((TEXT_FRAME, 127)) + length.to_bytes(8) + payload


def event_frame(event: Mapping[str, Any]) -> bytes:
    """Return the event as the frame that sockets get."""
    return text_frame(encode(event))


def join_frames(frames: Iterable[bytes]) -> list[bytes]:
    """Return the frames joined to pieces of about 64 KiB: hundreds of frames cost only a few writes."""
    pieces: list[bytes] = []
    piece: list[bytes] = []
    size = 0
    for frame in frames:
        piece.append(frame)
        size += len(frame)
        if size >= PIECE_BYTES:
            pieces.append(b"".join(piece))
            piece, size = [], 0
    return [*pieces, b"".join(piece)] if piece else pieces


def payloads(frames: bytes) -> Iterator[bytes]:
    """Yield the payloads of joined frames."""
    start = 0
    while start < len(frames):
        length, start = frames[start + 1], start + 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length, start = int.from_bytes(frames[start : start + size]), start + size
        yield frames[start : start + length]
        start += length
