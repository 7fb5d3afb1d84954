"""The offline provider on drawn pictures of the hard kinds: it knows how sure it is, and in doubt it does nothing."""

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
    """What the provider says about some pictures of each kind."""
    return ask_all(pictures.few())


def test_set_has_enough_pictures_of_each_kind() -> None:
    """The whole set is what the benchmark asks about; it is the same each time."""
    found = pictures.pictures()
    assert len(found) >= 120 and len({picture.name for picture in (*found, *pictures.held_out())}) == len(found) + 43
    assert {picture.kind for picture in pictures.few()} == {picture.kind for picture in found}
    first, again = (found[0].draw()[0] for _ in range(2))
    assert first.tobytes() == again.tobytes()


@pytest.mark.fault("U21")
@pytest.mark.fault("U23")
@pytest.mark.parametrize("name", ["brand", "model", "colorway"])
def test_what_is_said_surely_is_right(answers: list[Answer], name: str) -> None:
    """Of what is said with more than 0.8, nine of ten are right."""
    rights = [right for answer in answers for each, sure, right in answer.claims() if each == name and sure > 0.8]
    assert len(rights) >= 5
    assert sum(rights) >= 0.9 * len(rights)


@pytest.mark.fault("U20")
def test_no_picture_is_turned_wrongly(answers: list[Answer]) -> None:
    """A picture is turned upright or not at all, and those with enough lettering are."""
    assert not [answer.picture.name for answer in answers if answer.is_turned_wrongly]
    assert [answer for answer in answers if answer.turn is not None]


@pytest.mark.fault("U22")
def test_no_part_number_and_no_product_line_is_a_model(answers: list[Answer]) -> None:
    """A model that is named at all is at least as likely right as wrong, and never a number of another kind."""
    for answer in answers:
        assert not answer.model[0] or answer.model[1] >= 0.5
        if answer.picture.kind in ("part numbers", "product line", "lens lettering"):
            assert answer.model[0] in ("", answer.picture.model), answer.picture.name


@pytest.mark.fault("U24")
def test_legible_names_are_handed_on(answers: list[Answer]) -> None:
    """A name that is not in the lexicon is handed on as text, and of category `other` a doubtful brand."""
    unlisted = [answer for answer in answers if answer.picture.kind == "not listed"]
    assert unlisted
    for answer in unlisted:
        assert answer.text
        assert answer.brand[1] <= 0.35


@pytest.mark.fault("U25")
def test_no_product_is_cut_to_pieces(answers: list[Answer]) -> None:
    """What is cut out is whole; what stands on white is left as it is."""
    cut = [(answer.picture, answer.overlap) for answer in answers if answer.overlap is not None]
    assert cut
    assert not [picture.name for picture, overlap in cut if overlap < MIN_OVERLAP or picture.background == "white"]
