"""How EXIF says that a picture is to be turned, as browsers read it, and the least EXIF that says it. Pure.

A browser wants the tag 0x0112 in the first table, as one SHORT from 1 to 8, and takes anything else for 1. Tried with
Chromium 156.
"""

from __future__ import annotations

import struct

ORIENTATION, SHORT = 0x0112, 3
UPRIGHT = 1
# As much as is looked at: the table itself, not what it points to.
LOOKED_AT_BYTES = 64 * 1024


def orientation(tiff: bytes) -> int:
    """Return the orientation, from 1 to 8, of EXIF data without its `Exif` head; 1 when it has none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return UPRIGHT
    (table,) = struct.unpack_from(order + "I", tiff, 4)
    if table + 2 > len(tiff):
        return UPRIGHT
    (entries,) = struct.unpack_from(order + "H", tiff, table)
    for at in range(table + 2, min(table + 2 + entries * 12, len(tiff) - 11), 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, at)
        if tag == ORIENTATION:
            return value if (kind, count) == (SHORT, 1) and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def minimal(orientation: int) -> bytes:
    """Return EXIF data, without the `Exif` head, that holds the orientation and nothing else."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, SHORT, 1, orientation, 0, 0)
