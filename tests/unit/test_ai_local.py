"""The rules of the local AI provider: which lettering makes a brand and a model, which pixels a colour."""

from __future__ import annotations

import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageDraw

from docs.pictures.demo_pictures import write_all
from pipeline.demo import pictures, shown
from pipeline.errors import ConfigurationError, PermanentJobError
from pipeline.hooks import UNKNOWN
from pipeline.sandbox.cost import LONG_SIDE_PIXELS
from pipeline.sandbox.photo import read_photo
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import Settings
from pipeline.plugins.ai_local import register_ai_providers
from tests.factories import make_image

if find_spec("rapidocr") is None and not os.environ.get("CI"):
    pytest.skip("the extra [local] is not installed", allow_module_level=True)

import numpy as np

from pipeline.plugins.ai_local.colors import name_colorway
from pipeline.plugins.ai_local.lexicon import Lexicon
from pipeline.plugins.ai_local.line import Line
from pipeline.plugins.ai_local.models import legible_texts, name_product
from pipeline.plugins.ai_local.subject import find_subject

LEXICON = Lexicon.load()


def make_lines(*texts: str | tuple[str, float], score: float = 1.0) -> list[Line]:
    """Return lines below each other; each a text 20 pixels high, or (text, height)."""
    lines = []
    for row, each in enumerate(texts):
        text, height = each if isinstance(each, tuple) else (each, 20.0)
        top, right = 100.0 * row, height * len(text) / 2 + 30
        box = np.array([(0, top), (right, top), (right, top + height), (0, top + height)], dtype=np.float32)
        lines.append(Line(text, score, box))
    return lines


@pytest.mark.parametrize(
    ("category", "texts", "brand", "model"),
    [
        ("sneaker", ["NIKE", "AIR MAX 90", "US 9"], "Nike", "Air Max 90"),
        ("sneaker", ["adidas", "STAN SMITH"], "adidas", "Stan Smith"),
        ("sneaker", ["new balance", "990v5", "MADE IN USA"], "New Balance", "990v5"),
        ("sneaker", ["NEW", "BALANCE", "M1906R"], "New Balance", "M1906R"),
        ("sneaker", ["VANS", "Old Skool"], "Vans", "Old Skool"),
        ("sneaker", ["CONVERSE", "CHUCK TAYLOR ALL STAR"], "Converse", "Chuck Taylor All Star"),
        ("sneaker", ["AIR JORDAN 1"], "Jordan", "Air Jordan 1"),
        ("sneaker", ["On", "Cloudmonster"], "On", "Cloudmonster"),
        ("lego", ["LEGO", "STAR WARS", "75192", "16+", ("7541 pcs/pzs", 50)], "LEGO", "Star Wars 75192"),
        ("lego", ["LEGO", "10307", ("2022 The LEGO Group", 50)], "LEGO", "10307"),
        ("lego", ["NINJAGO", "71741"], "LEGO", "Ninjago 71741"),
        ("camera", ["Digital", "D7500"], "Nikon", "D7500"),
        ("camera", ["Canon", "EOS R5", "RF LENS 50mm 1:1.8"], "Canon", "EOS R5"),
        ("camera", ["Canon", "EOS 850D"], "Canon", "EOS 850D"),
        ("camera", ["Nikon", "D7500"], "Nikon", "D7500"),
        ("camera", ["SONY", "ILCE-7M4"], "Sony", "ILCE-7M4"),
        ("camera", ["FUJIFILM", "X-T4"], "Fujifilm", "X-T4"),
        ("camera", ["LEICA", "M6"], "Leica", "M6"),
        ("camera", ["HASSELBLAD", "500C/M"], "Hasselblad", "500C/M"),
        ("camera", ["Mamiya", "RB67"], "Mamiya", "RB67"),
        ("camera", ["PENTAX", "K1000"], "Pentax", "K1000"),
        ("camera", ["VOIGTLÄNDER", "Bessa R3A"], "Voigtländer", "Bessa R3A"),
        ("camera", ["GoPro", "HERO12 Black"], "GoPro", "HERO12 Black"),
        ("camera", ["PowerShot", "G7 X"], "Canon", "PowerShot G7 X"),
        ("other", ["SONYICF-306", "88 92 96 104 108"], "Sony", "ICF-306"),
        ("other", ["SONY", "WH-1000XM4"], "Sony", "WH-1000XM4"),
        ("other", ["BOSCH", "GSR 18V-55", "18V"], "Bosch", "18V-55"),
        ("other", ["Nintendo", "GAME BOY"], "Nintendo", "Game Boy"),
        ("other", ["Canon", "EOS R5"], "Canon", "EOS R5"),
        ("sneaker", ["AIR MAX 90"], "Nike", "Air Max 90"),
    ],
    ids=str,
)
def test_product_is_named_from_its_lettering(category: str, texts: list[Any], brand: str, model: str) -> None:
    """What people collect is named from what makers print on it."""
    found_brand, found_model = name_product(make_lines(*texts), category, LEXICON)

    assert (found_brand.value, found_model.value) == (brand, model)
    assert 0.3 < found_brand.confidence < 1 and 0.3 < found_model.confidence < 1


