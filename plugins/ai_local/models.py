"""Decides from the lettering which brand and model it is. Pure.

A confidence is the OCR's certainty x how well the spelling matches (lexicon.py) x what the rule is worth:
- a model the lexicon lists, or one written as that brand writes its models: 1 and 0.9; a LEGO set number: 0.95 with
  five digits, 0.8 with four, 0.7 with six;
- otherwise a word of letters and digits beside the brand: 0.6; otherwise the largest other words: 0.35;
- a brand that is not written anywhere but known from its model: 0.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.hooks import UNKNOWN, Attribute
from plugins.ai_local.lexicon import Brand, Lexicon, Match, Word, plain
from plugins.ai_local.line import Line

PATTERN = 0.9
DESIGNATION = 0.6
LETTERING = 0.35
THEME_ALONE = 0.6
INFERRED_BRAND = 0.6
SET_NUMBER = {4: 0.8, 5: 0.95, 6: 0.7}
MISREAD_DIGIT = 0.85
MIN_TELLING_LETTERS = 5  # a shorter model name says nothing about the brand

MOST = 0.99  # nothing read off a photo is certain

LEGO = "lego"
AS_DIGITS = str.maketrans("OoIlSBZ", "0011582")
NUMBER = re.compile(r"(?<![\w.,])[\dOoIlSBZ]{4,6}(?![\w]|[.,]\d)")
PIECES = re.compile(r"\b\d{2,5}\s*(?:pcs?|pzs?|pieces|piezas|pièces|pièzas|teile|elements?|stk)\b.*", re.IGNORECASE)
YEAR = re.compile(r"(?:19[5-9]|20[0-3])\d")
DESIGNATED = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9.+-]{2,19}")
MEASURE = re.compile(
    r"[\d.,x]+(?:mm|cm|m|in|ft|pcs|gb|tb|mb|mp|ml|l|cl|kg|g|oz|v|w|a|ma|mah|hz|khz|mhz|ghz|k|fps|st|nd|rd|th|\+)?"
    r"|(?:us|uk|eu|eur|f|iso|no|usb|mp|ip)[\d.,]+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Candidate:
    value: str
    confidence: float
    rank: float


def name_product(lines: list[Line], category: str, lexicon: Lexicon) -> tuple[Attribute, Attribute]:
    """Return (brand, model), each UNKNOWN when the lettering does not tell. lines: what can be read, top to bottom."""
    words = lexicon.words(lines)
    tallest = max((line.height for line in lines), default=1.0)
    seen = max(
        lexicon.find_brands(words, category),
        key=lambda match: match.confidence * (0.5 + 0.5 * match.height / tallest),
        default=None,
    )
    if seen is None:
        return _infer(words, lines, category, lexicon)
    brand = Attribute(seen.name, _confidence(seen.confidence))
    return brand, _best(_models(seen.brand, seen, words, lines, lexicon))


def _infer(words: list[Word], lines: list[Line], category: str, lexicon: Lexicon) -> tuple[Attribute, Attribute]:
    """Return the brand whose model is written on a product that does not show the brand."""
    telling = [match for match in lexicon.models[category].find(words) if _is_telling(match, category)]
    if not telling:
        return UNKNOWN, UNKNOWN
    match = max(telling, key=_model_rank)
    if category == LEGO and not _set_numbers(lines):
        return UNKNOWN, UNKNOWN  # "City" or "Friends" alone stands on many things
    model = _best(_models(match.brand, match, words, lines, lexicon))
    return Attribute(match.brand.name, _confidence(match.confidence * INFERRED_BRAND)), model


def _is_telling(match: Match, category: str) -> bool:
    """True for "Air Max 90" or "Old Skool", false for "Response" or "Ghost", which stand on anything."""
    letters = plain(match.name)
    is_special = category == LEGO or len(match.words) > 1 or any(map(str.isdigit, letters))
    return match.similarity == 1 and is_special and len(letters) >= MIN_TELLING_LETTERS and not letters.isdigit()


def _models(brand: Brand, seen: Match, words: list[Word], lines: list[Line], lexicon: Lexicon) -> list[_Candidate]:
    """Return what may be the model, by the best rule that finds anything."""
    listed = list(lexicon.models_of(brand).find(words))
    if brand.name.casefold() == LEGO:
        return _sets(listed, lines)
    known = [_Candidate(match.name, match.confidence, _model_rank(match)) for match in listed]
    known += _by_pattern(brand, words)
    used = {id(word) for word in seen.words}
    free = [word for word in words if id(word) not in used]
    return known or _designations(free) or _lettering(free, seen, lexicon)


def _sets(themes: list[Match], lines: list[Line]) -> list[_Candidate]:
    theme = max(themes, key=_model_rank, default=None)
    numbers = _set_numbers(lines)
    if theme is None:
        return numbers
    if not numbers:
        return [_Candidate(theme.name, theme.confidence * THEME_ALONE, 1)]
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
                    confidence = line.score * PATTERN
                    found.append(_Candidate(value, confidence, confidence * len(plain(value))))
    return found


def _designations(words: list[Word]) -> list[_Candidate]:
    return [
        _Candidate(word.text, word.line.score * DESIGNATION, word.line.score * word.line.height)
        for word in words
        if DESIGNATED.fullmatch(word.text) and not MEASURE.fullmatch(word.text)
    ]


def _lettering(words: list[Word], brand: Match, lexicon: Lexicon) -> list[_Candidate]:
    phrases: dict[int, list[Word]] = {}
    for word in words:
        phrases.setdefault(id(word.line), []).append(word)
    found = []
    for phrase in phrases.values():
        line, value = phrase[0].line, " ".join(word.text for word in phrase)
        is_telling = sum(map(str.isalpha, value)) >= 3 and not all(plain(word.text) in lexicon.noise for word in phrase)
        if is_telling and len(phrase) <= 4 and line.height >= 0.5 * brand.height and line.score >= 0.8:
            found.append(_Candidate(value, line.score * LETTERING, line.height))
    return found


def _model_rank(match: Match) -> float:
    return match.confidence * len(plain(match.name))


def _best(candidates: list[_Candidate]) -> Attribute:
    best = max(candidates, key=lambda each: each.rank, default=None)
    return Attribute(best.value, _confidence(best.confidence)) if best else UNKNOWN


def _confidence(value: float) -> float:
    return round(min(MOST, value), 3)
