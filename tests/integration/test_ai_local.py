"""The local AI provider with its real models: the demo pictures, turned, dark and damaged photos, other formats."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from time import monotonic
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFont, ImageOps, ImageStat

from pipeline.errors import PermanentJobError, RetryableJobError
from pipeline.hooks import UNKNOWN, AIProvider, Analysis, AnalyzeRequest
from pipeline.hooks.checks import find_fault
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import Settings
from pipeline.testing import AIProviderSuite
from pipeline.plugins.ai_local import register_ai_providers
from pipeline.plugins.ai_local.provider import LocalProvider
from tests import sandboxed
from tests.factories import make_image
from tests.integration.demo_photos import EXPECTED, PHOTOS
from tests.requirements import require
from tests.slowdown import slowdown


@pytest.fixture(scope="module")
def provider(sandbox: Sandbox) -> Iterator[LocalProvider]:
    """The provider as the service builds it; its child process loads the models once for all tests."""
    require(find_spec("rapidocr") is not None, "the extra [local] is not installed")
    ((name, build),) = register_ai_providers(Settings(), sandbox)
    assert name == "local"
    provider = build()
    assert isinstance(provider, LocalProvider)
    yield provider
    asyncio.run(provider.close())


class TestLocalProvider(AIProviderSuite):
    """The built-in provider `local` passes the test suite for plugin authors."""

    @pytest.fixture
    def provider(self, sandbox: Sandbox) -> AIProvider:
        return LocalProvider(sandbox, 1)


def analyze(provider: LocalProvider, image: bytes, category: str) -> Analysis:
    """Return the provider's result, checked as the dispatcher checks it."""
    request = AnalyzeRequest("http://127.0.0.1/photo", category, "a" * 24, "job", "request", 1, 90.0, image)
    result = asyncio.run(provider.analyze(request))
    assert find_fault(result) is None
    return result


