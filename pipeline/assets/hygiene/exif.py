"""The smallest EXIF data that holds an orientation. Pure."""

from __future__ import annotations

import struct

from pipeline.sandbox.orientation import ORIENTATION, SHORT

# So much is read: the table itself, not the data it points to.
READ_BYTES = 64 * 1024


def minimal(orientation: int) -> bytes:
    """Return EXIF data, without the `Exif` head, that holds the orientation and nothing else."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, SHORT, 1, orientation, 0, 0)
