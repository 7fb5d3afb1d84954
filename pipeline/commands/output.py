"""The output of commands: plain text, one line for each item, whatever the width of the terminal.

Texts come from users, plugins, providers and file names. Every function here cleans what it prints, so that no text
controls the terminal, breaks a line or is read as markup. Colours are used on a terminal only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.text import Text

from pipeline.texts import clean

stdout, stderr = (Console(stderr=is_stderr, emoji=False, markup=False, highlight=False) for is_stderr in (False, True))
# Characters of a cell in a table: up to the first it is padded, beyond the second it is cut.
PAD_AT_MOST, CELL_AT_MOST = 44, 400
# Stands in empty cells, so that scripts find at least one word for each column.
EMPTY = "-"
# Characters of a file name beside a progress bar.
NAME_AT_MOST = 30
_bars: list[Progress] = []
BOLD, GOOD, WARNING, BAD = "bold", "green", "yellow", "red"


def use_any_encoding() -> None:
    """Print characters that the terminal's encoding lacks as \\x escapes, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def shown(text: object) -> str:
    """Return the text cleaned for printing, in one line."""
    return clean(str(text))


def shortened(text: object, length: int) -> str:
    """Return the text cleaned for printing, cut to so many characters."""
    line = shown(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def say(text: object, color: str = "", label: str = "") -> None:
    """Print a result: one line on standard output. label: stands first; if given, only the label has the colour."""
    _print_result(text, color, label)


def note(text: object, color: str = "", label: str = "") -> None:
    """Print a message that is no result: one line on standard error. label: as in `say`."""
    _print(stderr, text, color, label)


def complain(text: object, about: str = "Error") -> None:
    """Print an error: one line on standard error. about: its subject."""
    note(text, BAD, f"{about}: ")


def say_json(data: Any, indent: int | None = None) -> None:
    """Print JSON data on standard output at once: one line, or indented for people."""
    # For programs all but ASCII is escaped. For people it is not, so it is cleaned.
    if indent is None:
        text = json.dumps(data).replace("\x7f", "\\u007f")
    else:
        text = json.dumps(cleaned(data), indent=indent, ensure_ascii=False)
    print(text, flush=True)


def say_table(names: Sequence[str], rows: Iterable[Sequence[object]], nothing: str = "") -> int:
    """Print the rows in columns and return their number. nothing: the line that is printed without rows."""
    lines = [[shortened("" if cell is None else cell, CELL_AT_MOST) or EMPTY for cell in row] for row in rows]
    if not lines and nothing:
        say(nothing)
        return 0
    widths = [
        max(cell_len(cell) for cell in column if cell_len(cell) <= PAD_AT_MOST or cell is column[0])
        for column in zip(names, *lines)
    ]
    for number, cells in enumerate([[*names], *lines]):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths))
        say("  ".join(padded).rstrip(), "" if number else BOLD)
    return len(lines)


def bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar on standard error. It shows on a terminal only."""
    progress = Progress(
        *columns, console=stderr, disable=not is_terminal(sys.stderr), transient=True, redirect_stdout=False
    )
    _bars.append(progress)
    return progress


def is_terminal(stream: IO[str]) -> bool:
    """Return whether the stream is a terminal; FORCE_COLOR does not matter."""
    return hasattr(stream, "isatty") and stream.isatty()


def cleaned(data: Any) -> Any:
    """Return JSON data with all its texts cleaned."""
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, dict):
        return {clean(name): cleaned(value) for name, value in data.items()}
    return [cleaned(each) for each in data] if isinstance(data, list) else data


def _print_result(text: object, color: str, label: str) -> None:
    # On a terminal with a bar only the bar's console can print above the bar.
    has_bar = is_terminal(sys.stdout) and any(each.live.is_started for each in _bars)
    _print(stderr if has_bar else stdout, text, color, label)


def _print(console: Console, text: object, color: str, label: str) -> None:
    line = Text(shown(text), color) if not label else Text.assemble((shown(label), color), shown(text))
    console.print(line, soft_wrap=True)
