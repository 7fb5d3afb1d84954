"""The functions with which commands print texts: one line per text, for any content and any terminal width."""

from __future__ import annotations

import io
import json
import sys

import pytest

from pipeline.commands import output

HOSTILE = {
    "\x1b[31mred\x1b[0m \x9b2J": "red ",
    "two\nlines\r\nand\tmore": "two lines and more",
    "[red]markup[/] [link=x]": "[red]markup[/] [link=x]",
    ":smile: :abc:": ":smile: :abc:",
    "\u202eright to left\u2066\u200f": "right to left",
    "https://host/" + "a" * 300: "https://host/" + "a" * 300,
    "\x07bell\x00\x7f": "bell",
    "half \ud83d pair": "half ? pair",
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal with 20 columns."""
    monkeypatch.setenv("COLUMNS", "20")


@pytest.mark.fault("O6")
@pytest.mark.parametrize(("text", "plain"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_text_is_plain_and_in_one_line(text: str, plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A result, a notice, an error and a cell of a table are printed in one line without control characters."""
    output.say(text)
    output.say(text, output.BAD, label=f"{text} ")
    output.note(text)
    output.complain(text, about=text)
    assert output.say_table(("name", "text"), [(1, text)]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [plain, f"{plain} {plain}", "name  text".ljust(10), f"1     {plain}".rstrip()]
    assert printed.err.splitlines() == [plain, f"{plain}: {plain}"]


@pytest.mark.fault("O6")
def test_table_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are aligned, also with wide letters; a very long cell is cut and moves only its own line.

    An empty cell is a dash, so that each line has as many words as there are columns.
    """
    rows = [("a", None, "x"), ("写真", "b" * 10_000, "y"), ("c", "", "z")]
    assert output.say_table(("one", "two", "three"), rows) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one   two  three" and lines[1] == "a     -    x" and lines[3] == "c     -    z"
    assert lines[2].startswith("写真  bbb") and lines[2].endswith("b…  y") and len(lines[2]) < 500
    assert output.say_table(("one",), [], "There are none.") == 0
    assert capsys.readouterr().out == "There are none.\n"


@pytest.mark.fault("O6")
def test_json_is_unchanged_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON of any content is one line for programs, without control characters for a terminal."""
    data = {"name": "".join(HOSTILE)}
    output.say_json(data)
    out = capsys.readouterr().out
    assert json.loads(out) == data and out.count("\n") == 1
    assert out.isascii() and out.rstrip("\n").isprintable()
    output.say_json(data, indent=2)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.fault("O6")
def test_terminal_with_a_small_encoding_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter that the encoding does not have is printed as an escape and raises no error."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    output.use_any_encoding()
    output.say("é 写 1")
    stream.flush()
    stream.seek(0)
    assert stream.read() == "\\xe9 \\u5199 1\n"
