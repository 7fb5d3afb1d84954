"""A cleaned picture has the orientation that browsers show, and the service reads the same orientation."""

from __future__ import annotations

import io
import struct

import pytest

from pipeline.assets.hygiene import exif
from pipeline.assets.image import inspect
from pipeline.sandbox import photo
from pipeline.sandbox.orientation import orientation_in
from tests.private_pictures import tiff
from tests.turned_pictures import TURNED, type_of
from tests.unit.picture_cleaning import cleaned, orientation


@pytest.mark.fault("U7")
@pytest.mark.parametrize("name", TURNED)
def test_copy_has_the_orientation_that_browsers_show(name: str) -> None:
    """The copy has the orientation that browsers use, in a minimal EXIF; other orientation data is removed."""
    content, expected = TURNED[name]
    copy = cleaned(content, type_of(content))
    assert (orientation(copy) or 1) == expected
    is_sideways = expected > 4
    # The service reads the same orientation from a file that still has its metadata.
    for each in (content, copy) if name != "jpeg with another EXIF header" else (copy,):
        info = inspect(io.BytesIO(each), 10**6, 100)
        (preview,) = photo.previews(each, [320], 10**6, 100)
        assert (info.width > info.height) != is_sideways
        assert preview[1:3] == [info.width, info.height]


def test_orientation_is_read_from_odd_tables() -> None:
    """Like browsers, the service reads tables that end early or stand far away; data that is no EXIF gives 1."""
    other = struct.pack("<HHII", 0x0132, 4, 1, 5)
    entry = tiff(6)[10:22]
    assert orientation_in(tiff(6)[:-4]) == 6  # no bytes after the table
    assert orientation_in(b"II*\0\x08\0\0\0\x09\0" + entry) == 6  # the table claims nine entries
    assert orientation_in(b"II*\0\x08\0\0\0\x02\0" + other + entry) == 6
    assert orientation_in(b"II*\0" + struct.pack("<I", 40) + bytes(32) + tiff(6)[8:]) == 6
    for broken in (b"", b"II*\0", b"II+\0" + tiff(6)[4:], tiff(6)[:20], b"II*\0\xff\xff\xff\xff", b"XX" * 20):
        assert orientation_in(broken) == 1
    for number in range(1, 9):
        assert orientation_in(exif.minimal(number)) == number
