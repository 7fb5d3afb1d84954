"""The set: each picture with the right answers; a picture is drawn when it is needed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Transpose

from benchmarks.recognition import table
from benchmarks.recognition.held_out import ROWS as HELD_OUT
from benchmarks.recognition.scenes import photograph
from benchmarks.recognition.table import Product, Row

TURNS = {90: Transpose.ROTATE_90, 180: Transpose.ROTATE_180, 270: Transpose.ROTATE_270}
KINDS = {
    "no lettering": table.NOTHING,
    "plain": table.PLAIN,
    "lens lettering": table.LENS,
    "screen": table.SCREENS,
    "pastel": table.PASTEL,
    "small lettering": table.SMALL,
    "cluttered": table.CLUTTERED,
    "product line": table.LINES,
    "not listed": table.UNLISTED,
    "part numbers": table.GARBAGE,
    "hardly stands out": table.UNEASY,
}
FEW = (
    *("no lettering 9", "plain 7", "lens lettering 0", "screen 4", "pastel 12", "small lettering 3", "cluttered 1"),
    *("product line 3", "not listed 2", "part numbers 4", "hardly stands out 2", "turned 0", "turned, no lettering 2"),
    "dark 2",
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and the truth about it.

    brand, model: "" when the picture does not tell.
    colors: the names that are right for the product's main colour.
    options: of `photograph`.
    turn: by how many degrees the photo was turned, counterclockwise.
    """

    name: str
    kind: str
    category: str
    background: str
    product: Product
    brand: str
    model: str
    colors: frozenset[str]
    options: dict[str, float] = field(default_factory=dict)
    turn: int = 0

    def draw(self) -> tuple[Image.Image, NDArray[np.bool_]]:
        """Return the photo and where the product is in it."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        photo, mask = photograph(self.product(), self.background, rng, **self.options)
        if not self.turn:
            return photo, mask
        turn = TURNS[self.turn]
        return photo.transpose(turn), np.asarray(Image.fromarray(mask).transpose(turn))

    @property
    def turn_back(self) -> Transpose | None:
        """Return what brings the picture upright, None when it is."""
        return TURNS[360 - self.turn] if self.turn else None


def pictures() -> list[Picture]:
    """Return the whole set, always in the same order."""
    found = [_picture(kind, number, row) for kind, rows in KINDS.items() for number, row in enumerate(rows)]
    return [*found, *_turned(), *_dark()]


def held_out() -> list[Picture]:
    """Return the pictures that no rule was made with."""
    found = [_picture("held out", number, row) for number, row in enumerate(HELD_OUT)]
    lettered = [row for row in HELD_OUT if row[3]]
    for number, row in enumerate(lettered[1::6]):
        found.append(_picture("held out, turned", number, row, turn=(180, 90, 270)[number % 3]))
    for number, row in enumerate(lettered[::8]):
        found.append(_picture("held out, dark", number, row, options={"light": 0.4}))
    return found


def few() -> list[Picture]:
    """Return one picture of each kind and some more with lettering, for a test that has no time for all."""
    by_name = {picture.name: picture for picture in pictures()}
    return [by_name[name] for name in FEW]


def _turned() -> Iterator[Picture]:
    lettered = [*table.PLAIN[:12:2], *table.PLAIN[12::3]]
    for number, row in enumerate(lettered):
        yield _picture("turned", number, row, turn=(90, 180, 270)[number % 3])
    for number, row in enumerate(table.NOTHING[::3]):
        yield _picture("turned, no lettering", number, row, turn=(90, 180, 270)[number % 3])


def _dark() -> Iterator[Picture]:
    for number, row in enumerate((*table.PLAIN[::5], *table.NOTHING[4:8:3])):
        yield _picture("dark", number, row, options={"light": 0.3 + 0.03 * number})


def _picture(kind: str, number: int, row: Row, **more: Any) -> Picture:
    category, background, product, brand, model, colors = row
    names = frozenset(name for name in ("Light Blue",) if name in colors) | frozenset(
        colors.replace("Light Blue", "").split()
    )
    return Picture(f"{kind} {number}", kind, category, background, product, brand, model, names, **more)
