"""The demo pictures that come with the service, drawn by draw.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.settings import DEFAULT_CATEGORIES

FILED = ("camera", "lego", "sneaker", "other")


def pictures(categories: Sequence[str] = DEFAULT_CATEGORIES) -> list[tuple[Path, str]]:
    """Return (file, category) of each demo picture; all are JPEG files.

    categories: those there are. A picture that fits none of them is filed under `other` or, without that, the last.
    """
    rest = "other" if "other" in categories else categories[-1]
    folder = Path(__file__).parent
    return [(folder / f"{name}.jpg", name if name in categories else rest) for name in FILED]
