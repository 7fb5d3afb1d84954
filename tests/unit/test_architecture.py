"""docs/architecture.md: its files and functions exist, and its rows of modules are those of module_rows.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.module_rows import SHARED, ROOT, ROWS

TEXT = (ROOT / "docs/architecture.md").read_text()
FILE = r"[\w/-]+\.(?:py|js|lua)"
STORIES = {
    title: (diagram, after)
    for title, diagram, after in re.findall(
        r"^## ([^\n]+)\n\n```mermaid\nsequenceDiagram\n(.*?)```\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL
    )
}
STEP = re.compile(rf"^\s+\w+-+>>\w+: ({FILE})(?: (\w+)\(\))?(?:<br/>.+)?$")


def place_of(name: str) -> Path:
    """Return the file of a name on the page: one of the repository, or of pipeline/."""
    return ROOT / name if name.startswith(("plugins/", "clients/", "tests/")) else ROOT / "pipeline" / name


def steps_of(diagram: str) -> list[tuple[str, str]]:
    """Return the file and the function ("" for none) of each arrow."""
    arrows = [line for line in diagram.splitlines() if ">>" in line]
    steps = [STEP.match(line) for line in arrows]
    assert all(steps), [line for line, step in zip(arrows, steps, strict=True) if not step]
    return [(step[1], step[2] or "") for step in steps if step]


def defines(file: Path, function: str) -> bool:
    """True when the file defines the function or method; a script of Lua is one function, without a name."""
    pattern = rf"^ *(async )?def {function}\(" if file.suffix == ".py" else rf"^ *(async )?{function}\(.*\) {{$"
    return re.search(pattern, file.read_text(), re.MULTILINE) is not None


def test_page_has_three_stories() -> None:
    """The stories are a photo, a job and a missed event."""
    assert [title.partition(":")[0] for title in STORIES] == ["A photo", "A job", "A missed event"]


@pytest.mark.parametrize("story", STORIES)
def test_each_step_names_a_file_and_its_function(story: str) -> None:
    """Each arrow in the diagram of a story names a file and a function that the file defines."""
    for name, function in steps_of(STORIES[story][0]):
        assert place_of(name).exists(), name
        assert defines(place_of(name), function) if function else name.endswith(".lua"), f"{name} {function}()"


@pytest.mark.parametrize("story", STORIES)
def test_files_to_open_are_those_of_the_diagram(story: str) -> None:
    """The list after a story has the files of its diagram, in the order of the story, each once."""
    diagram, after = STORIES[story]
    (listed,) = re.findall(r"^Open, in this order: (.+?)\.\n*\Z", after, re.MULTILINE | re.DOTALL)
    assert re.findall(rf"`({FILE})`", listed) == list(dict.fromkeys(name for name, _ in steps_of(diagram)))


def test_files_of_the_page_exist() -> None:
    """The files and folders in backticks anywhere on the page exist."""
    for name in re.findall(rf"`({FILE}|\w+/)`", TEXT):
        assert place_of(name).exists() or (ROOT / name).exists(), name


def test_rows_are_those_that_are_enforced() -> None:
    """The table of rows has modules of ROWS, from top to bottom, and all modules of SHARED."""
    (table,) = re.findall(r"\| row \| modules \|\n\|---\|---\|\n(.*?)\n\n", TEXT, re.DOTALL)
    *rows, shared = ([*re.findall(r"`(\w+)`", line)] for line in table.splitlines())
    found = [next(number for number, row in enumerate(ROWS) if name in row) for names in rows for name in names]
    assert found == sorted(found)
    assert set(shared) == SHARED
