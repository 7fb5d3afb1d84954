"""Finds names of the lexicon in lettering that may be misread: "CAN0N" is Canon, a bit less surely; "Canyon" is not.

Pure, except that it reads lexicon.json beside it. The similarity of two spellings:
- the same letters and digits (case, accents, spaces, hyphens aside): 1;
- letters read as look-alikes (O and 0, I and 1, S and 5, ...): 0.85 for each, up to half of them, names of four
  and more only;
- other misread letters: 0.75 for each, one in names of eight and more, two in names of twelve and more, never in a
  digit or the first letter;
- one additional gap inside a name of six or more: 0.75.
Shorter names are too similar to ordinary words ("like" and "Nike", "salmon" and "Salomon") for more tolerance.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from rapidfuzz import process
from rapidfuzz.distance import OSA

from .line import Line

LOOK_ALIKE = 0.85
SLIP = 0.75
LONG_NAME = 8
OTHER_CATEGORY = 0.7  # a brand of another category is less likely, but cameras do get uploaded as "other"
COMMON_WORD = 0.8  # "On" or "Globe" alone on a line is probably the brand, in a sentence it is not
MAX_WORDS = 400  # a photographed page of text must not cost seconds
CATEGORIES = ("sneaker", "lego", "camera", "other")  # of the lexicon; any other category counts as the last one

FOLDED = str.maketrans("012345678lqu", "oizeasgtbiov")
BETWEEN_WORDS = re.compile(r"[\s/,;:|()\[\]{}\"“”«»•·®™©]+")


def plain(text: str) -> str:
    """Return the letters and digits of a text, lower case, without accents."""
    return "".join(char for char in unicodedata.normalize("NFKD", text).casefold() if char.isalnum())


@dataclass(frozen=True, slots=True, eq=False)
class Word:
    """One word of a line; several make a phrase."""

    text: str
    line: Line


@dataclass(frozen=True, slots=True, eq=False)
class Brand:
    """A brand as one category of the lexicon has it.

    lines: families of products, such as Lumix; they name the brand, but no model.
    patterns: of its model designations.
    is_common: its name is an everyday word.
    is_part: its name is written on products of other brands too: makers of lenses and chips, names on screens.
    """

    name: str
    spellings: tuple[str, ...]
    models: tuple[str, ...]
    lines: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    is_common: bool
    is_part: bool


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A name that is written in the picture.

    similarity: of the spelling, 0 to 1.
    confidence: similarity times the OCR's certainty.
    """

    name: str
    brand: Brand
    words: tuple[Word, ...]
    similarity: float

    @property
    def confidence(self) -> float:
        return self.similarity * min(word.line.score for word in self.words)

    @property
    def height(self) -> float:
        """Height of its letters in pixels."""
        return max(word.line.height for word in self.words)


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    brand: Brand
    plain: str
    words: int


class Names:
    """Many names that are searched for together."""

    def __init__(self, names: Iterable[tuple[str, str, Brand]]) -> None:
        """names: (name, one spelling of it, its brand) of each."""
        self._by_fold: dict[str, list[_Entry]] = defaultdict(list)
        for name, spelling, brand in names:
            entry = _Entry(name, brand, plain(spelling), len(BETWEEN_WORDS.split(spelling)))
            self._by_fold[entry.plain.translate(FOLDED)].append(entry)
        self._long = [fold for fold in self._by_fold if len(fold) >= LONG_NAME]

    def find(self, words: list[Word]) -> Iterator[Match]:
        """Yield every occurrence of every name."""
        for start in range(len(words)):
            seen = ""
            for end in range(start + 1, min(start + 6, len(words) + 1)):
                seen += plain(words[end - 1].text)
                yield from self._match(seen, tuple(words[start:end]))

    def starts(self, word: str) -> int:
        """Return how many characters at the start of a word form one of these names, 0 for none."""
        fold = word.casefold().translate(FOLDED)
        return next((length for length in range(len(fold) - 1, 3, -1) if fold[:length] in self._by_fold), 0)

    def _match(self, seen: str, words: tuple[Word, ...]) -> Iterator[Match]:
        fold = seen.translate(FOLDED)
        lines = len({id(word.line) for word in words})
        near = [fold]
        if len(fold) >= LONG_NAME - 1:
            near += [each for each, _, _ in process.extract(fold, self._long, scorer=OSA.distance, score_cutoff=2)]
        for entry in {id(entry): entry for each in near for entry in self._by_fold.get(each, ())}.values():
            if lines > entry.words:  # a name broken over lines breaks between its words
                continue
            if len(words) <= entry.words:
                similarity = _similarity(seen, entry.plain)
            else:
                similarity = SLIP if len(seen) >= 6 and len(words) == entry.words + 1 and seen == entry.plain else 0.0
            if similarity:
                yield Match(entry.name, entry.brand, words, similarity)


