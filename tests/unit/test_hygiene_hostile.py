"""Cleaning of cut-off, damaged and hostile files: a clean copy or a ValueError, after a bounded number of steps."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable

import pytest
from PIL import Image, ImageFile

from pipeline.assets.hygiene import clean
from tests import pictures, private_pictures
from tests.pictures import box, encode, gradient, riff
from tests.private_pictures import PRIVATE, SECRET, chunk, segment, with_chunks
from tests.turned_pictures import PLAIN_JPEG, PLAIN_PNG
from tests.unit.picture_cleaning import TYPES, cleaned, frames


@pytest.mark.parametrize("name", PRIVATE)
def test_cut_off_file_is_cleaned_or_refused(name: str) -> None:
    """A file that is cut at any byte is cleaned or refused, and no private data remains; some copies are made."""
    content, content_type = PRIVATE[name]
    cleaned_files = 0
    for length in range(0, len(content), max(1, len(content) // 150)):
        target = io.BytesIO()
        try:
            is_changed = clean(io.BytesIO(content[:length]), target, content_type)
        except ValueError:
            continue
        cleaned_files += 1
        assert SECRET not in (target.getvalue() if is_changed else content[:length])
    assert cleaned_files > 5


@pytest.mark.parametrize(("format", "least"), [("JPEG", 0.8), ("PNG", 0.8), ("GIF", 0.8), ("WEBP", 0.8)])
def test_cleaning_of_a_cut_off_picture_leaves_most_of_it(format: str, least: float) -> None:
    """At least this share of a clean picture that ends early remains after cleaning."""
    content = encode(pictures.gradient((300, 200)).convert("RGB").rotate(3), format)
    cut = content[: len(content) * 9 // 10]
    assert len(cleaned(cut, TYPES[format])) >= len(cut) * least


def test_damaged_scan_is_decoded_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders read the same picture before and after cleaning, also if damaged bytes look like a marker."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    good = encode(gradient((128, 128)).rotate(7), "JPEG", restart_marker_blocks=3)
    start, source = good.index(b"\xff\xda") + 12, random.Random(1)
    for _ in range(1000):
        content = bytearray(good)
        at = source.randrange(start, len(content) - 4)
        content[at : at + 2] = bytes([0xFF, source.randrange(256)])
        assert frames(cleaned(bytes(content), "image/jpeg")) == frames(bytes(content))


def many_chunks(kind: bytes, size: int) -> bytes:
    """Return empty chunks of a PNG with this total size."""
    return chunk(kind, b"") * (size // 12)


BIG = 10 * 1024 * 1024
# The value is a function that makes the file, its content type, and whether the file is refused.
HOSTILE: dict[str, tuple[Callable[[], bytes], str, bool]] = {
    "jpeg of millions of segments": (
        lambda: b"\xff\xd8" + segment(0xE5, b"") * (BIG // 4) + PLAIN_JPEG[2:],
        "image/jpeg",
        True,
    ),
    "jpeg of millions of markers": (lambda: PLAIN_JPEG[:-2] + b"\xff\x01" * (BIG // 2), "image/jpeg", True),
    "jpeg of ten megabytes of FF": (lambda: PLAIN_JPEG[:-2] + b"\xff" * BIG, "image/jpeg", False),
    "jpeg of ten megabytes of zeros": (
        lambda: b"\xff\xd8\xff\xe0\0\x02" + bytes(BIG) + PLAIN_JPEG[2:],
        "image/jpeg",
        False,
    ),
    "jpeg of scans only": (
        lambda: PLAIN_JPEG[:-2] + segment(0xDA, b"\1\1\0\0\x3f\0") * (BIG // 10),
        "image/jpeg",
        True,
    ),
    "png of a million chunks": (lambda: with_chunks(PLAIN_PNG, [many_chunks(b"tEXt", BIG)]), "image/png", True),
    "png of a million pieces": (lambda: with_chunks(PLAIN_PNG, [many_chunks(b"IDAT", BIG)]), "image/png", True),
    "png with a critical chunk": (lambda: with_chunks(PLAIN_PNG, [chunk(b"CgBI", b"abcd")]), "image/png", True),
    "webp of a million chunks": (lambda: riff((b"VP8L", b"/1234"), *[(b"JUNK", b"")] * (BIG // 8)), "image/webp", True),
    "webp frame of a million chunks": (
        lambda: riff((b"VP8X", b"\2" + bytes(9)), (b"ANMF", bytes(16) + b"JUNK\0\0\0\0" * (BIG // 8))),
        "image/webp",
        True,
    ),
    "gif of millions of blocks": (lambda: _gif(b"!\xfe" + b"\1x" * (BIG // 2) + b"\0"), "image/gif", True),
    "gif of millions of extensions": (lambda: _gif(b"!\xfe\0" * (BIG // 3)), "image/gif", True),
    "gif of padding": (lambda: _gif(bytes(BIG)), "image/gif", True),
    "heic of a million boxes": (lambda: box(b"ftyp", b"heic") + box(b"free", b"") * (BIG // 8), "image/heic", True),
    "heic of 80,000 items": (lambda: pictures.many_items(b"heic", 80_000), "image/heic", True),
    "heic of ten megabytes of tables": (
        lambda: box(b"ftyp", b"heic") + box(b"meta", bytes(BIG)),
        "image/heic",
        True,
    ),
    "heic of a million associations": (lambda: _heic_of_associations(1_000_000), "image/heic", True),
    "heic of boxes in boxes": (
        lambda: private_pictures.heif("HEIF") + _nested(b"trak", 100_000) + box(b"mdat", b""),
        "image/heic",
        True,
    ),
    "avif of 2.5 million samples": (lambda: pictures.many_samples(2_500_000), "image/avif", True),
}


def _heic_of_associations(items: int) -> bytes:
    """Return a HEIC with this number of property associations."""
    entries = bytes(4) + struct.pack(">I", items) + b"\0\2\1\1" * items
    size = box(b"ipco", box(b"ispe", bytes(4) + struct.pack(">II", 64, 48)))
    tables = [box(b"pitm", bytes(4) + b"\0\1"), box(b"iinf", bytes(6)), box(b"iloc", b"\0\0\0\0\x44" + bytes(3))]
    meta = box(b"meta", bytes(4) + b"".join(tables) + box(b"iprp", size + box(b"ipma", entries)))
    return box(b"ftyp", b"heic" + bytes(4)) + meta


def _nested(kind: bytes, depth: int) -> bytes:
    """Return a `moov` with boxes in boxes, of this depth."""
    sizes = range(8 * depth, 0, -8)
    return box(b"moov", b"".join(struct.pack(">I", size) + kind for size in sizes))


def _gif(extensions: bytes) -> bytes:
    """Return a GIF with these extensions before its end."""
    good = encode(Image.new("P", (8, 8)), "GIF")
    return good[:-1] + extensions + good[-1:]


@pytest.mark.fault("U1")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_needs_a_bounded_number_of_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of any parts is cleaned or refused after a bounded number of reads."""
    make, content_type, is_refused = HOSTILE[name]
    content = make()
    source = _Counted(content)
    target = io.BytesIO()
    if is_refused:
        with pytest.raises(ValueError):
            clean(source, target, content_type)
        assert not target.getvalue()
    else:
        clean(source, target, content_type)
    # The file is read twice in blocks of 256 kB: to find its parts, and to copy them.
    assert source.reads < 2 * BIG // (256 * 1024) + 50


class _Counted(io.BytesIO):
    """A file that counts its reads."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("name", PRIVATE)
def test_damaged_file_is_cleaned_or_refused(name: str) -> None:
    """A file with any changed bytes gives a copy or a ValueError."""
    content, content_type = PRIVATE[name]
    source = random.Random(name)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(source.randint(1, 6)):
            damaged[source.randrange(min(len(damaged), 1500))] = source.randrange(256)
        target = io.BytesIO()
        try:
            clean(io.BytesIO(bytes(damaged)), target, content_type)
        except ValueError:
            assert not target.getvalue()


def test_file_of_another_type_is_refused() -> None:
    """Cleaning refuses a picture with a wrong content type, an unsupported type and an empty file."""
    for content, content_type in ((PLAIN_PNG, "image/jpeg"), (PLAIN_JPEG, "image/tiff"), (b"", "image/gif")):
        with pytest.raises(ValueError):
            clean(io.BytesIO(content), io.BytesIO(), content_type)
