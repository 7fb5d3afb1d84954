"""Photos of all formats, depths and sizes, complete or cut off: how they are decoded, and their previews."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms

from pipeline.assets.image import inspect
from pipeline.errors import PermanentJobError, RetryableJobError, ValidationError
from pipeline.metrics import Metrics
from pipeline.sandbox import photo
from pipeline.sandbox.sandbox import Sandbox
from pipeline.usecases.previews import Previews
from tests import sandboxed
from tests.factories import make_asset, make_image, make_noise_image
from tests.integration.pictures import encoded, pixels, smooth
from tests.integration.running_service import read
from tests.memory_storage import MemoryStorage
from tests.service import AiService, Service

LIMITS = (200_000_000, 1024)


def is_accepted(content: bytes) -> bool:
    """Tell whether the check of uploads accepts the file."""
    try:
        inspect(io.BytesIO(content), *LIMITS)
    except ValidationError:
        return False
    return True


@pytest.mark.fault("U4")
@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {"interlace": 0})],
    ids=["jpeg", "jpeg in scans", "png", "gif"],
)
def test_picture_that_was_cut_off_is_shown_up_to_its_end(format: str, options: dict[str, Any]) -> None:
    """A picture without its last bytes, or with a third of its bytes, begins like the complete picture."""
    content = encoded(smooth(), format, **options)
    complete = pixels(photo.previews(content, [320], *LIMITS)[0][3])
    for size in (len(content) - 2, len(content) * 99 // 100, len(content) * 3 // 10):
        assert is_accepted(content[:size])
        (made,) = photo.previews(content[:size], [320], *LIMITS)
        part = pixels(made[3])
        assert made[1:3] == [320, 240]
        # A progressive picture is complete but coarse.
        assert np.abs(part[:20] - complete[:20]).mean() < 40


@pytest.mark.fault("U4")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "HEIF"])
def test_file_without_enough_of_its_picture_is_refused(format: str) -> None:
    """Sixty bytes contain no picture. A part of a WebP, AVIF or HEIC file cannot be decoded."""
    content = encoded(smooth(), format)
    assert is_accepted(content)
    with pytest.raises(ValidationError) as caught:
        inspect(io.BytesIO(content[:60]), *LIMITS)
    (detail,) = caught.value.details or ()
    assert detail["message"].startswith(("Must be a whole", "Must be an image"))
    if format in ("WEBP", "AVIF", "HEIF"):
        with pytest.raises(ValidationError, match="Invalid image") as caught:
            inspect(io.BytesIO(content[: len(content) * 3 // 10]), *LIMITS)
        assert caught.value.details == [
            {"field": "image", "message": "Must be a whole image: the file is shorter than it says"}
        ]


@pytest.mark.fault("U4")
@pytest.mark.gen_test(timeout=60)
async def test_service_accepts_nearly_complete_photos_only(tmp_path: Path, ai_service: AiService) -> None:
    """Over HTTP a photo without its last per cent becomes active, and sixty bytes of a PNG are a 400."""
    with Service(tmp_path, ai_service.url, PREVIEW_PROCESSES="1") as service:
        content = encoded(smooth(), "JPEG")
        response = await asyncio.to_thread(service.upload, "user-1", image=content[: len(content) * 99 // 100])
        asset_id = response.json()["data"]["assetId"]
        asset = read(service, asset_id)
        assert asset["status"] == "active" and asset["images"]["previews"]["320"]["width"] == 320
        refused = await asyncio.to_thread(service.upload, "user-1", image=encoded(smooth(), "PNG")[:60])
        assert refused.status_code == 400


def grey_heic(bits: int) -> bytes:
    """Return a HEIC file from black to white with this bit depth."""
    values = np.linspace(0, 65_535, 320)[None, :].repeat(240, 0).astype(np.uint16)
    file = io.BytesIO()
    picture = pillow_heif.from_bytes(mode="I;16", size=(320, 240), data=values.tobytes())
    picture.save(file, quality=-1, bit_depth=bits)
    return file.getvalue()


def deep_grey() -> Image.Image:
    """Return a picture from black to white with 16 bits per pixel."""
    return Image.fromarray(np.linspace(0, 65_535, 320)[None, :].repeat(240, 0).astype(np.uint16))


DEEP: dict[str, Callable[[], bytes]] = {
    "png of 16 bits": lambda: encoded(deep_grey(), "PNG"),
    "heic of 10 bits": lambda: grey_heic(10),
    "heic of 12 bits": lambda: grey_heic(12),
}


@pytest.mark.fault("U5")
@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_is_scaled_and_not_clipped(name: str) -> None:
    """The preview has even steps from black to white."""
    (made,) = photo.previews(DEEP[name](), [320], *LIMITS)
    row = pixels(made[3])[120, :, 0]
    assert np.abs(row - np.linspace(0, 255, 320)).max() < 8


@pytest.mark.fault("U6")
def test_photo_of_108_megapixels_is_accepted() -> None:
    """A JPEG and a PNG of this size can be decoded within the limits."""
    size = (12_000, 9_000)
    for content in (encoded(Image.new("RGB", size, "red"), "JPEG"), encoded(Image.new("L", size), "PNG")):
        assert inspect(io.BytesIO(content), *LIMITS).width == 12_000
        made = photo.previews(content, [320, 1280], *LIMITS)
        assert [each[:3] for each in made] == [[1280, 1280, 960], [320, 320, 240]]


@pytest.mark.fault("U7")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_preview_has_the_orientation_of_the_upload_check(format: str, orientation: int) -> None:
    """The sides and the pixels are right for each orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(smooth((320, 160)), format, exif=exif.tobytes(), **({} if format == "PNG" else {"quality": 95}))
    info = inspect(io.BytesIO(content), *LIMITS)
    (made,) = photo.previews(content, [320], *LIMITS)
    assert made[1:3] == [info.width, info.height] == ([160, 320] if orientation > 4 else [320, 160])
    transposes = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    transposes |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    expected = smooth((320, 160))
    if orientation > 1:
        expected = expected.transpose(Image.Transpose[transposes[orientation]])
    assert np.abs(pixels(made[3]) - np.asarray(expected).astype(int)).mean() < 12


