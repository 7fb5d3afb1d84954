"""The local AI provider with its real models, on the demo pictures and what phones and people make of them."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from time import monotonic
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFont, ImageOps, ImageStat

from pipeline.demo import pictures
from pipeline.errors import PermanentJobError, RetryableJobError, SandboxLimit
from pipeline.hooks import UNKNOWN, AIProvider, Analysis, AnalyzeRequest
from pipeline.hooks.checks import find_fault
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import Settings
from pipeline.testing import AIProviderSuite
from pipeline.plugins.ai_local import register_ai_providers, work
from pipeline.plugins.ai_local.provider import LocalProvider
from tests import sandboxed
from tests.factories import make_image
from tests.parts import require
from tests.patience import patience

EXPECTED = {
    "camera": ("Canon", "EOS R5", "Black"),
    "lego": ("LEGO", "City 60316", "Blue"),
    "sneaker": ("Nike", "Air Max 90", "White"),
    "other": ("Sony", "ICF-306", "Red"),
}
PHOTOS = {category: file for file, category in pictures()}


@pytest.fixture(scope="module")
def provider(sandbox: Sandbox) -> Iterator[LocalProvider]:
    """The provider as the service builds it; its child holds the models for all tests."""
    require(find_spec("rapidocr") is not None, "the extra [local] is not installed")
    ((name, build),) = register_ai_providers(Settings(), sandbox)
    assert name == "local"
    provider = build()
    assert isinstance(provider, LocalProvider)
    yield provider
    asyncio.run(provider.close())


class TestLocalProvider(AIProviderSuite):
    """The built-in provider `local` passes the suite plugin authors get."""

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
    """Return how much of an image is the clean background."""
    counts = image.convert("L").histogram()
    return sum(counts[245:250]) / (image.width * image.height)


@pytest.mark.parametrize("category", EXPECTED)
def test_demo_picture_is_named_and_cleaned(provider: LocalProvider, category: str) -> None:
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
    # In the corners there was table before.
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
def test_changed_picture_is_still_named(
    provider: LocalProvider, category: str, change: Callable[[Image.Image], bytes], remark: str
) -> None:
    """A turned, dark, compressed, small, large or otherwise encoded photo is read all the same."""
    analysis = analyze(provider, change(open_photo(category)), category)

    brand, model, color = EXPECTED[category]
    assert (analysis.brand.value, analysis.model.value) == (brand, model)
    assert analysis.colorway is not None and color in analysis.colorway.value.split("/")


def test_turned_picture_comes_back_upright(provider: LocalProvider) -> None:
    """The processed image stands as its lettering reads, whichever way the phone was held."""
    upright = processed(analyze(provider, PHOTOS["lego"].read_bytes(), "lego"))
    for angle in (90, 180, 270):
        turned = encode(open_photo("lego").rotate(angle, expand=True))
        again = processed(analyze(provider, turned, "lego")).resize(upright.size)
        difference = ImageStat.Stat(ImageChops.difference(upright, again)).mean
        assert max(difference) < 25, f"turned by {angle}"


@pytest.mark.parametrize("category", EXPECTED)
def test_picture_without_lettering_is_unknown(provider: LocalProvider, category: str) -> None:
    """Where nothing is written nothing is claimed, and where no subject is found there is no processed image."""
    analysis = analyze(provider, encode(Image.new("RGB", (800, 600), (200, 198, 190))), category)

    assert (analysis.brand, analysis.model) == (UNKNOWN, UNKNOWN)
    assert analysis.colorway is not None and analysis.colorway.confidence < 0.5
    assert analysis.processed_image is None


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (1600, 40)], ids=str)
def test_picture_of_odd_shape_is_answered(provider: LocalProvider, size: tuple[int, int]) -> None:
    """A picture too small or narrow for any product is analyzed without complaint."""
    analysis = analyze(provider, encode(Image.new("RGB", size, (200, 100, 50)), "PNG"), "other")

    assert (analysis.brand, analysis.model, analysis.processed_image) == (UNKNOWN, UNKNOWN, None)


def test_foreign_lettering_names_nothing(provider: LocalProvider) -> None:
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
        (make_image("BMP"), "a format nobody asked for"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_image_fails_for_good(provider: LocalProvider, image: bytes, remark: str) -> None:
    """Bytes that are no usable photo raise PermanentJobError with words for a person."""
    with pytest.raises(PermanentJobError, match="^The photo (is empty|cannot be read)"):
        analyze(provider, image, "other")


def test_analysis_is_the_same_when_a_job_runs_again(provider: LocalProvider) -> None:
    """The same photo gives exactly the same result, so a repeated step changes nothing."""
    image = PHOTOS["other"].read_bytes()

    assert analyze(provider, image, "other") == analyze(provider, image, "other")


def test_event_loop_stays_free_during_an_analysis(provider: LocalProvider) -> None:
    """While a photo is analyzed in the children the loop goes on answering."""
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


def test_service_loads_nothing_heavy() -> None:
    """OpenCV, numpy and the models are the children's alone: the process that builds and uses the provider has none of
    them, says nothing, and leaves no child behind.
    """
    require(find_spec("rapidocr") is not None, "the extra [local] is not installed")
    program = """
