"""The image type of a file, from its first bytes."""

from __future__ import annotations

import io

import pytest

from pipeline.assets.image import CONTENT_TYPES, inspect
from pipeline.assets.kinds import HEAD_BYTES, image_type
from pipeline.errors import ValidationError
from tests.factories import make_image
from tests.pictures import box

FEW = 12


def ftyp(*brands: bytes) -> bytes:
    """Return the first box of a HEIF file with these brands."""
    return box(b"ftyp", brands[0] + bytes(4) + b"".join(brands[1:]))


@pytest.mark.parametrize("format", CONTENT_TYPES)
def test_first_bytes_give_the_type_of_the_complete_file(format: str) -> None:
    """Twelve bytes give the type of each accepted format; fewer bytes give this type or None, never another type."""
    content = make_image(format)
    expected = inspect(io.BytesIO(content), 10**6, 100).content_type
    for size in (FEW, HEAD_BYTES, len(content)):
        assert image_type(content[:size]) == expected
    assert {image_type(content[:size]) for size in range(FEW)} <= {None, expected}


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", None),
        (b"GIF88a" + bytes(60), None),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"\x89PNG\n\n\x1a\n" + bytes(60), None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (ftyp(b"mp42", b"mp42", b"heic"), None),  # a video
        (ftyp(b"mif1", b"mif1", b"avif", b"miaf"), "image/avif"),
        (ftyp(b"mif1", b"mif1", b"heic"), "image/heic"),
        (ftyp(b"mif1") + box(b"meta", b"avif"), "image/heic"),  # a brand after the list does not count
        (ftyp(b"heic", b"mif1", b"avif"), "image/heic"),  # the first brand counts
    ],
)
def test_only_accepted_pictures_have_a_type(head: bytes, expected: str | None) -> None:
    """A video with the same boxes has no type; a file with a general first brand has the type of its list of brands."""
    assert image_type(head) == expected
    if expected is None:
        with pytest.raises(ValidationError):
            inspect(io.BytesIO(head), 10**6, 100)