def _similarity(seen: str, name: str) -> float:
    if seen == name:
        return 1.0
    if len(name) < 4:
        return 0.0
    fold, name_fold = seen.translate(FOLDED), name.translate(FOLDED)
    if fold == name_fold:
        look_alikes = sum(one != other for one, other in zip(seen, name, strict=True))
        return LOOK_ALIKE**look_alikes if 2 * look_alikes <= len(name) else 0.0
    slips, most = OSA.distance(fold, name_fold), 2 if len(name) >= 12 else 1
    if slips > most or len(name) < LONG_NAME or fold[0] != name_fold[0] or _digits(seen) != _digits(name):
        return 0.0
    return float(SLIP**slips)


def _digits(text: str) -> list[str]:
    return [char for char in text if char.isdigit()]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Brands, models and product lines of each category, and the words on packages that name no product."""

    brands: dict[str, Names]
    models: dict[str, Names]
    lines: dict[str, Names]
    noise: frozenset[str]
    _models_of: dict[int, Names] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Lexicon:
        """Return the lexicon that comes with this package."""
        content = json.loads(files("pipeline.plugins.ai_local").joinpath("lexicon.json").read_text(encoding="utf-8"))
        brands = {
            category: [_brand(name, entry) for name, entry in content["brands"][category].items()]
            for category in CATEGORIES
        }
        return cls(
            {category: Names((b.name, s, b) for b in brands[category] for s in b.spellings) for category in CATEGORIES},
            {category: Names((m, m, b) for b in brands[category] for m in b.models) for category in CATEGORIES},
            {category: Names((m, m, b) for b in brands[category] for m in b.lines) for category in CATEGORIES},
            frozenset(map(plain, content["noise"])),
        )

    def words(self, lines: Iterable[Line]) -> list[Word]:
        """Return the words of all lines in order; a brand that the OCR joined to a model number becomes a word."""
        words = []
        for line in lines:
            for text in filter(plain, BETWEEN_WORDS.split(unicodedata.normalize("NFKC", line.text))):
                cut = max(names.starts(text) for names in self.brands.values())
                parts = (text[:cut], text[cut:]) if cut and any(map(str.isdigit, text[cut:])) else (text,)
                words += [Word(part, line) for part in parts]
        return words[:MAX_WORDS]

    def find_brands(self, words: list[Word], category: str) -> list[Match]:
        """Return the brands that occur, those of other categories with a lower similarity."""
        matches = []
        for each, names in self.brands.items():
            for match in names.find(words):
                if match.brand.is_common and (each != category or not _stands_alone(match, words)):
                    continue
                weight = (1 if each == category else OTHER_CATEGORY) * (COMMON_WORD if match.brand.is_common else 1)
                matches.append(Match(match.name, match.brand, match.words, match.similarity * weight))
        return matches

    def models_of(self, brand: Brand) -> Names:
        """Return the listed models of one brand."""
        if id(brand) not in self._models_of:
            self._models_of[id(brand)] = Names((model, model, brand) for model in brand.models)
        return self._models_of[id(brand)]


def _stands_alone(match: Match, words: list[Word]) -> bool:
    line = match.words[0].line
    return match.similarity == 1 and len(match.words) == sum(word.line is line for word in words)


def _brand(name: str, entry: dict[str, Any]) -> Brand:
    patterns = tuple(re.compile(pattern, re.IGNORECASE) for pattern in entry.get("patterns", ()))
    spellings = (name, *entry.get("aliases", ()))
    models, lines = tuple(entry.get("models", ())), tuple(entry.get("lines", ()))
    return Brand(name, spellings, models, lines, patterns, entry.get("common", False), entry.get("part", False))
