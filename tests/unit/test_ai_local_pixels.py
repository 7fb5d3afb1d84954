"""The local AI provider on pixels: how it reads a photo, finds its subject and names the colours of the subject."""

from __future__ import annotations

import io
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageDraw

from docs.pictures.demo_pictures import write_all
from pipeline.demo import pictures, shown
from pipeline.errors import PermanentJobError
from pipeline.sandbox.cost import LONG_SIDE_PIXELS
from pipeline.sandbox.photo import read_photo
from tests.factories import make_image

if find_spec("rapidocr") is None and not os.environ.get("CI"):
    pytest.skip("the extra [local] is not installed", allow_module_level=True)

import numpy as np

from pipeline.plugins.ai_local.colors import name_colorway
from pipeline.plugins.ai_local.subject import find_subject


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_is_rotated_as_exif_says(orientation: int) -> None:
    """Each EXIF orientation is applied: the red corner is where a viewer shows it."""
    image = Image.new("RGB", (80, 40), (255, 255, 255))
    ImageDraw.Draw(image).rectangle((0, 0, 15, 15), fill=(255, 0, 0))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)

    photo = read_photo(file.getvalue(), LONG_SIDE_PIXELS, 10_000, 64)

    left, top = orientation in (1, 4, 5, 8), orientation in (1, 2, 5, 6)
    assert photo.size == ((80, 40) if orientation < 5 else (40, 80))
    assert photo.getpixel((5 if left else photo.width - 5, 5 if top else photo.height - 5)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF", "MPO"])
def test_photo_of_every_format_is_read_and_bounded(format: str) -> None:
    """Every format that an upload may have becomes an RGB picture within the limit of the longer side."""
    photo = read_photo(make_image(format, (3300, 800)), LONG_SIDE_PIXELS, 10_000_000, 1024)

    assert photo.mode == "RGB"
    assert photo.size == (LONG_SIDE_PIXELS, round(LONG_SIDE_PIXELS * 800 / 3300))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_photo_of_every_mode_becomes_rgb(mode: str) -> None:
    """Grey, palette and CMYK pixels are converted; transparent pixels become white, also those that are black."""
    image = Image.new(mode, (60, 60))
    file = io.BytesIO()
    if mode == "P":
        image.save(file, "PNG", transparency=0)
    else:
        image.save(file, "JPEG" if mode == "CMYK" else "PNG")

    photo = read_photo(file.getvalue(), LONG_SIDE_PIXELS, 10_000, 64)

    expected = (0, 0, 0) if mode in ("L", "1") else (255, 255, 255)  # CMYK without ink is white
    assert (photo.mode, photo.getpixel((30, 30))) == ("RGB", expected)


def test_photo_with_too_many_pixels_is_refused() -> None:
    """A picture over the pixel limit fails permanently before its pixels are decoded."""
    with pytest.raises(PermanentJobError, match="must have at most 1000 pixels"):
        read_photo(make_image(size=(40, 30)), LONG_SIDE_PIXELS, 1000, 64)


@pytest.mark.parametrize(
    ("colors", "name"),
    [
        ([(20, 20, 22)], "Black"),
        ([(250, 250, 250)], "White"),
        ([(190, 30, 35)], "Red"),
        ([(30, 85, 190)], "Blue"),
        ([(40, 140, 60)], "Green"),
        ([(240, 205, 45)], "Yellow"),
        ([(240, 150, 185)], "Pink"),
        ([(105, 62, 35)], "Brown"),
        ([(245, 245, 245), (245, 245, 245), (190, 30, 35)], "White/Red"),
    ],
)
def test_colorway_has_everyday_names(colors: list[tuple[int, int, int]], name: str) -> None:
    """The colours of the subject are named, the one with the largest area first; the background does not count."""
    pixels = np.full((90, 120, 3), 247, dtype=np.uint8)
    subject = np.zeros((90, 120), dtype=np.float32)
    subject[:, :30] = 1
    for index, columns in enumerate(np.array_split(np.arange(30), len(colors))):
        pixels[:, columns] = colors[index]

    found = name_colorway(pixels, subject)

    assert found.value == name
    assert found.confidence == pytest.approx(0.9, abs=0.03)


def test_colorway_in_a_dim_room_is_that_of_daylight() -> None:
    """A white product photographed in a dim room is white, not grey."""
    pixels = np.full((90, 120, 3), 150, dtype=np.uint8)

    assert name_colorway(pixels, np.ones((90, 120), dtype=np.float32)).value == "White"


@pytest.mark.fault("U23")
@pytest.mark.parametrize(
    ("color", "name"), [((150, 185, 180), "Mint"), ((240, 190, 195), "Pink"), ((200, 180, 220), "Lavender")], ids=str
)
def test_pastel_is_named(color: tuple[int, int, int], name: str) -> None:
    """Pale colours have their own names; they are not called silver."""
    pixels = np.full((90, 120, 3), 250, dtype=np.uint8)
    pixels[:, :40] = color

    assert name_colorway(pixels, (pixels[..., 2] < 250).astype(np.float32)).value == name


@pytest.mark.fault("U23")
def test_colour_between_names_is_less_sure() -> None:
    """The confidence falls with the distance between a colour and the colour that has the name."""
    subject = np.ones((90, 120), dtype=np.float32)
    near, far = (
        name_colorway(np.full((90, 120, 3), color, dtype=np.uint8), subject) for color in ((200, 25, 30), (255, 0, 200))
    )

    assert far.confidence < 0.7 * near.confidence


def test_subject_is_separated_from_an_uneven_background() -> None:
    """The subject is all of a product and nothing else, on a table that is brighter under a lamp."""
    y, x = np.mgrid[0:300, 0:400]
    light = 1.1 - ((x - 100) ** 2 + (y - 80) ** 2) / 250_000
    pixels = (light[..., None] * np.array((180, 140, 100))).clip(0, 255).astype(np.uint8)
    pixels[90:220, 120:300] = (40, 60, 160)

    subject = find_subject(pixels, [])

    assert subject is not None
    truth = np.zeros((300, 400), dtype=bool)
    truth[90:220, 120:300] = True
    assert (subject > 0.5)[truth].mean() > 0.97
    assert (subject > 0.5)[~truth].mean() < 0.02


def test_implausible_subject_is_refused() -> None:
    """In a picture with one plain colour, or with noise everywhere, no subject is found."""
    plain = np.full((300, 400, 3), 180, dtype=np.uint8)
    chaos = np.asarray(Image.open(io.BytesIO(make_image("PNG", (400, 300)))))

    assert find_subject(plain, []) is None
    assert find_subject(chaos, []) is None


def test_demo_pictures_are_those_that_their_program_draws(tmp_path: Path) -> None:
    """The program draws the shipped pictures, and their files have the size of photos from a phone."""
    write_all(tmp_path)

    for file, category in {*pictures(), *shown()}:
        assert file.stem.endswith(category)
        assert 60_000 < file.stat().st_size < 300_000
        shipped, drawn = (np.asarray(Image.open(each), dtype=np.int16) for each in (file, tmp_path / file.name))
        assert np.abs(shipped - drawn).mean() < 3  # encoders and scalers differ a little between Pillow versions
