"""The headers of WebP, AVIF and HEIC, read without their libraries: the same values, for little time and memory."""

from __future__ import annotations

import io
import random
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time

import pytest
from PIL import ExifTags, Image

from pipeline.assets.containers import read_heif, read_webp
from pipeline.assets.image import inspect
from pipeline.errors import ValidationError
from pipeline.sandbox.header import Header, header_of
from tests import pictures
from tests.factories import make_image
from tests.pictures import box, encode, gradient, heif_properties

MAX_PIXELS = 200_000_000
MEMORY_MB = 1024
VALID = {
    "webp lossy": encode(gradient((64, 48)), "WEBP"),
    "webp lossy, alpha": encode(gradient((65, 33), "RGBA"), "WEBP"),
    "webp lossless": encode(gradient((16_383, 3)), "WEBP", lossless=True),
    "webp lossless, alpha": encode(gradient((3, 1000), "RGBA"), "WEBP", lossless=True),
    "webp moving": pictures.animated_webp(3, canvas=(640, 480)),
    "avif": encode(gradient((65, 33)), "AVIF"),
    "avif 4:4:4": encode(gradient((64, 48)), "AVIF", subsampling="4:4:4"),
    "avif grey": encode(gradient((64, 48), "L"), "AVIF"),
    "avif alpha": encode(gradient((64, 48), "RGBA"), "AVIF"),
    "avif moving": encode(gradient((64, 48)), "AVIF", save_all=True, append_images=[gradient((64, 48)).rotate(180)]),
    "heic": encode(gradient((65, 33)), "HEIF"),
    "heic grey": encode(gradient((64, 48), "L"), "HEIF"),
    "heic alpha": encode(gradient((130, 70), "RGBA"), "HEIF"),
    "heic 10 bits": encode(gradient((64, 48), "I;16"), "HEIF"),
    "heic of two": encode(gradient((64, 48)), "HEIF", save_all=True, append_images=[gradient((200, 100))]),
}


def read(content: bytes) -> tuple[Header, tuple[int, int]]:
    """Return the header and the size at which the picture is shown, without its EXIF."""
    if content[:4] == b"RIFF":
        header = read_webp(io.BytesIO(content))
        return header, (header.width, header.height)
    return read_heif(io.BytesIO(content))


@pytest.mark.parametrize("name", VALID)
def test_header_equals_that_of_the_library(name: str) -> None:
    """The format, the sizes, the mode and the depth are those that Pillow finds with the libraries."""
    header, shown = read(VALID[name])
    with Image.open(io.BytesIO(VALID[name])) as image:
        expected = header_of(image)
        assert shown == image.size
    assert header.format == expected.format
    # The mode of these two may differ: alpha in the header of a lossless WebP is a hint, and 10 bits of grey are grey.
    if "lossless" not in name and "10 bits" not in name:
        assert header.mode == expected.mode
    assert header.depth == expected.depth


