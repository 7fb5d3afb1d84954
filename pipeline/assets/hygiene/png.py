"""Cleans PNG and APNG. Pure.

A file is chunks up to IEND. The chunks for decoding, colours and animation stay as they are, with their checksums;
texts, the time, EXIF without the orientation, and data of programs are removed.
Sources: W3C PNG third edition; libpng.
"""

from __future__ import annotations

import struct
import zlib

from pipeline.assets.hygiene import exif
from pipeline.assets.hygiene.source import Copy, Source
from pipeline.sandbox.orientation import UPRIGHT, orientation_in

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ANY = 2**31 - 1
# The chunks that stay, and the most bytes each may have: a longer one has other content too.
KEPT = {
    b"IHDR": 13,
    b"PLTE": 768,
    b"IDAT": ANY,
    b"tRNS": 256,
    b"cHRM": 32,
    b"gAMA": 4,
    b"iCCP": ANY,
    b"sBIT": 4,
    b"sRGB": 1,
    b"cICP": 4,
    b"mDCV": 24,
    b"cLLI": 8,
    b"bKGD": 6,
    b"pHYs": 9,
    b"acTL": 8,
    b"fcTL": 26,
    b"fdAT": ANY,
}
END = b"\0\0\0\0IEND\xaeB`\x82"


def clean(source: Source) -> Copy:
    """Return the clean copy."""
    if source.take(0, 8) != SIGNATURE:
        raise ValueError("no PNG")
    copy = Copy(source)
    copy.keep(0, 8)
    at, has_exif, has_picture = 8, False, False
    while len(head := source.take(at, 8)) == 8:
        source.count()
        (length,), kind = struct.unpack(">I", head[:4]), head[4:]
        end = at + 12 + length
        if kind == b"IEND":
            copy.put(END, at, end)
            break
        if not kind.isalpha() and has_picture:
            break  # a decoder stops here too
        if length <= KEPT.get(kind, -1):
            copy.keep(at, end)
            has_picture |= kind == b"IDAT"
        elif kind == b"eXIf" and not has_exif and not has_picture:
            # Browsers read the first one only, and none behind the picture.
            has_exif = True
            _keep_orientation(source, copy, at, end)
        elif not kind[0] & 0x20:
            raise ValueError("an unknown chunk that a decoder must understand")
        at = end
    if not has_picture:
        raise ValueError("no picture")
    return copy


def _keep_orientation(source: Source, copy: Copy, start: int, end: int) -> None:
    tiff = source.take(start + 8, min(exif.READ_BYTES, end - start - 12))
    if end <= source.size and (orientation := orientation_in(tiff)) != UPRIGHT:
        copy.put(_chunk(b"eXIf", exif.minimal(orientation)), start, end)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
