"""Cleans WebP. Pure.

A file is one RIFF of chunks; frames of an animation have chunks of their own. EXIF is removed with the orientation: no
browser obeys the orientation in a WebP (tried with Chromium 156), so the copy is shown like the original.
Source: developers.google.com/speed/webp/docs/riff_container.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pipeline.assets.hygiene.source import Copy, Source

# The chunks that stay, and their role: of each role only the first stays, except frames.
KEPT = {
    b"VP8X": "canvas",
    b"ICCP": "colours",
    b"ANIM": "animation",
    b"ALPH": "alpha",
    b"VP8 ": "picture",
    b"VP8L": "picture",
    b"ANMF": "frame",
}
IN_FRAME = {b"ALPH", b"VP8 ", b"VP8L"}
FRAME_HEAD_BYTES = 16
XMP_AND_EXIF = 0x04 | 0x08


def clean(source: Source) -> Copy:
    """Return the clean copy."""
    head = source.take(0, 12)
    if head[:4] != b"RIFF" or head[8:] != b"WEBP":
        raise ValueError("no WebP")
    (size,) = struct.unpack("<I", head[4:8])
    parts = _Chunks(source)
    parts.add_all(12, 8 + size)
    if not parts.seen & {"picture", "frame"}:
        raise ValueError("no picture")
    copy = Copy(source)
    copy.keep(0, 4)
    copy.put(struct.pack("<I", size - parts.removed_bytes), 4, 8)
    copy.keep(8, 12)
    copy.follow(parts.copy)
    return copy


class _Chunks:
    """removed_bytes: by the sizes in the RIFF, also when the file is truncated."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.copy = Copy(source)
        self.removed_bytes = 0
        self.seen: set[str] = set()

    def add_all(self, start: int, end: int) -> None:
        at = start
        for kind, at, next_at in _chunks(self._source, start, end):
            role = KEPT.get(kind)
            if role is None or (role in self.seen and role != "frame"):
                self.removed_bytes += next_at - at
            elif kind == b"VP8X":
                self._add_canvas(at, next_at)
            elif kind == b"ANMF":
                self._add_frame(at, next_at)
            else:
                self.copy.keep(at, next_at)
            if role:
                self.seen.add(role)
            at = next_at
        self.removed_bytes += max(0, end - at)

    def _add_canvas(self, start: int, end: int) -> None:
        if end - start != 18:
            raise ValueError("a canvas of another size")
        flags = self._source.take(start + 8, 1)
        self.copy.keep(start, start + 8)
        self.copy.put(bytes([flags[0] & ~XMP_AND_EXIF]), start + 8, start + 9)
        self.copy.keep(start + 9, end)

    def _add_frame(self, start: int, end: int) -> None:
        """Add a frame: its head and the chunks of its picture."""
        (size,) = struct.unpack("<I", self._source.take(start + 4, 4))
        inner, at = Copy(self._source), start + 8 + FRAME_HEAD_BYTES
        inner_end, kept = min(end, start + 8 + size), FRAME_HEAD_BYTES
        for kind, at, next_at in _chunks(self._source, at, inner_end):
            if kind in IN_FRAME:
                inner.keep(at, next_at)
                kept += next_at - at
        self.copy.keep(start, start + 4)
        self.copy.put(struct.pack("<I", kept), start + 4, start + 8)
        self.copy.keep(start + 8, start + 8 + FRAME_HEAD_BYTES)
        self.copy.follow(inner)
        if kept % 2:
            self.copy.put(b"\0", end - 1, end)
        self.removed_bytes += end - start - 8 - kept - kept % 2


def _chunks(source: Source, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk, its offset and that of the next one, at most `end`."""
    while at + 8 <= end and len(head := source.take(at, 8)) == 8:
        source.count()
        (size,) = struct.unpack("<I", head[4:])
        next_at = min(end, at + 8 + size + size % 2)
        yield head[:4], at, next_at
        at = next_at