@pytest.mark.parametrize(
    ("category", "texts"),
    [
        ("sneaker", ["like a bike", "hike more"]),
        ("sneaker", ["come on in"]),
        ("sneaker", ["Salmon", "fresh"]),
        ("sneaker", ["Question", "Answer"]),
        ("lego", ["CITY"]),
        ("lego", ["75192"]),
        ("lego", ["Tel. 0305551234"]),
        ("camera", ["Canyon"]),
        ("camera", ["Nixon"]),
        ("camera", ["Pantsonix", "Hasselhoff", "Willing"]),
        ("camera", ["Basic", "500 g"]),
        ("sneaker", ["1500"]),
        ("camera", ["the red door"]),
        ("other", ["Please close the door"]),
        ("other", ["apple juice", "sharp knife", "pioneer spirit"]),
        ("other", ["Collage", "Brain", "Sung", "Phil is"]),
        ("other", []),
    ],
    ids=str,
)
def test_ordinary_words_are_no_brand(category: str, texts: list[str]) -> None:
    """Words near a brand's name, or names that are everyday words in a sentence, stay unknown."""
    assert name_product(make_lines(*texts), category, LEXICON) == (UNKNOWN, UNKNOWN)


@pytest.mark.parametrize(
    ("seen", "category", "brand", "least", "most"),
    [
        ("NIKE", "sneaker", "Nike", 0.99, 0.99),
        ("N1KE", "sneaker", "Nike", 0.8, 0.9),
        ("CAN0N", "camera", "Canon", 0.8, 0.9),
        ("OLYMPU5", "camera", "Olympus", 0.8, 0.9),
        ("PANASXNIC", "camera", "Panasonic", 0.7, 0.8),
        ("COMMXN PROJXCTS", "sneaker", "Common Projects", 0.5, 0.6),
        ("Fuji film", "camera", "Fujifilm", 0.7, 0.99),
        ("NIKON", "other", "Nikon", 0.65, 0.75),
    ],
)
def test_misread_brand_is_less_sure(seen: str, category: str, brand: str, least: float, most: float) -> None:
    """A brand with misread letters, or one of another category, is found with less confidence."""
    found, _ = name_product(make_lines(seen), category, LEXICON)

    assert found.value == brand
    assert least <= found.confidence <= most


def test_confidence_follows_the_certainty_of_the_letters() -> None:
    """Half-legible lettering halves the confidence of what was read from it."""
    brand, model = name_product(make_lines("Canon", "EOS R5", score=0.5), "camera", LEXICON)

    assert (brand.confidence, model.confidence) == (0.5, 0.5)


