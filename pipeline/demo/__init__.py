"""The demo pictures that come with the service. docs/pictures/demo_pictures.py in the repository draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.settings import DEFAULT_CATEGORIES

FILED = ("camera", "lego", "sneaker", "other")


def pictures(categories: Sequence[str] = DEFAULT_CATEGORIES) -> list[tuple[Path, str]]:
    """Return (file, category) of each picture that all AI providers can name; all are JPEG files.

    categories: those there are. A picture that fits none of them is filed under `other` or, without that, the last.
    """
    return [_filed(name, name, categories) for name in FILED]


def shown(categories: Sequence[str] = DEFAULT_CATEGORIES) -> list[tuple[Path, str]]:
    """Return what `demo` uploads: two of them, and a sneaker without lettering, which the offline AI cannot name."""
    return [*pictures(categories)[:2], _filed("bare-sneaker", "sneaker", categories)]


def _filed(name: str, category: str, categories: Sequence[str]) -> tuple[Path, str]:
    rest = "other" if "other" in categories else categories[-1]
    return Path(__file__).parent / f"{name}.jpg", category if category in categories else rest
