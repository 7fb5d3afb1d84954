"""The further results of a provider, `Analysis.extra`: checks and cleans them for the asset store. Pure.

They are stored in the asset's document and shown in the asset's JSON, so they have to be small and plain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline.texts import HALVES, clean

MAX_BYTES, MAX_LEVELS = 8192, 10
TOO_LARGE = f"extra has more than {MAX_BYTES} bytes"
NOT_JSON = "extra has a value that JSON cannot represent"


def clean_extra(extra: object) -> dict[str, Any]:
    """Return plain JSON values, texts and names without terminal escapes and control characters.

    ValueError, in words for the provider's author, when it cannot be stored.
    """
    if not isinstance(extra, Mapping):
        raise ValueError(f"extra is {type(extra).__name__}, not a mapping")
    if not extra:
        return {}
    copy: dict[str, Any] = _Copy().of(dict(extra), MAX_LEVELS)
    if len(json.dumps(copy, ensure_ascii=False).encode()) > MAX_BYTES:
        raise ValueError(TOO_LARGE)
    return copy


class _Copy:
    """Copies values up to a total size: a list that contains itself ten times would be copied for ever."""

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def of(self, value: Any, levels: int) -> Any:
        """Return a copy of the value, which may have so many levels."""
        self._count(1)
        if isinstance(value, (dict, list, tuple)) and levels == 0:
            raise ValueError(f"extra has more than {MAX_LEVELS} levels")
        if isinstance(value, dict):
            return {self._name(name): self.of(item, levels - 1) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.of(item, levels - 1) for item in value]
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise ValueError("extra has an integer of more than 64 bits")
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        raise ValueError(NOT_JSON)

    def _name(self, name: object) -> str:
        if not isinstance(name, str):
            raise ValueError("extra has a name that is not a text")
        text = self._text(name)
        # MongoDB reads such names as commands and references, and returns something else.
        if text.startswith("$"):
            raise ValueError("extra has a name that begins with $")
        return text

    def _text(self, text: str) -> str:
        self._count(len(text))
        if HALVES.search(text):
            raise ValueError(NOT_JSON)
        return clean(text).strip()

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError(TOO_LARGE)
