"""How the service and a child write to each other: JSON, with bytes beside it. Pure.

A message is a PREFIX (length of the header, length of all bytes), the header, then the bytes. The header is two lines
of JSON: the size of each blob of bytes, and the value. Never pickle: to unpickle is to run code of the other side, and
a hostile photo may have taken the child over.
"""

from __future__ import annotations

import json
import struct
from typing import Any

PREFIX = struct.Struct(">II")
MAX_HEADER_BYTES = 1024 * 1024
# 1600 x 1600 pixels are 8 MB.
MAX_REPLY_BYTES = 64 * 1024 * 1024
BYTES = "\0bytes"  # {BYTES: n} stands for the n-th blob


def pack(value: Any) -> list[bytes]:
    """Return the message in parts. value: JSON types and bytes; TypeError for others. Tuples arrive as lists."""
    blobs: list[bytes] = []

    def set_apart(each: Any) -> dict[str, int]:
        if not isinstance(each, bytes):
            raise TypeError(f"{type(each).__name__} cannot be sent to or from a child: only JSON values and bytes can")
        blobs.append(each)
        return {BYTES: len(blobs) - 1}

    text = json.dumps(value, default=set_apart)
    header = f"{[len(blob) for blob in blobs]}\n{text}".encode()
    return [PREFIX.pack(len(header), sum(map(len, blobs))) + header, *blobs]


def unpack(header: bytes, content: bytes | bytearray) -> Any:
    """Return the value of a message.

    content: all its blobs.
    ValueError, LookupError, TypeError or RecursionError when it is malformed.
    """
    sizes, _, text = header.partition(b"\n")
    blobs, start = [], 0
    for size in json.loads(sizes):
        blobs.append(bytes(memoryview(content)[start : start + size]))
        start += size
    if start != len(content):
        raise ValueError("the bytes are not as long as the header says")
    return json.loads(text, object_hook=lambda found: blobs[found[BYTES]] if set(found) == {BYTES} else found)
