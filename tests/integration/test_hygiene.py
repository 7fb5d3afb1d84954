"""Photos from the upload to those who see them: what cameras wrote beside the picture reaches nobody."""

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
from pipeline.handlers import intake
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
def test_nobody_gets_what_the_camera_wrote(tmp_path: Path, ai_service: AiService) -> None:
    """Everything private in every format: neither the served file nor the one the AI service is told of holds it.

    The asset tells size and sides of what is stored.
    """
    with Service(tmp_path, ai_service.url) as service:
        for number, (name, (content, content_type)) in enumerate(PRIVATE.items(), 1):
            receipt = service.upload(image=content).json()
            assert receipt["success"], (name, receipt)
            service.wait_log("asset_finished", count=number)
            original = service.asset(receipt["data"]["assetId"])["images"]["original"]
            told = ai_service.state()["requests"][-1]["body"]["imageUrl"]
            for url in {original["url"], told}:
                served = httpx.get(url)
                assert served.status_code == 200 and served.headers["Content-Type"] == content_type
                assert SECRET not in served.content and SECRET in content
                assert original["bytes"] == len(served.content) and original["contentType"] == content_type
                with Image.open(io.BytesIO(served.content)) as image:
                    assert ImageOps.exif_transpose(image).size == (original["width"], original["height"])
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or path.is_socket() or SECRET not in path.read_bytes(), path


@pytest.mark.fault("U1")
def test_the_same_upload_is_known_by_what_was_sent(tmp_path: Path, ai_service: AiService) -> None:
    """With one Idempotency-Key, two files that differ in their metadata only are two uploads."""
    photo = make_image()
    first, second = (with_segments(photo, segment(0xFE, text)) for text in (b"mine", b"yours"))
    with Service(tmp_path, ai_service.url) as service:
        key = {"Idempotency-Key": "k"}
        receipts = [service.upload(image=content, headers=key) for content in (first, first, second)]
    assert [receipt.status_code for receipt in receipts] == [202, 202, 422]
    assert receipts[0].json()["data"]["assetId"] == receipts[1].json()["data"]["assetId"]


@pytest.mark.fault("U1")
def test_metadata_may_be_kept(tmp_path: Path, ai_service: AiService) -> None:
    """KEEP_METADATA=true stores what was sent."""
    content, _ = PRIVATE["jpeg"]
    with Service(tmp_path, ai_service.url, KEEP_METADATA="true") as service:
        asset = service.asset(service.upload(image=content).json()["data"]["assetId"])
        assert httpx.get(asset["images"]["original"]["url"]).content == content


def test_file_that_cannot_be_cleaned_is_refused(tmp_path: Path, ai_service: AiService) -> None:
    """A picture that viewers show, with parts that nobody can follow, is refused, and the message says why."""
    with Service(tmp_path, ai_service.url) as service:
        reply = service.upload(image=with_chunks(make_image("PNG"), [], [chunk(b"SEcR", b"")]))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["details"] == [{"field": "image", "message": intake.UNKNOWN_PARTS}]


def taking(folder: Path, **changes: Any) -> Intake:
    """Return the border's check."""
    return Intake(**{"max_pixels": 10**7, "decode_memory_mb": 100, "keeps_metadata": False, "folder": folder} | changes)


def test_clean_image_is_not_copied(tmp_path: Path) -> None:
    """What has no metadata is stored as it came."""
    sent = io.BytesIO(make_image())
    assert taking(tmp_path).accept(sent)[0] is sent


@pytest.mark.parametrize(
    "image", [make_image(), with_chunks(SMALL, [chunk(b"tEXt", b"Author\0me")])], ids=["clean", "not clean"]
)
def test_small_image_is_taken_quickly_as_by_a_thread(tmp_path: Path, image: bytes) -> None:
    """The same file, facts and hash."""
    sent, same = io.BytesIO(image), io.BytesIO(image)
    slowly, quickly = taking(tmp_path).accept(sent), taking(tmp_path).accept_quickly(same)
    assert quickly[1:] == slowly[1:] and quickly[0].read() == slowly[0].read()
    assert (quickly[0] is same) == (slowly[0] is sent)
    assert type(quickly[0]) is io.BytesIO


@pytest.mark.parametrize("keeps_metadata", [False, True])
def test_image_of_very_many_parts_is_left_to_a_thread(tmp_path: Path, keeps_metadata: bool) -> None:
    """It would keep the event loop; for a thread it is an image as any other."""
    image = with_segments(make_image(), *[segment(0xFE, b"")] * (2 * QUICK_READS))
    border = taking(tmp_path, keeps_metadata=keeps_metadata)
    with pytest.raises(TooSlowForLoop):
        border.accept_quickly(io.BytesIO(image))
    assert border.accept(io.BytesIO(image))[1].content_type == "image/jpeg"


def test_large_clean_copy_has_no_name(tmp_path: Path) -> None:
    """It goes with the process, and a storage on the same filesystem can give it a name."""
    with open(tmp_path / "sent", "w+b") as sent:
        sent.write(with_chunks(LARGE, [chunk(b"tEXt", b"Author\0me")]))
        stored, image, _ = taking(tmp_path).accept(sent)
        with stored:
            assert stored.read() == LARGE
            assert os.fstat(stored.fileno()).st_nlink == 0
            assert (image.bytes, os.listdir(tmp_path)) == (len(LARGE), ["sent"])
            assert sent.tell() == 0


def test_full_disk_refuses_for_now(tmp_path: Path) -> None:
    """No room for the clean copy is the service's trouble, not the client's."""
    with open(tmp_path / "sent", "w+b") as sent:
        sent.write(with_chunks(LARGE, [chunk(b"tEXt", b"Author\0me")]))
        with pytest.raises(DependencyUnavailable):
            taking(tmp_path / "gone").accept(sent)


def test_what_is_no_image_is_refused_as_before(tmp_path: Path) -> None:
    """The check of the image comes first."""
    with pytest.raises(ValidationError, match="Invalid image"):
        taking(tmp_path).accept(io.BytesIO(b"no image"))


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
    """A real browser turns the cleaned file as it turned the one that was sent, and as the check says it does."""
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
    """Return what the script tells of the picture of four corners, turned so."""
    assert COLORS == ("red", "lime", "blue", "white")
    image = corners()
    image.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(image).convert("RGBA")
    places = [(turned.width * x // 4, turned.height * y // 4) for y in (1, 3) for x in (1, 3)]
    pixels = [[value > 127 for value in turned.getpixel(place)] for place in places]  # type: ignore[union-attr]
    return [*turned.size, json.dumps(pixels, separators=(",", ":"))]
