"""Boxes of AVIF and HEIC in memory. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Count = Callable[[int], None]  # Source.count


def read(content: bytes, at: int, count: Count) -> Iterator[tuple[bytes, bytes]]:
    """Yield the boxes in the content of another box, as (kind, content). at: the offset of the first."""
    while at < len(content):
        count(1)
        size, kind = struct.unpack_from(">I4s", content, at)
        if size < 8 or at + size > len(content):
            raise ValueError("a box that ends elsewhere")
        yield kind, content[at + 8 : at + size]
        at += size


def write(kind: bytes, content: bytes) -> bytes:
    """Return the box."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def blank(size: int) -> tuple[bytes, bytes]:
    """Return an empty box whose content has that size."""
    return b"free", bytes(size)


def nameless(handler: bytes) -> bytes:
    """Return the content of a box `hdlr` without its name, at the same size."""
    return handler[:24] + bytes(max(0, len(handler) - 24))
