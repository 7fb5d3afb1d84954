"""The local AI provider on the texts of a photo: which texts name a brand and a model."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from pipeline.errors import ConfigurationError
from pipeline.hooks import UNKNOWN
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import Settings
from pipeline.plugins.ai_local import register_ai_providers

if find_spec("rapidocr") is None and not os.environ.get("CI"):
    pytest.skip("the extra [local] is not installed", allow_module_level=True)

import numpy as np

from pipeline.plugins.ai_local.lexicon import Lexicon
from pipeline.plugins.ai_local.line import Line
from pipeline.plugins.ai_local.models import legible_texts, name_product

LEXICON = Lexicon.load()


def make_lines(*texts: str | tuple[str, float], score: float = 1.0) -> list[Line]:
    """Return lines of text below each other. texts: a text that is 20 pixels high, or (text, height)."""
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
def test_product_is_named_from_its_texts(category: str, texts: list[Any], brand: str, model: str) -> None:
    """The brand and the model of a product come from the texts that its maker prints on it."""
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
    """Words that resemble a brand, and brands that are everyday words in a sentence, give no brand."""
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
    """The confidence of a name is proportional to the score of its letters."""
    brand, model = name_product(make_lines("Canon", "EOS R5", score=0.5), "camera", LEXICON)

    assert (brand.confidence, model.confidence) == (0.5, 0.5)


def test_larger_text_names_the_brand() -> None:
    """Of several brands in a photo the largest text names the brand."""
    brand, _ = name_product(make_lines(("SanDisk", 8), ("LEXAR", 6), ("JBL", 60)), "other", LEXICON)

    assert brand.value == "JBL"


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
    """The maker of the lens or of the page is the brand only if no other brand is found, with low confidence."""
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
def test_brand_that_an_accessory_is_made_for_is_doubtful(category: str, texts: list[Any]) -> None:
    """A charger or a case names the brand it is made for: the confidence is low, and there is no model."""
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
def test_listed_model_is_named_with_its_version(
    category: str, texts: list[Any], model: str, confidence: float
) -> None:
    """The text after a listed model is its version; a size or a sentence around the model lowers the confidence."""
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
def test_other_texts_of_a_brand_are_no_model(category: str, texts: list[Any]) -> None:
    """Part numbers, product lines and other words near a brand are no model: the asset is `partial`."""
    brand, model = name_product(make_lines(*texts), category, LEXICON)

    assert brand != UNKNOWN and model == UNKNOWN


@pytest.mark.fault("U24")
@pytest.mark.fault("U26")
@pytest.mark.parametrize("category", ["other", "watch"])
def test_largest_word_is_a_doubtful_brand(category: str) -> None:
    """In the category `other`, and in an unknown category, the largest word that is not listed is a doubtful brand."""
    lines = make_lines(("ZORBITRON", 60), ("Made in China", 20))

    brand, model = name_product(lines, category, LEXICON)

    assert (brand.value, model) == ("ZORBITRON", UNKNOWN)
    assert 0.3 <= brand.confidence <= 0.35
    assert legible_texts(lines) == ["ZORBITRON", "Made in China"]
    assert name_product(lines, "camera", LEXICON) == (UNKNOWN, UNKNOWN)


def test_missing_packages_are_named_with_both_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the start fails with one line: what to install, and what to set instead."""
    ((_, build),) = register_ai_providers(Settings(), Sandbox())
    monkeypatch.setitem(sys.modules, "rapidocr", None)

    with pytest.raises(ConfigurationError) as caught:
        build()

    message = str(caught.value)
    assert "\n" not in message
    for part in ("rapidocr", "pip install 'ai-queue-pipeline[local]'", "pip install -e '.[local]'", "AI_SERVICE_URL"):
        assert part in message
