"""The decoding service of the sandbox: the computed cost of a photo is enough, and no photo harms the next one."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import ExifTags, Image

from pipeline.errors import PermanentJobError, SandboxLimit
from pipeline.sandbox import photo
from pipeline.sandbox.cost import decode_mb
from pipeline.sandbox.header import header_of
from pipeline.sandbox.pool import Pool
from pipeline.sandbox.sandbox import Sandbox
from tests.pictures import animated_webp, empty_webp, encode, endless_jpeg, gradient, many_items, png, wide_gif

LARGE = (4800, 3600)
COSTLY: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(gradient(LARGE), "JPEG"),
    "jpeg progressive": lambda: encode(gradient(LARGE), "JPEG", progressive=True, subsampling=0),
    "jpeg progressive cmyk": lambda: encode(gradient(LARGE, "CMYK"), "JPEG", progressive=True),
    "jpeg grey": lambda: encode(gradient(LARGE, "L"), "JPEG", progressive=True),
    "png rgb": lambda: encode(gradient(LARGE), "PNG", compress_level=1),
    "png rgba": lambda: encode(gradient(LARGE, "RGBA"), "PNG", compress_level=1),
    "png grey": lambda: encode(gradient(LARGE, "L"), "PNG", compress_level=1),
    "png grey alpha": lambda: encode(gradient(LARGE, "LA"), "PNG", compress_level=1),
    "png palette": lambda: encode(gradient(LARGE, "P"), "PNG", compress_level=1),
    "png 1 bit": lambda: encode(gradient(LARGE, "1"), "PNG", compress_level=1),
    "png interlaced": lambda: png(*LARGE, interlaced=True),
    "png 16 bits": lambda: png(*LARGE, depth=16),
    "png 16 bits grey": lambda: png(*LARGE, depth=16, color=0),
    "png 16 bits alpha interlaced": lambda: png(*LARGE, depth=16, color=6, interlaced=True),
    "gif": lambda: encode(gradient(LARGE, "P"), "GIF"),
    "gif screen": lambda: wide_gif(*LARGE),
    "webp": lambda: encode(gradient(LARGE), "WEBP", method=0),
    "webp lossless": lambda: encode(gradient(LARGE), "WEBP", lossless=True, method=0, quality=0),
    "webp lossless alpha": lambda: encode(gradient(LARGE, "RGBA"), "WEBP", lossless=True, method=0, quality=0),
    "webp animated": lambda: animated_webp(20, canvas=LARGE),
    "avif": lambda: encode(gradient(LARGE), "AVIF", speed=10),
    "avif 4:4:4 alpha": lambda: encode(gradient(LARGE, "RGBA"), "AVIF", speed=10, subsampling="4:4:4"),
    "avif grey": lambda: encode(gradient(LARGE, "L"), "AVIF", speed=10),
    "heic": lambda: encode(gradient(LARGE), "HEIF", quality=30),
    "heic 4:4:4 alpha": lambda: encode(gradient(LARGE, "RGBA"), "HEIF", quality=30, chroma=444),
    "heic 10 bits grey": lambda: encode(gradient(LARGE, "I;16"), "HEIF", quality=30),
}


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.gen_test(timeout=60)
async def test_photo_is_decoded_within_its_computed_memory(name: str) -> None:
    """A child that may use no more memory than decode_mb computes can decode each kind of photo."""
    content = COSTLY[name]()
    with Image.open(io.BytesIO(content)) as image:
        header = header_of(image)
    cost_mb = decode_mb(header, has_scans=header.is_progressive)
    pool = Pool("tested", memory_mb=cost_mb)
    try:
        width, height, rgb = await pool.run(photo.reduce, content, 1600, 200_000_000, 1024, seconds=40)
    finally:
        await pool.close()
    assert (width, height, len(rgb)) == (1600, 1200, 1600 * 1200 * 3)


@pytest.mark.gen_test
async def test_sandbox_reduces_photos(sandbox: Sandbox) -> None:
    """A photo is reduced to pixels or to a JPEG, upright and of the requested size."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(gradient((1000, 500)), "JPEG", exif=exif)
    picture = await sandbox.reduce(content, 400)
    assert (picture.width, picture.height) == (200, 400)
    with Image.open(io.BytesIO(await sandbox.reduce_to_jpeg(content, 300, quality=50))) as image:
        assert (image.format, image.size, dict(image.getexif())) == ("JPEG", (150, 300), {})


@pytest.mark.fault("E4")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (empty_webp(), "^The photo cannot be read: needs 1711 MB of memory"),
        (endless_jpeg(), "^The photo cannot be read: must have at most 250 scans"),
        (b"no photo", "^The photo cannot be read: the file is damaged"),
    ],
    ids=["webp", "jpeg", "none"],
)
@pytest.mark.gen_test
async def test_sandbox_refuses_a_photo_that_costs_too_much(sandbox: Sandbox, content: bytes, message: str) -> None:
    """The limits of an upload are also checked for photos that came to the storage in another way."""
    with pytest.raises(PermanentJobError, match=message):
        await sandbox.reduce(content)


@pytest.mark.gen_test(timeout=60)
async def test_sandbox_works_after_photos_that_reach_a_limit() -> None:
    """After photos that reach the limit of time or of memory, thirty good photos are decoded, one after the other.

    libavif compares each item with each other item, so many items take much time.
    """
    sandbox = Sandbox()
    good = encode(gradient((800, 600)), "JPEG")
    for content, seconds in ((many_items(b"avif", 60_000), 1), (empty_webp(12_000, 12_000), 20)):
        with pytest.raises(SandboxLimit):
            await sandbox.run(photo.reduce, content, 1600, 10**9, 10**6, seconds=seconds)
    for _ in range(30):
        assert (await sandbox.reduce(good)).width == 800
    await sandbox.close()