def open_photo(category: str) -> Image.Image:
    """Return the demo picture as a viewer shows it."""
    return ImageOps.exif_transpose(Image.open(PHOTOS[category]))


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """Return the image's bytes."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def processed(analysis: Analysis) -> Image.Image:
    """Return the processed image, decoded."""
    assert analysis.processed_image is not None and analysis.processed_image.content_type == "image/webp"
    image = Image.open(io.BytesIO(analysis.processed_image.content))
    assert image.format == "WEBP"
    return image.convert("RGB")


def background_share(image: Image.Image) -> float:
    """Return the share of the pixels that are clean background, from 0 to 1."""
    counts = image.convert("L").histogram()
    return sum(counts[245:250]) / (image.width * image.height)


@pytest.mark.parametrize("category", EXPECTED)
def test_demo_picture_gets_names_and_a_clean_background(provider: LocalProvider, category: str) -> None:
    """Brand, model and colour of a demo picture are right, and the product stands upright on a clean background."""
    analysis = analyze(provider, PHOTOS[category].read_bytes(), category)

    brand, model, color = EXPECTED[category]
    assert (analysis.brand.value, analysis.model.value) == (brand, model)
    assert analysis.brand.confidence > 0.9 and analysis.model.confidence > 0.85
    assert analysis.colorway is not None and color in analysis.colorway.value.split("/")
    assert 0.4 < analysis.colorway.confidence < 0.95
    original, clean = open_photo(category), processed(analysis)
    assert clean.width * clean.height < 0.8 * original.width * original.height
    assert 0.08 < background_share(clean) < 0.6
    # In the original the corners show the table.
    assert all(abs(level - 247) < 6 for level in clean.getpixel((2, 2)))  # type: ignore[union-attr]


VARIANTS: list[tuple[str, Callable[[Image.Image], bytes], str]] = [
    ("camera", lambda image: encode(image.rotate(90, expand=True)), "phone held sideways, no EXIF"),
    ("lego", lambda image: encode(image.rotate(180)), "phone upside down, no EXIF"),
    ("sneaker", lambda image: encode(image.rotate(270, expand=True)), "phone held sideways the other way"),
    ("lego", lambda image: encode(image.rotate(12, fillcolor=(150, 150, 150))), "tilted"),
    ("camera", lambda image: encode(ImageEnhance.Brightness(image).enhance(0.35)), "dark"),
    ("sneaker", lambda image: encode(image, quality=40), "strongly compressed"),
    ("other", lambda image: encode(image.resize((640, 480))), "small"),
    ("camera", lambda image: encode(image, "HEIF", quality=70), "HEIC, as phones send it"),
    ("other", lambda image: encode(image, "AVIF", quality=60), "AVIF"),
    ("lego", lambda image: encode(image.resize((6400, 4800)), quality=60), "31 megapixels"),
]


@pytest.mark.parametrize(("category", "change", "remark"), VARIANTS, ids=[variant[2] for variant in VARIANTS])
def test_changed_picture_gets_the_same_names(
    provider: LocalProvider, category: str, change: Callable[[Image.Image], bytes], remark: str
) -> None:
    """A turned, dark, compressed, small or large photo, or one in another format, gets the same brand and model."""
    analysis = analyze(provider, change(open_photo(category)), category)

    brand, model, color = EXPECTED[category]
    assert (analysis.brand.value, analysis.model.value) == (brand, model)
    assert analysis.colorway is not None and color in analysis.colorway.value.split("/")


def test_processed_image_of_a_turned_picture_is_upright(provider: LocalProvider) -> None:
    """The lettering of the processed image is upright, whichever way the phone was turned."""
    upright = processed(analyze(provider, PHOTOS["lego"].read_bytes(), "lego"))
    for angle in (90, 180, 270):
        turned = encode(open_photo("lego").rotate(angle, expand=True))
        result = processed(analyze(provider, turned, "lego")).resize(upright.size)
        difference = ImageStat.Stat(ImageChops.difference(upright, result)).mean
        assert max(difference) < 25, f"turned by {angle}"


@pytest.mark.parametrize("category", EXPECTED)
def test_picture_without_lettering_is_unknown(provider: LocalProvider, category: str) -> None:
    """Without lettering, brand and model are unknown; without a product, there is no processed image."""
    analysis = analyze(provider, encode(Image.new("RGB", (800, 600), (200, 198, 190))), category)

    assert (analysis.brand, analysis.model) == (UNKNOWN, UNKNOWN)
    assert analysis.colorway is not None and analysis.colorway.confidence < 0.5
    assert analysis.processed_image is None


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (1600, 40)], ids=str)
def test_picture_of_odd_shape_gets_a_result(provider: LocalProvider, size: tuple[int, int]) -> None:
    """A picture that is too small or narrow for any product is analyzed without an error."""
    analysis = analyze(provider, encode(Image.new("RGB", size, (200, 100, 50)), "PNG"), "other")

    assert (analysis.brand, analysis.model, analysis.processed_image) == (UNKNOWN, UNKNOWN, None)


def test_ordinary_words_name_no_brand(provider: LocalProvider) -> None:
    """Ordinary words in a photo do not become a brand."""
    sign = Image.new("RGB", (900, 500), (240, 240, 235))
    pen = ImageDraw.Draw(sign)
    for row, text in enumerate(("Please close the door", "Open on Monday", "Canyon hike, bike and like")):
        pen.text((60, 60 + row * 130), text, font=ImageFont.load_default(size=52), fill=(20, 20, 20))

    analysis = analyze(provider, encode(sign), "other")

    assert (analysis.brand, analysis.model) == (UNKNOWN, UNKNOWN)


@pytest.mark.parametrize(
    ("image", "remark"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 and so on", "no image"),
        (make_image()[:300], "cut off"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "drawing instructions"),
        (make_image("BMP"), "a format that is not accepted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_image_fails_permanently(provider: LocalProvider, image: bytes, remark: str) -> None:
    """Bytes that are no usable photo raise PermanentJobError with a message for the user."""
    with pytest.raises(PermanentJobError, match="^The photo (is empty|cannot be read)"):
        analyze(provider, image, "other")


def test_analysis_is_the_same_when_a_job_is_repeated(provider: LocalProvider) -> None:
    """The same photo gives exactly the same result, so a repeated step changes nothing."""
    image = PHOTOS["other"].read_bytes()

    assert analyze(provider, image, "other") == analyze(provider, image, "other")


def test_event_loop_stays_free_during_an_analysis(provider: LocalProvider) -> None:
    """While the child processes analyze a photo, the event loop is never blocked for 0.25 seconds."""
    request = AnalyzeRequest("", "sneaker", "", "", "", 1, 90.0, PHOTOS["sneaker"].read_bytes())

    async def longest_wait() -> float:
        work = asyncio.create_task(provider.analyze(request))
        longest, last = 0.0, monotonic()
        while not work.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, monotonic() - last), monotonic()
        await work
        return longest

    # The analysis itself takes more than a second.
    assert asyncio.run(longest_wait()) < 0.25


FLAT = [("white", (400, 200)), ("red", (128, 64)), ("white", (200, 100)), ((250, 250, 250), (1200, 600))]


@pytest.mark.fault("E2")
@pytest.mark.parametrize(("color", "size"), FLAT, ids=str)
def test_picture_of_one_colour_gets_a_result(provider: LocalProvider, color: Any, size: tuple[int, int]) -> None:
    """A picture of one colour gets a result, although OpenCV's cut-out never ends for some of these."""
    started_at = monotonic()
    analysis = analyze(provider, encode(Image.new("RGB", size, color), "PNG"), "camera")

    assert (analysis.brand, analysis.processed_image) == (UNKNOWN, None)
    assert monotonic() - started_at < 10 * slowdown()


@pytest.mark.fault("E5")
def test_photo_that_waits_too_long_spends_no_attempt(provider: LocalProvider) -> None:
    """A call that waits for a child process until its time is over raises an error that spends no attempt."""
    request = AnalyzeRequest("", "lego", "", "", "", 1, 1.0, PHOTOS["lego"].read_bytes())

    async def behind_another_call() -> tuple[BaseException, float]:
        first = asyncio.create_task(provider._readers.run(sandboxed.spin, seconds=8))
        await asyncio.sleep(0)  # The first call takes the only child process.
        started_at = monotonic()
        error = (await asyncio.gather(provider.analyze(request), return_exceptions=True))[0]
        first.cancel()
        assert isinstance(error, BaseException)
        return error, monotonic() - started_at

    error, seconds = asyncio.run(behind_another_call())
    assert isinstance(error, RetryableJobError) and error.spends_attempt is False
    assert seconds < 1.5 * slowdown()
