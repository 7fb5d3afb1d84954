"""Rules of the design for all of the repository: imports, documented settings, tests of the specification, scripts."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.settings_list import settings_lines
from pipeline.queue.calls import PARTS, SCRIPTS
from pipeline.queue.queue import JobQueue
from tests.unit.module_rows import SHARED, LOWEST_ROWS, ROOT, ROWS, STARTING, imports, modules, part

SPECIFIED_TESTS = [*range(13, 20), *range(27, 34), *range(38, 46), 57, 58]
# The repaired rows of the list of faults; each has a test that is marked with its name.
REPAIRED_FAULTS = {
    *(f"E{number}" for number in range(1, 33)),
    *(f"R{number}" for number in range(1, 19)),
    *(f"U{number}" for number in range(1, 29)),
    *(f"P{number}" for number in range(1, 12)),
    *(f"O{number}" for number in range(1, 21)),
}
PURE = [
    *("pipeline.assets.asset", "pipeline.assets.events", "pipeline.assets.store", "pipeline.queue.job"),
    *("pipeline.errors", "pipeline.images", "pipeline.hold", "pipeline.texts", "pipeline.delays", "pipeline.instants"),
    *("pipeline.clock", "pipeline.assets.containers", "pipeline.sandbox.cost", "pipeline.sandbox.wire"),
    *("pipeline.proxies", "pipeline.assets.hygiene", "pipeline.assets.kinds", "pipeline.assets.store_move"),
    *("pipeline.weak_secrets", "pipeline.unreachable"),
]


@pytest.mark.parametrize("path", modules("pipeline"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """No module imports from its own row or from a row above; no module of pipeline/ imports plugins/."""
    own = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    row = next((number for number, row in enumerate(ROWS) if own in row), None)
    for name in imports(path):
        assert not name.startswith(("plugins", "pipeline.plugins")), f"{path.name} imports {name}"
        other = part(name)
        if other is None or other == own or other.startswith("__"):
            continue
        if own in SHARED:
            assert any(other in row for row in LOWEST_ROWS), f"{path.name} imports {name}"
        elif row is not None and other not in SHARED:
            other_row = next((number for number, others in enumerate(ROWS) if other in others), None)
            is_start = own in ("start", "cli", "serving") and other in STARTING
            assert is_start or (other_row is not None and other_row > row), f"{path.name} imports {name}"


def test_imports_have_no_cycle() -> None:
    """The modules of pipeline/ can be sorted so that each imports only from those before it."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules("pipeline")}
    graph = {name: {other for other in imports(path) & names.keys() if other != name} for name, path in names.items()}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


@pytest.mark.parametrize("path", modules("plugins"), ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_import_only_hooks_and_errors(path: Path) -> None:
    """A plugin of the repository imports from the service only what a plugin of a third party may import."""
    for name in imports(path):
        if name.startswith("pipeline"):
            assert name.startswith(("pipeline.hooks", "pipeline.errors")), f"{path.name} imports {name}"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_need_no_driver(module: str) -> None:
    """A pure module can be imported without the packages of Redis, MongoDB and Tornado."""
    code = (
        "import sys\n"
        "for name in ('redis', 'motor', 'pymongo', 'tornado'): sys.modules[name] = None\n"
        f"import {module}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_only_one_file_imports_motor() -> None:
    """Only one file imports Motor, so another MongoDB driver changes one file only."""
    found = [path.name for path in modules("pipeline") if any(name.split(".")[0] == "motor" for name in imports(path))]
    assert found == ["mongo_driver.py"]


def test_every_specified_test_exists() -> None:
    """Each task of the specification that requires a test has a test that is marked with its number."""
    texts = "\n".join(path.read_text() for path in modules("tests"))
    marked = set(re.findall(r'mark\.spec\("(T\d{3})"\)', texts))
    assert {f"T{number:03d}" for number in SPECIFIED_TESTS} <= marked


def test_every_repaired_fault_has_a_test() -> None:
    """Each repaired row has a test, and each row that a test names is on the list."""
    texts = "\n".join(path.read_text() for path in modules("tests"))
    assert set(re.findall(r'mark\.fault\("(\w+)"\)', texts)) == REPAIRED_FAULTS


def test_docs_list_every_setting() -> None:
    """The table of docs/settings.md is the output of `run.py settings --format markdown`."""
    assert "\n".join(settings_lines("markdown")) in (ROOT / "docs/settings.md").read_text()


@pytest.mark.spec("T006")
def test_env_example_lists_every_setting() -> None:
    """`.env.example` is what `run.py settings --format env` prints."""
    assert (ROOT / ".env.example").read_text() == "\n".join(settings_lines("env")) + "\n"


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline/queue/lua").glob("*.lua")), ids=lambda path: path.stem)
def test_lua_script_is_used_and_has_a_header(path: Path) -> None:
    """Each script is called by JobQueue and its header lists KEYS and ARGV; each other file is a part of a script."""
    header = path.read_text().split("\nlocal ")[0]
    if path.stem not in SCRIPTS:
        assert "Not a script of its own" in header
        assert any(path.stem in parts for parts in PARTS.values())
        return
    assert "-- KEYS:" in header and "Called by JobQueue." in header and "-- ARGV:" in header
    method = re.findall(r"JobQueue\.(\w+)", header)[0]
    assert inspect.iscoroutinefunction(getattr(JobQueue, method))


@pytest.mark.fault("O17")
def test_tests_skip_where_a_program_is_missing() -> None:
    """A test starts a program of the system only by tests.requirements.program, which skips the test without it."""
    faults = []
    for path in modules("tests"):
        if path.parent.name.startswith("plugins_") or path.name == "requirements.py" or "plugins_v1" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        lists = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            is_start = called.startswith(("subprocess.", "asyncio.create_subprocess")) and node.args
            if called in ("shutil.which", "which", "os.system") or (is_start and _names_program(node.args[0], lists)):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert faults == [], "use tests.requirements.program"


def _names_program(command: ast.expr, lists: dict[str, ast.expr]) -> bool:
    """True for a command that begins with a text, the name of a program; it may be in a variable of `lists`."""
    while isinstance(command, ast.BinOp):
        command = command.left
    if isinstance(command, (ast.List, ast.Tuple)) and command.elts:
        return _names_program(command.elts[0], lists)
    if isinstance(command, ast.Starred):
        return _names_program(command.value, lists)
    if isinstance(command, ast.Name) and command.id in lists:
        return _names_program(lists.pop(command.id), lists)
    return isinstance(command, (ast.Constant, ast.JoinedStr))
