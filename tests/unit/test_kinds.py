"""Which kind of image a file is, by its first bytes."""

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
    return box(b"ftyp", brands[0] + bytes(4) + b"".join(brands[1:]))


@pytest.mark.parametrize("format", CONTENT_TYPES)
def test_first_bytes_tell_what_the_whole_file_tells(format: str) -> None:
    """Of each format that is taken, from the first twelve bytes on; no fewer are mistaken for another kind."""
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
        (ftyp(b"mp42", b"mp42", b"heic"), None),  # a film
        (ftyp(b"mif1", b"mif1", b"avif", b"miaf"), "image/avif"),
        (ftyp(b"mif1", b"mif1", b"heic"), "image/heic"),
        (ftyp(b"mif1") + box(b"meta", b"avif"), "image/heic"),  # behind the list
        (ftyp(b"heic", b"mif1", b"avif"), "image/heic"),  # the first name counts
    ],
)
def test_only_pictures_that_are_taken_have_a_type(head: bytes, expected: str | None) -> None:
    """A film of the same kind of boxes has none; the list of brands tells what only says that it is made of boxes."""
    assert image_type(head) == expected
    if expected is None:
        with pytest.raises(ValidationError):
            inspect(io.BytesIO(head), 10**6, 100)
