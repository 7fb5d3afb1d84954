"""The demo pictures that come with the service, drawn by draw.py."""

from __future__ import annotations

from pathlib import Path

CATEGORIES = ("camera", "lego", "sneaker", "other")


def pictures() -> list[tuple[Path, str]]:
    """Return (file, category) of each demo picture; all are JPEG files."""
    folder = Path(__file__).parent
    return [(folder / f"{category}.jpg", category) for category in CATEGORIES]
