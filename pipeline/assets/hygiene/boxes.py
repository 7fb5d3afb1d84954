"""Boxes of AVIF and HEIC that are in memory: what both kinds of tables are made of. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Count = Callable[[int], None]  # Source.count


def read(content: bytes, at: int, count: Count) -> Iterator[tuple[bytes, bytes]]:
    """Yield the boxes that another one holds, as (kind, content). at: where the first begins."""
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
    """Return a box that says nothing, whose content has that size."""
    return b"free", bytes(size)


def nameless(handler: bytes) -> bytes:
    """Return the content of a box `hdlr` without the name it gives, at the same size."""
    return handler[:24] + bytes(max(0, len(handler) - 24))
