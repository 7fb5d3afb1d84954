"""Metadata that cameras write into photos: the service removes it, so no user and no AI service receives it."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageOps

from pipeline.assets.hygiene import clean
from pipeline.errors import DependencyUnavailable, ValidationError
from pipeline.handlers.intake import UNKNOWN_PARTS
from pipeline.handlers.intake import QUICK_READS, Intake, TooSlowForLoop
from tests.chromium import BROWSER, browsing
from tests.factories import make_image, make_noise_image
from tests.requirements import require
from tests.private_pictures import COLORS, PRIVATE, SECRET, chunk, corners, segment, with_chunks, with_segments
from tests.service import AiService, Service
from tests.turned_pictures import TURNED, type_of

LARGE = make_noise_image(400_000)
SMALL = make_image("PNG")


@pytest.mark.fault("U1")
def test_metadata_of_the_camera_is_in_no_served_file(tmp_path: Path, ai_service: AiService) -> None:
    """Neither the served file nor the file for the AI service has private metadata, in every format.

    The asset has the size and the sides of the stored file.
    """
    with Service(tmp_path, ai_service.url) as service:
        for number, (name, (content, content_type)) in enumerate(PRIVATE.items(), 1):
            receipt = service.upload(image=content).json()
            assert receipt["success"], (name, receipt)
            service.wait_log("asset_finished", count=number)
            original = service.asset(receipt["data"]["assetId"])["images"]["original"]
            for_ai_service = ai_service.state()["requests"][-1]["body"]["imageUrl"]
            for url in {original["url"], for_ai_service}:
                served = httpx.get(url)
                assert served.status_code == 200 and served.headers["Content-Type"] == content_type
                assert SECRET not in served.content and SECRET in content
                assert original["bytes"] == len(served.content) and original["contentType"] == content_type
                with Image.open(io.BytesIO(served.content)) as image:
                    assert ImageOps.exif_transpose(image).size == (original["width"], original["height"])
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or path.is_socket() or SECRET not in path.read_bytes(), path


@pytest.mark.fault("U1")
def test_repeated_upload_is_recognised_by_the_bytes_that_were_sent(tmp_path: Path, ai_service: AiService) -> None:
    """With one Idempotency-Key, two files that differ in their metadata only are two uploads."""
    photo = make_image()
    first, second = (with_segments(photo, segment(0xFE, text)) for text in (b"mine", b"yours"))
    with Service(tmp_path, ai_service.url) as service:
        key = {"Idempotency-Key": "k"}
        receipts = [service.upload(image=content, headers=key) for content in (first, first, second)]
    assert [receipt.status_code for receipt in receipts] == [202, 202, 422]
    assert receipts[0].json()["data"]["assetId"] == receipts[1].json()["data"]["assetId"]


@pytest.mark.fault("U1")
def test_setting_lets_metadata_stay(tmp_path: Path, ai_service: AiService) -> None:
    """KEEP_METADATA=true stores what was sent."""
    content, _ = PRIVATE["jpeg"]
    with Service(tmp_path, ai_service.url, KEEP_METADATA="true") as service:
        asset = service.asset(service.upload(image=content).json()["data"]["assetId"])
        assert httpx.get(asset["images"]["original"]["url"]).content == content


def test_file_that_cannot_be_cleaned_is_refused(tmp_path: Path, ai_service: AiService) -> None:
    """A picture with parts that the service does not know is refused, and the message says why."""
    with Service(tmp_path, ai_service.url) as service:
        reply = service.upload(image=with_chunks(make_image("PNG"), [], [chunk(b"SEcR", b"")]))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["details"] == [{"field": "image", "message": UNKNOWN_PARTS}]


def intake(folder: Path, **changes: Any) -> Intake:
    """Return the check of uploaded images."""
    return Intake(**{"max_pixels": 10**7, "decode_memory_mb": 100, "keeps_metadata": False, "folder": folder} | changes)


def test_clean_image_is_not_copied(tmp_path: Path) -> None:
    """A file without metadata is stored as it was sent."""
    sent = io.BytesIO(make_image())
    assert intake(tmp_path).accept(sent)[0] is sent


@pytest.mark.parametrize(
    "image", [make_image(), with_chunks(SMALL, [chunk(b"tEXt", b"Author\0me")])], ids=["clean", "not clean"]
)
def test_small_image_gives_the_same_result_on_the_loop_as_in_a_thread(tmp_path: Path, image: bytes) -> None:
    """Both ways give the same file, facts and hash."""
    sent, same = io.BytesIO(image), io.BytesIO(image)
    in_thread, on_loop = intake(tmp_path).accept(sent), intake(tmp_path).accept_quickly(same)
    assert on_loop[1:] == in_thread[1:] and on_loop[0].read() == in_thread[0].read()
    assert (on_loop[0] is same) == (in_thread[0] is sent)
    assert type(on_loop[0]) is io.BytesIO


@pytest.mark.parametrize("keeps_metadata", [False, True])
def test_image_of_very_many_parts_is_left_to_a_thread(tmp_path: Path, keeps_metadata: bool) -> None:
    """The image would block the event loop; a thread accepts it like any other image."""
    image = with_segments(make_image(), *[segment(0xFE, b"")] * (2 * QUICK_READS))
    border = intake(tmp_path, keeps_metadata=keeps_metadata)
    with pytest.raises(TooSlowForLoop):
        border.accept_quickly(io.BytesIO(image))
    assert border.accept(io.BytesIO(image))[1].content_type == "image/jpeg"


def test_large_clean_copy_has_no_name(tmp_path: Path) -> None:
    """The file ends with the process, and a storage on the same filesystem can give it a name."""
    with open(tmp_path / "sent", "w+b") as sent:
        sent.write(with_chunks(LARGE, [chunk(b"tEXt", b"Author\0me")]))
        stored, image, _ = intake(tmp_path).accept(sent)
        with stored:
            assert stored.read() == LARGE
            assert os.fstat(stored.fileno()).st_nlink == 0
            assert (image.bytes, os.listdir(tmp_path)) == (len(LARGE), ["sent"])
            assert sent.tell() == 0


def test_full_disk_is_a_temporary_failure(tmp_path: Path) -> None:
    """Without room for the clean copy the service reports its own failure, not a fault of the client."""
    with open(tmp_path / "sent", "w+b") as sent:
        sent.write(with_chunks(LARGE, [chunk(b"tEXt", b"Author\0me")]))
        with pytest.raises(DependencyUnavailable):
            intake(tmp_path / "missing").accept(sent)


def test_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    """The image is checked before its metadata is removed."""
    with pytest.raises(ValidationError, match="Invalid image"):
        intake(tmp_path).accept(io.BytesIO(b"no image"))


SHOWN = """(async (urls) => {
  const shown = [];
  for (const url of urls) {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const corners = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]].map(([x, y]) =>
      [...context.getImageData(canvas.width * x, canvas.height * y, 1, 1).data].map(value => value > 127));
    shown.push([canvas.width, canvas.height, JSON.stringify(corners)]);
  }
  return shown;
})"""


@pytest.mark.fault("U7")
@pytest.mark.gen_test(timeout=60)
async def test_browser_shows_the_copy_as_the_original() -> None:
    """A real browser rotates the cleaned file like the file that was sent, and as its orientation says."""
    require(BROWSER is not None, "needs Chromium")
    expected, urls = [], []
    for content, orientation in TURNED.values():
        target = io.BytesIO()
        is_changed = clean(io.BytesIO(content), target, type_of(content))
        for each in (content, target.getvalue() if is_changed else content):
            urls.append(f"data:{type_of(content)};base64,{base64.b64encode(each).decode()}")
        expected += [_as_shown(orientation)] * 2
    async with browsing("about:blank") as page:
        shown = await page.evaluate(f"{SHOWN}({json.dumps(urls)})")
    assert dict(zip([f"{name} {which}" for name in TURNED for which in ("sent", "clean")], shown)) == dict(
        zip([f"{name} {which}" for name in TURNED for which in ("sent", "clean")], expected)
    )


def _as_shown(orientation: int) -> list[Any]:
    """Return what the script reports for the picture of four corners in this orientation."""
    assert COLORS == ("red", "lime", "blue", "white")
    image = corners()
    image.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(image).convert("RGBA")
    places = [(turned.width * x // 4, turned.height * y // 4) for y in (1, 3) for x in (1, 3)]
    pixels = [[value > 127 for value in turned.getpixel(place)] for place in places]  # type: ignore[union-attr]
    return [*turned.size, json.dumps(pixels, separators=(",", ":"))]
