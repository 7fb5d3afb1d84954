"""One line of text in the picture, as the OCR returns it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One line of text.

    score: the OCR's mean certainty per letter, 0 to 1.
    box: its four corners in pixels, in reading order from the top left.
    """

    text: str
    score: float
    box: NDArray[np.float32]

    @property
    def height(self) -> float:
        """Height of the letters in pixels."""
        return min(self._sides())

    @property
    def is_upended(self) -> bool:
        """True when the line runs up or down the picture."""
        along, across = self._sides()
        return across > 1.5 * along

    def _sides(self) -> tuple[float, float]:
        start, end, _, below = self.box
        return float(np.linalg.norm(end - start)), float(np.linalg.norm(below - start))
