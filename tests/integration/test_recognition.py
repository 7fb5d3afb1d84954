"""The offline provider on drawn pictures of hard kinds: its confidence is right, and in doubt it changes nothing."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

if find_spec("rapidocr") is None and not os.environ.get("CI"):
    pytest.skip("the extra [local] is not installed", allow_module_level=True)

from benchmarks.recognition import pictures
from benchmarks.recognition.calibration import MIN_OVERLAP, Answer, ask_all


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    """The answers of the provider to some pictures of each kind."""
    return ask_all(pictures.few())


def test_set_has_enough_pictures_of_each_kind() -> None:
    """The complete set, which the benchmark uses, has 120 pictures or more, and each drawing of one is the same."""
    found = pictures.pictures()
    assert len(found) >= 120 and len({picture.name for picture in (*found, *pictures.held_out())}) == len(found) + 43
    assert {picture.kind for picture in pictures.few()} == {picture.kind for picture in found}
    first, second = (found[0].draw()[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.fault("U21")
@pytest.mark.fault("U23")
@pytest.mark.parametrize("name", ["brand", "model", "colorway"])
def test_confident_values_are_right(answers: list[Answer], name: str) -> None:
    """Of the values with a confidence over 0.8, nine of ten are right."""
    rights = [right for answer in answers for each, sure, right in answer.claims() if each == name and sure > 0.8]
    assert len(rights) >= 5
    assert sum(rights) >= 0.9 * len(rights)


@pytest.mark.fault("U20")
def test_no_picture_is_turned_wrongly(answers: list[Answer]) -> None:
    """No picture is turned to a wrong side, and pictures with enough lettering are turned upright."""
    assert not [answer.picture.name for answer in answers if answer.is_turned_wrongly]
    assert [answer for answer in answers if answer.turn is not None]


@pytest.mark.fault("U22")
def test_no_part_number_and_no_product_line_is_a_model(answers: list[Answer]) -> None:
    """A named model has a confidence of 0.5 or more, and is never a part number or a product line."""
    for answer in answers:
        assert not answer.model[0] or answer.model[1] >= 0.5
        if answer.picture.kind in ("part numbers", "product line", "lens lettering"):
            assert answer.model[0] in ("", answer.picture.model), answer.picture.name


@pytest.mark.fault("U24")
def test_legible_names_are_passed_on(answers: list[Answer]) -> None:
    """A name that is not in the lexicon is passed on as text, and as a brand with low confidence."""
    unlisted = [answer for answer in answers if answer.picture.kind == "not listed"]
    assert unlisted
    for answer in unlisted:
        assert answer.text
        assert answer.brand[1] <= 0.35


@pytest.mark.fault("U25")
def test_no_product_is_cut_to_pieces(answers: list[Answer]) -> None:
    """A product that is cut out is complete; a product on a white background is not cut out."""
    cut = [(answer.picture, answer.overlap) for answer in answers if answer.overlap is not None]
    assert cut
    assert not [picture.name for picture, overlap in cut if overlap < MIN_OVERLAP or picture.background == "white"]