def test_larger_lettering_names_the_brand() -> None:
    """Of two brands in a photo the one written larger is the product's."""
    brand, _ = name_product(make_lines(("SanDisk", 8), ("LEXAR", 6), ("JBL", 60)), "other", LEXICON)

    assert brand.value == "JBL"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_is_turned_as_exif_says(orientation: int) -> None:
    """Each EXIF orientation is applied: the red corner ends where a viewer shows it."""
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
    """Every format an upload may have becomes an RGB picture no larger than needed."""
    photo = read_photo(make_image(format, (3300, 800)), LONG_SIDE_PIXELS, 10_000_000, 1024)

    assert photo.mode == "RGB"
    assert photo.size == (LONG_SIDE_PIXELS, round(LONG_SIDE_PIXELS * 800 / 3300))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_photo_of_every_mode_becomes_rgb(mode: str) -> None:
    """Grey, palette and CMYK pixels are converted; what is transparent becomes white, also where it hides black."""
    image = Image.new(mode, (60, 60))
    file = io.BytesIO()
    if mode == "P":
        image.save(file, "PNG", transparency=0)
    else:
        image.save(file, "JPEG" if mode == "CMYK" else "PNG")

    photo = read_photo(file.getvalue(), LONG_SIDE_PIXELS, 10_000, 64)

    expected = (0, 0, 0) if mode in ("L", "1") else (255, 255, 255)  # no ink at all is white too
    assert (photo.mode, photo.getpixel((30, 30))) == ("RGB", expected)


def test_photo_with_too_many_pixels_is_refused() -> None:
    """A picture over the pixel limit fails for good before its pixels are decoded."""
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
def test_colorway_is_named_as_people_do(colors: list[tuple[int, int, int]], name: str) -> None:
    """The colours of the subject are named, the largest first; the background does not count."""
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
    """Pale colours have names of their own, and are no silver."""
    pixels = np.full((90, 120, 3), 250, dtype=np.uint8)
    pixels[:, :40] = color

    assert name_colorway(pixels, (pixels[..., 2] < 250).astype(np.float32)).value == name


@pytest.mark.fault("U23")
def test_colour_between_names_is_less_sure() -> None:
    """The farther a colour is from what has its name, the less the name is worth."""
    subject = np.ones((90, 120), dtype=np.float32)
    near, far = (
        name_colorway(np.full((90, 120, 3), color, dtype=np.uint8), subject) for color in ((200, 25, 30), (255, 0, 200))
    )

    assert far.confidence < 0.7 * near.confidence


@pytest.mark.fault("U21")
@pytest.mark.parametrize(
    ("category", "texts", "brand", "most"),
    [
        ("camera", [("LEICA DC VARIO-ELMAR", 18), ("LUMIX", 40)], "Panasonic", 0.99),
        ("camera", [("LEICA", 50), ("LUMIX", 30)], "Panasonic", 0.99),
        ("camera", [("LEICA DC VARIO-ELMARIT 1:2.8", 20)], "Leica", 0.35),
        ("camera", ["LEICA"], "Leica", 0.6),
        ("other", ["LEICA", "HUAWEI"], "Huawei", 0.99),
        ("other", ["Google", "News"], "Google", 0.35),
        ("camera", [("Canon", 40), ("Nikon", 40)], "Canon", 0.75),
    ],
    ids=str,
)
def test_maker_of_a_part_is_not_the_brand(category: str, texts: list[Any], brand: str, most: float) -> None:
    """Who made the lens or the page names the product only when nothing else does, and hardly then."""
    found, _ = name_product(make_lines(*texts), category, LEXICON)

    assert found.value == brand
    assert found.confidence <= most


@pytest.mark.fault("U21")
@pytest.mark.parametrize(
    ("category", "texts"),
    [
        ("camera", ["Battery for Canon EOS R5"]),
        ("other", ["PATONA", "for Makita 18V"]),
        ("other", ["fits DeWalt", "LITHIUM"]),
        ("camera", [("VILTROX", 20), ("for Sony E", 40)]),
    ],
    ids=str,
)
def test_brand_that_a_product_is_made_for_is_not_its_own(category: str, texts: list[Any]) -> None:
    """A charger or a case names the brand it goes with, and has no model of it."""
    brand, model = name_product(make_lines(*texts), category, LEXICON)

    assert brand.confidence <= 0.6 and model == UNKNOWN


