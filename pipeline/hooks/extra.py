"""What a provider has to say besides, `Analysis.extra`: whether a store can keep it, and how. Pure.

It is kept in the asset's document and shown in the asset's JSON, so it has to be small and plain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline.texts import HALVES, clean

MAX_BYTES, MAX_LEVELS = 8192, 10
TOO_LARGE = f"extra has more than {MAX_BYTES} bytes"


def clean_extra(extra: object) -> dict[str, Any]:
    """Return it as it is kept: plain JSON values, texts and names without terminal escapes and control characters.

    ValueError, in words for the provider's author, when it cannot be kept.
    """
    if not isinstance(extra, Mapping):
        raise ValueError(f"extra is {type(extra).__name__}, not a mapping")
    if not extra:
        return {}
    kept: dict[str, Any] = _Copy().of(dict(extra), MAX_LEVELS)
    if len(json.dumps(kept, ensure_ascii=False).encode()) > MAX_BYTES:
        raise ValueError(TOO_LARGE)
    return kept


class _Copy:
    """Copies what is small: a list that holds itself ten times would be copied for ever."""

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def of(self, value: Any, levels: int) -> Any:
        """Return a copy of the value, which may have so many levels."""
        self._take(1)
        if isinstance(value, (dict, list, tuple)) and levels == 0:
            raise ValueError(f"extra has more than {MAX_LEVELS} levels")
        if isinstance(value, dict):
            return {self._name(name): self.of(each, levels - 1) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.of(each, levels - 1) for each in value]
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise ValueError("extra holds an integer of more than 64 bits")
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        raise ValueError("extra holds what JSON cannot")

    def _name(self, name: object) -> str:
        if not isinstance(name, str):
            raise ValueError("extra holds a name that is no text")
        text = self._text(name)
        # MongoDB takes those for commands and references, and gives back another thing.
        if text.startswith("$"):
            raise ValueError("extra holds a name that begins with $")
        return text

    def _text(self, text: str) -> str:
        self._take(len(text))
        if HALVES.search(text):
            raise ValueError("extra holds what JSON cannot")
        return clean(text).strip()

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError(TOO_LARGE)
