"""Names brand and model from the lettering. Pure.

A confidence is the OCR's certainty x the similarity of the spelling (lexicon.py) x the factor of the rule:
- a model that the lexicon lists: 1; a word with the pattern of the brand's models: 0.9; a listed model with the version
  after it ("Ghost 15", "EOS R6 Mark II"): 0.9; 0.75 when the model has at most two characters, is one everyday word in
  a sentence, or is followed by a number that may be a size; a LEGO set number: 0.95 with five digits, 0.8 with four,
  0.7 with six;
- otherwise a word of letters and digits beside the brand, nearly as large: 0.6;
- a model below 0.5 is no answer, and a product line ("Lumix", a LEGO theme) is no model;
- a brand that is written nowhere but follows from its model: 0.6;
- a maker of lenses, chips or pages (`is_part`) without a model of its own: never beside another brand; else 0.6 on a
  camera, and 0.35 beside lettering of lenses and on any other product;
- a brand after "for", "fits" and similar words, as on chargers and cases for its products: 0.35;
- two brands of about the same size: 0.75;
- otherwise, in category `other`: the largest word, 0.35.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.hooks import UNKNOWN, Attribute
from .lexicon import CATEGORIES, Brand, Lexicon, Match, Word, plain
from .line import Line

PATTERN = 0.9
DESIGNATION = 0.6
SHORT_MODEL = 0.75
IN_A_SENTENCE, BEFORE_A_SIZE, VERSION_ADDED = 0.75, 0.75, 0.9
MIN_MODEL = 0.5
LARGEST_WORD = 0.35
PART_OF_CAMERA, PART = 0.6, 0.35
RIVAL, NEAR_RANK = 0.75, 0.6
INFERRED_BRAND = 0.6
SET_NUMBER = {4: 0.8, 5: 0.95, 6: 0.7}
MISREAD_DIGIT = 0.85
MIN_TELLING_LETTERS = 5  # a shorter model name does not identify the brand

MOST = 0.99  # nothing read from a photo is certain

MIN_LEGIBLE = 0.9
MAX_TEXTS, MAX_TEXT_LENGTH = 20, 80
STANDS_OUT = 1.2  # times the height of the next line

LEGO, CAMERA, OTHER = "lego", "camera", "other"
AS_DIGITS = str.maketrans("OoIlSBZ", "0011582")
NUMBER = re.compile(r"(?<![\w.,])[\dOoIlSBZ]{4,6}(?![\w]|[.,]\d)")
PIECES = re.compile(r"\b\d{2,5}\s*(?:pcs?|pzs?|pieces|piezas|pièces|pièzas|teile|elements?|stk)\b.*", re.IGNORECASE)
YEAR = re.compile(r"(?:19[5-9]|20[0-3])\d")
DESIGNATED = re.compile(r"(?=.*\d)(?=.*[A-Za-z])(?!.*\d{5})[A-Za-z0-9]+(?:[.+-][A-Za-z0-9]+)?\+?")
MAX_DESIGNATION, MIN_DESIGNATION_HEIGHT = 14, 0.4  # characters; of the brand's height: smaller words are small print
NUMBERED = frozenset("no nr sn n id fcc lot ean ref ser serial pat part item".split())  # before a part number
FOR = frozenset("for fits compatible with works für fuer pour para per".split())  # before the brand of another product
VERSION = re.compile(
    r"(?:(?:mark|mk) ?)?(?:[2-9]|[12]\d|3[0-4]|i{2,3}|iv|vi{0,3}|ix)|v\d{1,2}|pro|plus|max|mini|ultra|lite|se",
    re.IGNORECASE,
)
SIZE = re.compile(r"3[5-9]|4\d|5[0-2]|\d{1,2}[.,]\d")
OPTICS = re.compile(
    r"1:\d|\bf/? ?\d|\d ?mm\b|\blens\b|asph|summi|elmar|vario|tessar|sonnar|planar|distagon|nokton|T\*",
    re.IGNORECASE,
)
MEASURE = re.compile(
    r"[\d.,x]+(?:mm|cm|m|in|ft|pcs|gb|tb|mb|mp|ml|l|cl|kg|g|oz|v|w|a|ma|mah|ah|hz|khz|mhz|ghz|k|fps|st|nd|rd|th|\+)?"
    r"|(?:us|uk|eu|eur|f|iso|no|usb|mp|ip)[\d.,]+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Candidate:
    value: str
    confidence: float
    rank: float


def name_product(lines: list[Line], category: str, lexicon: Lexicon) -> tuple[Attribute, Attribute]:
    """Return (brand, model), each UNKNOWN when the lettering does not name it.

    lines: the legible lines, top to bottom.
    category: one that the lexicon does not know counts as `other`.
    """
    if category not in CATEGORIES:
        category = OTHER
    words = lexicon.words(lines)
    match, model, weight = _written(words, lines, category, lexicon) or _inferred(words, lines, category, lexicon)
    if match is None:
        return _largest_word(lines, lexicon) if category == OTHER else UNKNOWN, UNKNOWN
    brand = Attribute(match.brand.name, _confidence(match.confidence * weight))
    return brand, model if model.confidence >= MIN_MODEL else UNKNOWN


def legible_texts(lines: list[Line]) -> list[str]:
    """Return the texts that are surely legible, the largest first, each once."""
    sure = [line for line in lines if line.score >= MIN_LEGIBLE and sum(map(str.isalpha, line.text)) >= 3]
    texts = (line.text.strip()[:MAX_TEXT_LENGTH] for line in sorted(sure, key=lambda line: -line.height))
    return list(dict.fromkeys(texts))[:MAX_TEXTS]


_Named = tuple[Match | None, Attribute, float]  # the brand, its model, and the factor of the rule


def _written(words: list[Word], lines: list[Line], category: str, lexicon: Lexicon) -> _Named | None:
    """Return the brand that is written on the product, None when there is none."""
    found = lexicon.find_brands(words, category)
    if not found:
        return None
    tallest = max(line.height for line in lines)

    def rank(match: Match) -> float:
        return match.confidence * (0.5 + 0.5 * match.height / tallest)

    models = {id(match): _best(_models(match.brand, match, words, lines, lexicon)) for match in found}
    own = [
        match
        for match in found
        if not _is_for(match, words) and (not match.brand.is_part or models[id(match)].confidence >= MIN_MODEL)
    ]
    best = max(own or found, key=rank)
    if not own:
        is_doubtful = category != CAMERA or _is_on_lens(best, lines) or _is_for(best, words)
        return best, UNKNOWN, PART if is_doubtful else PART_OF_CAMERA
    return best, models[id(best)], RIVAL if _has_rival(best, own, rank) else 1.0


def _is_for(match: Match, words: list[Word]) -> bool:
    """Return True for "charger for Canon": it names the product that this one is for."""
    before = _neighbour(match.words[0], words, -1)
    return before is not None and plain(before.text) in FOR


def _neighbour(word: Word, words: list[Word], step: int) -> Word | None:
    """Return the word before (-1) or after (1) this word on its line."""
    index = next(number for number, each in enumerate(words) if each is word) + step
    return words[index] if 0 <= index < len(words) and words[index].line is word.line else None


def _is_on_lens(match: Match, lines: list[Line]) -> bool:
    """Return True when typical lettering of lenses is there in letters of about the same height."""
    return any(OPTICS.search(line.text) and line.height >= 0.6 * match.height for line in lines)


def _has_rival(best: Match, found: list[Match], rank: Callable[[Match], float]) -> bool:
    used = set(map(id, best.words))
    return any(
        match.name != best.name and used.isdisjoint(map(id, match.words)) and rank(match) >= NEAR_RANK * rank(best)
        for match in found
    )


def _inferred(words: list[Word], lines: list[Line], category: str, lexicon: Lexicon) -> _Named:
    """Return the brand whose model or line is written on a product that does not show the brand."""
    listed = [*lexicon.models[category].find(words), *lexicon.lines[category].find(words)]
    telling = [match for match in listed if _is_telling(match, category)]
    # "City" or "Friends" alone is written on many products.
    if not telling or category == LEGO and not _set_numbers(lines):
        return None, UNKNOWN, 0.0
    match = max(telling, key=_model_rank)
    return match, _best(_models(match.brand, match, words, lines, lexicon)), INFERRED_BRAND


def _largest_word(lines: list[Line], lexicon: Lexicon) -> Attribute:
    """Return the word that is clearly the largest as an unlisted brand."""
    by_height = sorted((line for line in lines if line.score >= MIN_LEGIBLE), key=lambda line: -line.height)
    if not by_height or len(by_height) > 1 and by_height[0].height < STANDS_OUT * by_height[1].height:
        return UNKNOWN
    words = by_height[0].text.split()
    telling = [word for word in words if sum(map(str.isalpha, word)) >= 3 and plain(word) not in lexicon.noise]
    if not telling or len(words) > 3:
        return UNKNOWN
    return Attribute(max(telling, key=len), round(by_height[0].score * LARGEST_WORD, 3))


def _is_telling(match: Match, category: str) -> bool:
    """True for "Air Max 90" or "Old Skool", false for "Response" or "Ghost", which many products show."""
    letters = plain(match.name)
    is_special = category == LEGO or len(match.words) > 1 or any(map(str.isdigit, letters))
    return match.similarity == 1 and is_special and len(letters) >= MIN_TELLING_LETTERS and not letters.isdigit()


def _models(brand: Brand, seen: Match, words: list[Word], lines: list[Line], lexicon: Lexicon) -> list[_Candidate]:
    """Return the candidates for the model, by the best rule that has any."""
    listed = list(lexicon.models_of(brand).find(words))
    if brand.name.casefold() == LEGO:
        return _sets(listed, lines)
    known = [_as_written(match, seen, words) for match in listed]
    return known + _by_pattern(brand, words) or _designations(seen, words)


def _as_written(match: Match, brand: Match, words: list[Word]) -> _Candidate:
    """Return a listed model with the version after it."""
    version = _version(match, words)
    if version:
        added = " ".join(word.text for word in version)
        rank = VERSION_ADDED * (_model_rank(match) + len(plain(added)))
        return _Candidate(f"{match.name} {added}", match.confidence * VERSION_ADDED, rank)
    worth, after = _worth(match.name), _neighbour(match.words[-1], words, 1)
    if after is not None and SIZE.fullmatch(after.text):
        worth = min(worth, BEFORE_A_SIZE)
    elif len(match.words) == 1 and match.name.isalpha() and _has_more(match, brand, words):
        worth = min(worth, IN_A_SENTENCE)
    return _Candidate(match.name, match.confidence * worth, _model_rank(match))


def _version(match: Match, words: list[Word]) -> list[Word]:
    """Return the one or two words after a model that are its version: "15", "II", "Mark II"."""
    after = _neighbour(match.words[-1], words, 1)
    following = [after, _neighbour(after, words, 1)] if after is not None else []
    for count in (2, 1):
        version = [word for word in following[:count] if word is not None]
        text = " ".join(word.text for word in version)
        # After a name that ends with a number, another number is no version, perhaps a size.
        if len(version) == count and VERSION.fullmatch(text) and not (match.name[-1].isdigit() and text.isdigit()):
            return version
    return []


def _has_more(match: Match, brand: Match, words: list[Word]) -> bool:
    """Return True when there are other words on the line than the model's and the brand's."""
    own = set(map(id, (*match.words, *brand.words)))
    return any(word.line is match.words[0].line and id(word) not in own for word in words)


def _worth(model: str) -> float:
    return SHORT_MODEL if len(plain(model)) <= 2 else 1.0


def _sets(themes: list[Match], lines: list[Line]) -> list[_Candidate]:
    theme = max(themes, key=_model_rank, default=None)
    numbers = _set_numbers(lines)
    if theme is None:
        return numbers
    return [_Candidate(f"{theme.name} {n.value}", n.confidence * theme.confidence, n.rank) for n in numbers]


def _set_numbers(lines: Iterable[Line]) -> list[_Candidate]:
    found = []
    for line in lines:
        for text in NUMBER.findall(PIECES.sub("", line.text)):
            misread = sum(not char.isdigit() for char in text)
            number = text.translate(AS_DIGITS)
            if misread > len(text) - 3 or YEAR.fullmatch(number) or number.startswith("0"):
                continue
            confidence = line.score * SET_NUMBER[len(number)] * MISREAD_DIGIT**misread
            found.append(_Candidate(number, confidence, confidence * line.height))
    return found


def _by_pattern(brand: Brand, words: list[Word]) -> list[_Candidate]:
    texts: dict[int, list[Word]] = {}
    for word in words:
        texts.setdefault(id(word.line), []).append(word)
    found = []
    for group in texts.values():
        line = group[0].line
        for pattern in brand.patterns:
            for match in pattern.finditer(" ".join(word.text for word in group)):
                value = " ".join(match[0].split())
                if not YEAR.fullmatch(value):
                    confidence = line.score * PATTERN * _worth(value)
                    found.append(_Candidate(value, confidence, confidence * len(plain(value))))
    return found


def _designations(brand: Match, words: list[Word]) -> list[_Candidate]:
    """Return the words of letters and digits, except measures, part numbers and small print."""
    candidates, before = [], None
    for word in words:
        is_numbered = before is not None and before.line is word.line and plain(before.text) in NUMBERED
        before, line = word, word.line
        if (
            not (is_numbered or any(word is used for used in brand.words))
            and 3 <= len(word.text) <= MAX_DESIGNATION
            and DESIGNATED.fullmatch(word.text)
            and not MEASURE.fullmatch(word.text)
            and line.height >= MIN_DESIGNATION_HEIGHT * brand.height
        ):
            candidates.append(_Candidate(word.text, line.score * DESIGNATION, line.score * line.height))
    return candidates


def _model_rank(match: Match) -> float:
    return match.confidence * len(plain(match.name))


def _best(candidates: list[_Candidate]) -> Attribute:
    best = max(candidates, key=lambda each: each.rank, default=None)
    return Attribute(best.value, _confidence(best.confidence)) if best else UNKNOWN


def _confidence(value: float) -> float:
    return round(min(MOST, value), 3)