@pytest.mark.fault("U7")
@pytest.mark.parametrize("format", ["AVIF", "HEIF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_the_one_a_viewer_shows(format: str, orientation: int) -> None:
    """The size includes rotation by properties of the file and excludes the padding of the last blocks.

    The orientation in a WebP is ignored, as browsers do.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    info = inspect(io.BytesIO(encode(gradient((100, 50)), format, exif=exif.tobytes())), MAX_PIXELS, MEMORY_MB)
    assert (info.width, info.height) == ((50, 100) if orientation > 4 and format != "WEBP" else (100, 50))


def test_all_forms_of_boxes_are_read() -> None:
    """The format allows sizes of 64 bits, a last box without a size, wide indices and other boxes in between."""
    properties = heif_properties((640, 480), box(b"irot", b"\1"), box(b"av1C", b"\x81\0\0\0"))
    wide = properties.replace(
        box(b"ipma", bytes(4) + struct.pack(">IHB", 1, 1, 3) + b"\1\2\3"),
        box(b"ipma", b"\1\0\0\1" + struct.pack(">IIB", 1, 70_000, 3) + b"\x80\1\x80\2\x80\3"),
    )
    wide = box(b"iprp", wide[8:])
    pitm = box(b"pitm", b"\1\0\0\0" + struct.pack(">I", 70_000))
    meta = b"\0\0\0\1meta" + struct.pack(">Q", 16 + 4 + len(pitm) + len(wide)) + bytes(4) + pitm + wide
    content = box(b"ftyp", b"mif1" + bytes(4)) + box(b"free", b"") + meta + b"\0\0\0\0mdat" + b"pixels"
    header, shown = read_heif(io.BytesIO(content))
    assert (header.format, header.width, header.height, shown) == ("AVIF", 640, 480, (480, 640))


HEIC = box(b"ftyp", b"heic" + bytes(4))
SIZE = box(b"ipco", box(b"ispe", bytes(4) + struct.pack(">II", 64, 48)))


def heic(properties: bytes) -> bytes:
    """Return a HEIC of one picture with these properties."""
    return HEIC + box(b"meta", bytes(4) + box(b"pitm", bytes(4) + b"\0\1") + properties)


def many_associations() -> bytes:
    """Return a HEIC with associations of properties for a million pictures."""
    associations = bytes(4) + struct.pack(">I", 10**6) + b"\0\2\1\1" * 10**6
    return heic(box(b"iprp", SIZE + box(b"ipma", associations)))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "webp of 100 megapixels in 38 bytes": (pictures.empty_webp, "Needs 1711 MB of memory"),
    "webp canvas of 268 megapixels": (lambda: pictures.animated_webp(1, (16_383, 16_383)), "Must have at most"),
    "webp canvas of 160 megapixels": (lambda: pictures.animated_webp(1, (16_000, 10_000)), "Needs "),
    "webp of 100,000 frames": (lambda: pictures.animated_webp(100_000), ""),
    "avif of 80,000 items": (lambda: pictures.many_items(b"avif", 80_000), ""),
    "heic of 80,000 items": (lambda: pictures.many_items(b"heic", 80_000), ""),
    "avif of 2.5 million samples": (lambda: pictures.many_samples(2_500_000), ""),
    "avif of 81 megapixels": (lambda: encode(Image.new("L", (9000, 9000)).convert("RGB"), "AVIF", speed=10), "Needs "),
    "heic of a million boxes": (lambda: HEIC + box(b"free", b"") * 10**6, "Must be an image"),
    "heic of a million properties": (
        lambda: heic(heif_properties((64, 48), box(b"free", b"") * 10**6)),
        "Must be an image",
    ),
    "heic of a million associations": (many_associations, "Must be an image"),
    "heic with an empty meta box, repeated": (lambda: HEIC + b"\0\0\0\x08meta" * 9, "Must be an image"),
    "gif of a screen of 200 megapixels": (lambda: pictures.wide_gif(20_000, 10_000), ""),
    "gif of a screen of 4 gigapixels": (lambda: pictures.wide_gif(65_535, 65_535), "Must have at most"),
    "gif of 50,000 frames": (lambda: pictures.long_gif(50_000), ""),
    "progressive jpeg of 3,000 scans": (pictures.endless_jpeg, "Must have at most 250 scans"),
}


@contextmanager
def cheap(seconds: float, megabytes: float) -> Iterator[None]:
    """Check that the block inside takes less processor time and memory than this."""
    before, started_at = _memory("VmRSS"), process_time()
    yield
    assert process_time() - started_at < seconds
    assert _memory("VmHWM") - before < megabytes


def _memory(kind: str) -> float:
    """Return the memory of this process in megabytes: now (VmRSS), or the most since the last call (VmHWM)."""
    if sys.platform != "linux":
        return 0.0
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if kind == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    return int(status[kind].split()[0]) / 1024


@pytest.mark.fault("E4")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_costs_little_time_and_memory(name: str) -> None:
    """A hostile header is accepted or refused within a second and with little memory of the service process."""
    make, refusal = HOSTILE[name]
    content = make()
    with warnings.catch_warnings(), cheap(1.0, 40):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        detail = _inspected(content)
    assert detail.startswith(refusal) and bool(detail) == bool(refusal)


def _inspected(content: bytes) -> str:
    """Return the message of the refusal, or "" for a file that is accepted."""
    try:
        inspect(io.BytesIO(content), MAX_PIXELS, MEMORY_MB)
    except ValidationError as error:
        return (error.details or [])[0]["message"]
    return ""


@pytest.mark.parametrize("name", VALID)
def test_damaged_header_is_measured_or_refused(name: str) -> None:
    """A file that is cut or changed at any place raises no other error than a refusal."""
    good, source = VALID[name], random.Random(name)
    cut = [good[:length] for length in range(0, len(good), max(1, len(good) // 100))]
    # At the end of a box a file does not show that another box should follow.
    assert sum(_inspected(content) == "" for content in cut) <= 2
    for _ in range(500):
        copy = bytearray(good)
        for _ in range(source.randint(1, 6)):
            copy[source.randrange(min(len(copy), 600))] = source.randrange(256)
        _inspected(bytes(copy))


def test_other_formats_are_refused() -> None:
    """A file that begins as WebP or HEIC do, and is another format, is refused."""
    for content in (b"RIFF" + bytes(4) + b"WAVE" + bytes(30), box(b"ftyp", b"isom" + bytes(30)), make_image("TIFF")):
        assert _inspected(content).startswith("Must be an image")
