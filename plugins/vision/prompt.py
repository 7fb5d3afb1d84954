"""The prompt: a text file with a version in its first line and, after lines like `[sneaker]`, hints for one category.

Its version goes into each result's provenance, with a few digits of the file's hash: so a file that was changed
without a new version is not taken for the one before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigurationError

BUILT_IN = Path(__file__).with_name("prompt.md")
VERSION = re.compile(r"version:[ \t]*(\S{1,40})[ \t]*(?:\n|\Z)")
SECTION = re.compile(r"^\[([^\]\n]{1,100})\][ \t]*$", re.MULTILINE)
MAX_BYTES = 64 * 1024
HASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked. text: for all photos; hints: for those of one category beside it."""

    version: str
    text: str
    hints: Mapping[str, str]

    def about(self, category: str) -> str:
        """Return what goes along with a photo of that category."""
        filed = f"The owner of this photo filed it under: {category}"
        return f"{filed}\n{hint}" if (hint := self.hints.get(category)) else filed


def load(path: Path | None, variable: str) -> Prompt:
    """Return the prompt of that file, or the built-in one. variable: which setting names the file, for the
    ConfigurationError.
    """
    try:
        with (path or BUILT_IN).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return parse(content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"{variable}: the prompt cannot be read: {reason}") from error


def parse(content: bytes) -> Prompt:
    """Return the prompt in a file; ValueError when there is none."""
    text = content.decode("utf-8-sig").replace("\r\n", "\n")
    named = VERSION.match(text)
    first, *rest = SECTION.split(text[named.end():] if named else text)
    if not first.strip():
        raise ValueError("it has no text for all categories")
    digits = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    hints = {name.strip(): hint.strip() for name, hint in zip(rest[::2], rest[1::2], strict=True)}
    return Prompt(f"{named[1]}-{digits}" if named else digits, first.strip(), hints)