import asyncio, sys
from pipeline.hooks import AnalyzeRequest
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.kinds import PROVIDER
from pipeline.settings import Settings

async def main():
    catalogue = Catalogue(Settings())
    provider = catalogue.make(PROVIDER, "local")
    await provider.check()
    request = AnalyzeRequest("", "camera", "", "", "", 1, 90.0, open(sys.argv[1], "rb").read())
    analysis = await provider.analyze(request)
    await catalogue.sandbox.close()
    assert analysis.brand.value == "Canon"
    assert not {"numpy", "cv2", "onnxruntime", "rapidocr", "rapidfuzz"} & set(sys.modules), "heavy"

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(PHOTOS["camera"])], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_reading_fetches_nothing() -> None:
    """What a child does, models included, never touches the network."""
    require(find_spec("rapidocr") is not None, "the extra [local] is not installed")
    program = """
import io, socket, sys
def refuse(*args, **kwargs): raise SystemExit("network used")
socket.socket.connect = socket.getaddrinfo = refuse
from PIL import Image, ImageOps
from pipeline.plugins.ai_local import work
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
assert work.read(*photo.size, photo.tobytes(), "camera", 9.0)["brand"][0] == "Canon"
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(PHOTOS["camera"])], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FLAT = [("white", (400, 200)), ("red", (128, 64)), ("white", (200, 100)), ((250, 250, 250), (1200, 600))]


@pytest.mark.fault("E2")
@pytest.mark.parametrize(("color", "size"), FLAT, ids=str)
def test_flat_picture_is_answered_soon(provider: LocalProvider, color: Any, size: tuple[int, int]) -> None:
    """One colour all over, on some of which OpenCV's cut-out never ends, is a picture like any other."""
    started_at = monotonic()
    analysis = analyze(provider, encode(Image.new("RGB", size, color), "PNG"), "camera")

    assert (analysis.brand, analysis.processed_image) == (UNKNOWN, None)
    assert monotonic() - started_at < 10 * patience()


class Short(Sandbox):
    """A sandbox in which cutting out is given no time."""

    async def run(self, function: Any, *args: Any, **limits: Any) -> Any:
        """Fail where cutting out would."""
        if function is work.finish and args[-1]:
            raise SandboxLimit("Reading the photo takes too long", "cpu")
        return await super().run(function, *args, **limits)


def test_picture_that_cannot_be_cut_out_is_answered() -> None:
    """When cutting out reaches its limit the photo is still named, and there is no processed image."""
    short = Short()
    provider = LocalProvider(short, 1)

    async def both() -> Analysis:
        request = AnalyzeRequest("", "lego", "", "", "", 1, 90.0, PHOTOS["lego"].read_bytes())
        analysis = await provider.analyze(request)
        await short.close()
        return analysis

    analysis = asyncio.run(both())
    assert (analysis.brand.value, analysis.model.value) == EXPECTED["lego"][:2]
    assert analysis.processed_image is None


@pytest.mark.fault("E5")
def test_photo_whose_turn_does_not_come_was_not_asked_about(provider: LocalProvider) -> None:
    """Waiting and working fit into the call's time, and waiting alone spends no attempt."""
    request = AnalyzeRequest("", "lego", "", "", "", 1, 1.0, PHOTOS["lego"].read_bytes())

    async def behind_others() -> tuple[BaseException, float]:
        first = asyncio.create_task(provider._readers.run(sandboxed.spin, seconds=8))
        await asyncio.sleep(0)  # it has the only child
        started_at = monotonic()
        error = (await asyncio.gather(provider.analyze(request), return_exceptions=True))[0]
        first.cancel()
        assert isinstance(error, BaseException)
        return error, monotonic() - started_at

    error, seconds = asyncio.run(behind_others())
    assert isinstance(error, RetryableJobError) and error.spends_attempt is False
    assert seconds < 1.5 * patience()