@pytest.mark.fault("U7")
def test_orientation_that_browsers_ignore_is_ignored() -> None:
    """Browsers ignore it after the pixels of a PNG, in a WebP, and in XMP alone."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    png = encoded(smooth((64, 32)), "PNG", exif=exif.tobytes())
    at = png.index(b"eXIf") - 4
    chunk = png[at : at + 12 + int.from_bytes(png[at : at + 4])]
    exif_last = png.replace(chunk, b"")
    exif_last = exif_last[:-12] + chunk + exif_last[-12:]
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    for content in (
        exif_last,
        encoded(smooth((64, 32)), "WEBP", exif=exif.tobytes()),
        encoded(smooth((64, 32)), "JPEG", xmp=xmp),
    ):
        info = inspect(io.BytesIO(content), *LIMITS)
        (made,) = photo.previews(content, [320], *LIMITS)
        assert (info.width, info.height) == (64, 32) == (made[1], made[2])


def test_previews_are_small_clean_and_in_srgb() -> None:
    """A preview is no larger than its side and the photo, has no metadata, and keeps transparency and colours."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a maker"
    content = encoded(smooth((500, 300)), "JPEG", exif=exif.tobytes(), icc_profile=profile.tobytes())
    made = photo.previews(content, [320, 1280], *LIMITS)
    assert [each[:3] for each in made] == [[1280, 500, 300], [320, 320, 192]]
    for _, _, _, webp in made:
        assert webp[8:12] == b"WEBP" and not any(name in webp for name in (b"EXIF", b"ICCP", b"XMP ", b"a maker"))
    transparent = Image.new("RGBA", (64, 64), (255, 0, 0, 128))
    (preview,) = photo.previews(encoded(transparent, "PNG"), [320], *LIMITS)
    with Image.open(io.BytesIO(preview[3])) as image:
        assert image.mode == "RGBA" and abs(image.getpixel((32, 32))[3] - 128) < 4  # type: ignore[index]


LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.mark.parametrize("profile", [b"no profile at all", LAB], ids=["no profile", "Lab"])
def test_invalid_colour_profile_is_ignored(profile: bytes) -> None:
    """The preview has the colours of the file without a profile."""
    content = encoded(smooth((64, 48)), "PNG", icc_profile=profile)
    (made,) = photo.previews(content, [320], *LIMITS)
    assert np.abs(pixels(made[3]) - np.asarray(smooth((64, 48))).astype(int)).mean() < 12


WEBP = make_image("WEBP")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "reply",
    [
        *(None, 7, "text", b"bytes", {"a": 1}, [], [None], [7], [[]], [[320, 320, 240]], [[320, 320, 240, "text"]]),
        *([[320, 320, 240, WEBP, 1]], [["320", 320, 240, WEBP]], [[320, 320.5, 240, WEBP]], [[320, -1, 240, WEBP]]),
        *([[320, 320, 9999, WEBP]], [[1280, 320, 240, WEBP]], [[320, 320, 240, b"<svg/>"]]),
        *([[320, 320, 240, WEBP]] * 2, [[320, 320, 240, WEBP + bytes(4 * 320 * 320)]]),
    ],
)
async def test_invalid_reply_of_the_child_is_an_error(reply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malicious photo may control the child process. Any reply of the child costs the preview of that photo only."""
    sandbox = Sandbox()

    async def run(*args: Any, **limits: Any) -> Any:
        return reply

    for pool in (sandbox._previews, sandbox._light):
        monkeypatch.setattr(pool, "run", run)
    for call in (sandbox.previews(b"", [320]), sandbox.reduce(b"", 320), sandbox.reduce_to_jpeg(b"")):
        with pytest.raises(RetryableJobError):
            await call


@pytest.mark.gen_test(timeout=60)
async def test_child_that_crashes_costs_only_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    """The photo has no previews, and the next photo has them."""
    sandbox, storage, asset = Sandbox(), MemoryStorage(), make_asset()
    previews = Previews(storage, sandbox, Metrics(), wait_seconds=30)

    async def read() -> bytes:
        return WEBP

    try:
        with monkeypatch.context() as broken:
            broken.setattr(photo, "previews", sandboxed.crash)
            previews.begin(asset, read)
            assert await previews.take(asset) is None
        previews.begin(asset, read)
        assert set(await previews.take(asset) or ()) == {"320", "1280"}
    finally:
        await sandbox.close()


@pytest.mark.gen_test(timeout=60)
async def test_previews_are_made_in_a_child_with_low_priority() -> None:
    """The nice value of the child is higher than that of the service. The child refuses a file that is no picture."""
    sandbox = Sandbox()
    try:
        made = await sandbox.previews(make_noise_image(300_000), (320, 1280))
        assert [each.side for each in made] == [1280, 320]
        (child,) = sandbox._previews._children
        assert os.getpriority(os.PRIO_PROCESS, child.pid) > os.getpriority(os.PRIO_PROCESS, 0)
        with pytest.raises(PermanentJobError):
            await sandbox.previews(b"no picture", (320,))
    finally:
        await sandbox.close()


@pytest.mark.gen_test(timeout=60)
async def test_heic_is_shown_by_its_previews_also_when_the_ai_fails(tmp_path: Path, ai_service: AiService) -> None:
    """A browser cannot show HEIC: the asset has previews, also when its analysis fails."""
    with Service(tmp_path, ai_service.url, PREVIEW_PROCESSES="1") as service:
        ai_service.configure(replies=[{"status": 422}])
        response = await asyncio.to_thread(service.upload, "user-1", image=make_image("HEIF", (640, 480)))
        asset_id = response.json()["data"]["assetId"]
        asset = read(service, asset_id)
        assert asset["status"] == "failed"
        got = httpx.get(asset["images"]["previews"]["320"]["url"])
        assert (got.status_code, got.headers["Content-Type"]) == (200, "image/webp")
        assert pixels(got.content).shape == (240, 320, 3)
