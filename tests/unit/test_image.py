"""The bytes of a file determine its image type, and hostile bytes do no harm."""

from __future__ import annotations

import io
import random
import struct
import zlib

import pytest
from PIL import ExifTags, Image

from pipeline.assets.image import ImageInfo, inspect
from pipeline.errors import ValidationError
from tests.factories import make_image

MAX_PIXELS = 200_000_000
MEMORY_MB = 1024
ACCEPTED = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
NO_IMAGE = "Must be an image: JPEG, PNG, WebP, GIF, AVIF or HEIC"


def fault(content: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Return the detail of the refusal; the test fails if the content is accepted."""
    with pytest.raises(ValidationError, match="^Invalid image$") as caught:
        inspect(io.BytesIO(content), max_pixels, MEMORY_MB)
    ((detail),) = caught.value.details or []
    assert detail["field"] == "image"
    return detail["message"]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with this size and these chunks, without a picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", b"these are no pixels"), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


@pytest.mark.parametrize(("format", "content_type"), ACCEPTED.items())
def test_inspect_returns_type_and_size(format: str, content_type: str) -> None:
    """Each accepted format is recognised by its bytes, and the file position is at the start afterwards."""
    content = make_image(format, (64, 48))
    file = io.BytesIO(content)
    file.seek(7)

    assert inspect(file, MAX_PIXELS, MEMORY_MB) == ImageInfo(len(content), 64, 48, content_type)
    assert (file.tell(), file.closed) == (0, False)


def test_inspect_accepts_animations() -> None:
    """An animation of each format is accepted as an image."""
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        assert inspect(buffer, MAX_PIXELS, MEMORY_MB).width == 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        make_image("TIFF"),
        make_image("BMP"),
        make_image("ICO"),
        make_image("PPM"),
        png(0, 9),
    ],
    ids=["empty", "text", "svg", "pdf", "eps", "tiff", "bmp", "ico", "ppm", "no width"],
)
def test_inspect_refuses_other_formats(content: bytes) -> None:
    """All other formats are refused, also those that Pillow could read."""
    assert fault(content) == NO_IMAGE


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ACCEPTED)
@pytest.mark.parametrize("divisor", [1, 10], ids=["just over", "far over"])
def test_inspect_pixel_limit_is_exact(format: str, divisor: int) -> None:
    """The allowed number of pixels is accepted, one more is refused, and the refusal names the limit."""
    content = make_image(format, (64, 64))
    limit = (64 * 64 - 1) // divisor
    assert inspect(io.BytesIO(content), 64 * 64, MEMORY_MB).height == 64
    assert fault(content, limit) == f"Must have at most {limit} pixels"


def test_inspect_reads_no_pixels() -> None:
    """inspect reads only the header: it measures a picture with invalid pixels, of any decoded size."""
    assert inspect(io.BytesIO(png(10_000, 10_000)), MAX_PIXELS, MEMORY_MB).height == 10_000
    assert fault(png(2**31 - 1, 2**31 - 1)) == f"Must have at most {MAX_PIXELS} pixels"


def test_inspect_refuses_a_decompression_bomb_in_metadata() -> None:
    """A text that would decompress to 100 MB is refused and not decompressed."""
    bomb = zlib.compress(bytes(100_000_000), 9)
    assert fault(png(8, 8, (b"zTXt", b"Comment\0\0" + bomb))) == NO_IMAGE


def shredded(format: str, position: int, piece: bytes) -> bytes:
    """Return a valid image with 5 MB of tiny metadata pieces inserted at this position."""
    good = make_image(format)
    return good[:position] + piece * (5_000_000 // len(piece)) + good[position:]


@pytest.mark.parametrize(
    "content",
    [
        shredded("JPEG", 2, b"\xff\xe5\0\x02"),
        shredded("JPEG", 2, b"\xff\xe1\0\x10Exif\0\0MM\0*\0\0\0\x08"),
        shredded("JPEG", 2, b"\xff"),
        shredded("PNG", 33, b"\0\0\0\0abCd" + struct.pack(">I", zlib.crc32(b"abCd"))),
        shredded("GIF", 13 + 3 * 256, b"!\xfe\x01a\0"),
    ],
    ids=["jpeg segments", "jpeg exif", "jpeg filling", "png chunks", "gif comments"],
)
def test_inspect_refuses_shredded_metadata(content: bytes) -> None:
    """A file of a million tiny pieces, which would take a parser a minute, is refused early."""
    assert fault(content) == NO_IMAGE


@pytest.mark.parametrize("format", ["JPEG", "MPO", "PNG", "AVIF", "HEIF"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_inspect_returns_the_displayed_size(format: str, orientation: int, size: tuple[int, int]) -> None:
    """Width and height are those of the displayed photo: EXIF may turn the stored photo."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(make_image("PNG", (64, 48))))
    more = {"save_all": True, "append_images": [picture]} if format == "MPO" else {}
    picture.save(buffer, format, exif=exif.tobytes(), **more)

    info = inspect(buffer, MAX_PIXELS, MEMORY_MB)

    assert (info.width, info.height) == size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_inspect_accepts_broken_exif() -> None:
    """A valid photo with unreadable EXIF is accepted with its stored size."""
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "JPEG", exif=exif)
    assert inspect(buffer, MAX_PIXELS, MEMORY_MB).width == 64


@pytest.mark.parametrize("format", ACCEPTED)
def test_inspect_measures_or_refuses_damaged_bytes(format: str) -> None:
    """A file with a cut or flipped bits is measured or refused; inspect raises no other error."""
    good = make_image(format)
    source = random.Random(format)
    damaged = [good[:length] for length in range(0, len(good), max(1, len(good) // 100))]
    for _ in range(300):
        copy = bytearray(good)
        for _ in range(source.randint(1, 8)):
            # Mostly in the first bytes, because the headers are there.
            copy[source.randrange(min(len(copy), source.choice((64, 512, len(copy)))))] ^= 1 << source.randrange(8)
        damaged.append(bytes(copy))

    refused = 0
    for content in damaged:
        try:
            assert inspect(io.BytesIO(content), MAX_PIXELS, MEMORY_MB).bytes == len(content)
        except ValidationError:
            refused += 1

    assert 0 < refused < len(damaged)
