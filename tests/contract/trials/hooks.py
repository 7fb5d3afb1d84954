"""Formats that schemathesis does not know: photos and cursors. The module for SCHEMATHESIS_HOOKS.

It runs in the environment of schemathesis, so it imports no module of the service.
"""

from __future__ import annotations

import base64
from struct import pack
from typing import Any
from zlib import compress, crc32

import schemathesis
from hypothesis import strategies as st

NOON_MS = 1_769_860_800_000  # 2026-01-31


def png(width: int, height: int, shade: int) -> bytes:
    """Return a grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))

    head = pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = (b"\0" + bytes([shade]) * width) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", compress(lines)) + chunk(b"IEND", b"")


def cursor(milliseconds: int, item_id: str) -> str:
    """Return a position in a list, in the form of nextCursor."""
    return base64.urlsafe_b64encode(f"{NOON_MS + milliseconds}.{item_id}".encode()).decode().rstrip("=")


ids = st.text("0123456789abcdef", min_size=24, max_size=24)
photos = st.builds(png, st.integers(1, 64), st.integers(1, 64), st.integers(0, 255))
schemathesis.openapi.format("binary", photos)
schemathesis.openapi.format("cursor", st.builds(cursor, st.integers(0, 10**9), ids))


@schemathesis.hook
def before_load_schema(context: Any, schema: dict[str, Any]) -> None:
    """Remove the schema of the event stream.

    In OpenAPI 3.1 it describes the complete stream as a text, but schemathesis checks each frame against it.
    """
    del schema["paths"]["/api/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
