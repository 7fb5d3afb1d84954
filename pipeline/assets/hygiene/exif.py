"""The least EXIF that says how a picture is to be turned. Pure."""

from __future__ import annotations

import struct

from pipeline.sandbox.orientation import ORIENTATION, SHORT

# As much as is looked at: the table itself, not what it points to.
LOOKED_AT_BYTES = 64 * 1024


def minimal(orientation: int) -> bytes:
    """Return EXIF data, without the `Exif` head, that holds the orientation and nothing else."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, SHORT, 1, orientation, 0, 0)