@pytest.mark.fault("U22")
@pytest.mark.parametrize(
    ("category", "texts", "model", "confidence"),
    [
        ("sneaker", ["MIZUNO", "WAVE RIDER 27"], "Wave Rider 27", 0.9),
        ("sneaker", ["asics", "NOVABLAST 4"], "Novablast 4", 0.9),
        ("sneaker", ["NIKE METCON 8"], "Metcon 8", 0.9),
        ("camera", ["Canon", "EOS R6 II"], "EOS R6 II", 0.9),
        ("camera", ["SONY", "Alpha 7 IV"], "Alpha 7 IV", 0.9),
        ("camera", ["Ricoh", "GR III"], "GR III", 0.99),
        ("other", ["SAMSUNG", "Galaxy S24 Ultra"], "Galaxy S24 Ultra", 0.9),
        ("sneaker", ["NIKE", "AIR MAX 90 9"], "Air Max 90", 0.99),
        ("sneaker", ["adidas", "SUPERSTAR 43"], "Superstar", 0.75),
        ("sneaker", ["NIKE", "AIR MAX 90 42.5"], "Air Max 90", 0.75),
        ("camera", ["Polaroid", "Buy it now and go"], "Now", 0.75),
        ("camera", ["Polaroid", "Now"], "Now", 0.99),
    ],
    ids=str,
)
def test_listed_model_is_told_with_its_version(
    category: str, texts: list[Any], model: str, confidence: float
) -> None:
    """What follows a listed name is its version, or a size, which makes the name doubtful; so does a sentence."""
    _, found = name_product(make_lines(*texts), category, LEXICON)

    assert (found.value, found.confidence) == (model, confidence)


@pytest.mark.fault("U22")
@pytest.mark.parametrize(
    ("category", "texts"),
    [
        ("camera", ["Canon", "E3-6021-089"]),
        ("camera", ["LUMIX"]),
        ("camera", ["Nikon", "S/N 40293-84B"]),
        ("camera", [("Nikon", 60), ("AK8-4731B", 20)]),
        ("lego", ["LEGO", "TECHNIC"]),
        ("other", [("PHILIPS", 40), ("Sonicare", 30)]),
        ("sneaker", ["NIKE", "AIR MAX"]),
    ],
    ids=str,
)
def test_what_is_no_model_is_unknown(category: str, texts: list[Any]) -> None:
    """Part numbers, product lines and other words beside a brand are no model: the asset is `partial`."""
    brand, model = name_product(make_lines(*texts), category, LEXICON)

    assert brand != UNKNOWN and model == UNKNOWN


@pytest.mark.fault("U24")
@pytest.mark.fault("U26")
@pytest.mark.parametrize("category", ["other", "watch"])
def test_largest_word_is_a_doubtful_brand(category: str) -> None:
    """A name nobody listed is the brand of what has no category of its own; a category nobody knows is such a one."""
    lines = make_lines(("ZORBITRON", 60), ("Made in China", 20))

    brand, model = name_product(lines, category, LEXICON)

    assert (brand.value, model) == ("ZORBITRON", UNKNOWN)
    assert 0.3 <= brand.confidence <= 0.35
    assert legible_texts(lines) == ["ZORBITRON", "Made in China"]
    assert name_product(lines, "camera", LEXICON) == (UNKNOWN, UNKNOWN)


def test_subject_is_cut_out_of_an_uneven_background() -> None:
    """A product on a table that is brighter under the lamp is found whole, and nothing but it."""
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
    """Where nothing stands out, or everything does, the background is kept."""
    plain = np.full((300, 400, 3), 180, dtype=np.uint8)
    chaos = np.asarray(Image.open(io.BytesIO(make_image("PNG", (400, 300)))))

    assert find_subject(plain, []) is None
    assert find_subject(chaos, []) is None


def test_missing_packages_are_named_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the start fails in one line that says what to install and what to set instead."""
    ((_, build),) = register_ai_providers(Settings(), Sandbox())
    monkeypatch.setitem(sys.modules, "rapidocr", None)

    with pytest.raises(ConfigurationError) as caught:
        build()

    message = str(caught.value)
    assert "\n" not in message
    for part in ("rapidocr", "pip install 'ai-queue-pipeline[local]'", "pip install -e '.[local]'", "AI_SERVICE_URL"):
        assert part in message


def test_demo_pictures_are_what_their_program_draws(tmp_path: Path) -> None:
    """The shipped pictures can be drawn anew and are of a phone's size and weight."""
    write_all(tmp_path)

    for file, category in {*pictures(), *shown()}:
        assert file.stem.endswith(category)
        assert 60_000 < file.stat().st_size < 300_000
        shipped, drawn = (np.asarray(Image.open(each), dtype=np.int16) for each in (file, tmp_path / file.name))
        assert np.abs(shipped - drawn).mean() < 3  # encoders and scalers differ a little between Pillow versions
