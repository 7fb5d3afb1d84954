"""Cleans JPEG. Pure.

A file is markers, most with a segment behind them. Behind SOS comes the coded picture, up to the next marker. EOI ends
the picture: a second picture (MPF), a film (motion photo) or a camera's own data behind it are removed.
Sources: ITU-T T.81 annex B, T.871 (JFIF), T.872 (Adobe); Exif 3.0; libjpeg's handling of damaged files.
"""

from __future__ import annotations

import re
import struct

from pipeline.assets.hygiene import exif
from pipeline.assets.hygiene.source import Copy, Source
from pipeline.sandbox.orientation import UPRIGHT, orientation_in

# A marker that ends a coded picture: not FF 00 and not a restart marker.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SOI, EOI, SOS, APP0, APP1, APP2, APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE
# Frames, tables and scans: all that decoding needs.
PICTURE = {*range(0xC0, 0xD0), *range(0xDA, 0xE0)} - {0xC8}
# Of no known length: a decoder stops here. In a damaged coded picture they may be there by chance.
UNKNOWN = {*range(0x01, 0xC0), 0xC8, *range(0xF0, 0xFE)}
HEAD_BYTES = 16  # enough to recognize the segments that stay


def clean(source: Source) -> Copy:
    """Return the clean copy."""
    if source.take(0, 3) != b"\xff\xd8\xff":
        raise ValueError("no JPEG")
    segments = _Segments(source)
    segments.copy.keep(0, 2)
    at, scan = 2, 0  # scan: where a coded picture begins that has not ended yet
    while (found := source.find(MARKER, at)) < source.size:
        source.count()
        code = source.take(found, 2)[1]
        if scan and code in UNKNOWN:
            at = found + 2
            continue
        segments.copy.keep(scan or found, found)
        scan = 0
        if code == EOI and segments.has_picture:
            segments.copy.keep(found, found + 2)
            break
        length = int.from_bytes(source.take(found + 2, 2))
        at = found + 2 + length
        if code in UNKNOWN or code in (SOI, EOI) or length < 2 or at > source.size:
            # A decoder that has a picture shows it, and reads no further.
            break
        segments.add(code, found, at)
        scan = at if code == SOS else 0
    if not segments.has_picture:
        raise ValueError("no picture")
    if scan:
        segments.copy.keep(scan, source.size)
    return segments.copy


class _Segments:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.copy = Copy(source)
        self.has_picture = False
        self._has_exif = self._has_jfif = False

    def add(self, code: int, start: int, end: int) -> None:
        """Copy the segment, cleaned if necessary, or leave it out."""
        if code in PICTURE:
            self.copy.keep(start, end)
            self.has_picture |= code == SOS
            return
        head = self._source.take(start + 4, min(HEAD_BYTES, end - start - 4))
        if code == APP0 and head.startswith(b"JFIF\0") and len(head) >= 14 and not self._has_jfif:
            # Without the thumbnail that may follow. The segment itself says how colours are coded.
            self._has_jfif = True
            self.copy.put(_segment(APP0, head[:12] + bytes(2)), start, end)
        elif code == APP14 and head.startswith(b"Adobe") and len(head) >= 12:
            self.copy.put(_segment(APP14, head[:12]), start, end)
        elif code == APP2 and head.startswith(b"ICC_PROFILE\0"):
            self.copy.keep(start, end)
        elif code == APP1 and head.startswith(b"Exif\0") and not self._has_exif and not self.has_picture:
            # Browsers read the first one only, and no orientation in XMP.
            self._has_exif = True
            tiff = self._source.take(start + 10, min(exif.READ_BYTES, max(0, end - start - 10)))
            if (orientation := orientation_in(tiff)) != UPRIGHT:
                self.copy.put(_segment(APP1, b"Exif\0\0" + exif.minimal(orientation)), start, end)


def _segment(code: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, 2 + len(content)) + content
