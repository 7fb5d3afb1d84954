"""The demo photos by category, and what the local AI provider must find on them."""

from __future__ import annotations

from pipeline.demo import pictures

EXPECTED = {
    "camera": ("Canon", "EOS R5", "Black"),
    "lego": ("LEGO", "City 60316", "Blue"),
    "sneaker": ("Nike", "Air Max 90", "White"),
    "other": ("Sony", "ICF-306", "Red"),
}
PHOTOS = {category: file for file, category in pictures()}
