"""What the commands print, and text from elsewhere in it: of the service, of plugins, of file names."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline.texts import clean

# ":key:" in an id is no picture of a key.
stdout, stderr = Console(emoji=False), Console(stderr=True, emoji=False)


def shown(text: object) -> str:
    """Return the text as it can be printed: nothing in it steers the terminal or is taken for markup.

    Line breaks stay, for what has more than one line.
    """
    return escape("\n".join(map(clean, str(text).split("\n"))))


def cleaned(data: Any) -> Any:
    """Return JSON data with all its texts cleaned."""
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, dict):
        return {clean(name): cleaned(value) for name, value in data.items()}
    return [cleaned(each) for each in data] if isinstance(data, list) else data
