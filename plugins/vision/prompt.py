"""The prompt: a text file with a version in its first line and, after lines like `[sneaker]`, hints for one category.

Each result's provenance has this version with a few digits of the file's hash: so a file that was changed without a new
version is not confused with the former one.
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
    """The prompt for a model.

    text: for all photos.
    hints: additional texts for the photos of one category.
    """

    version: str
    text: str
    hints: Mapping[str, str]

    def about(self, category: str) -> str:
        """Return the text that is sent with a photo of that category."""
        text = f"The owner of this photo filed it under: {category}"
        return f"{text}\n{hint}" if (hint := self.hints.get(category)) else text


def load(path: Path | None, variable: str) -> Prompt:
    """Return the prompt of that file, or the built-in one.

    variable: the setting with the path, for the text of a ConfigurationError.
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
    version = VERSION.match(text)
    first, *rest = SECTION.split(text[version.end() :] if version else text)
    if not first.strip():
        raise ValueError("it has no text for all categories")
    digits = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    hints = {name.strip(): hint.strip() for name, hint in zip(rest[::2], rest[1::2], strict=True)}
    return Prompt(f"{version[1]}-{digits}" if version else digits, first.strip(), hints)
