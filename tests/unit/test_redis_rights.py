"""The Redis commands that `check` tries and docs/operations.md grants are those that the service uses."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pipeline.commands.checks.redis_rights import LISTENING, TRIED, WISHED, acl_rules

ROOT = Path(__file__).parents[2]
CALL = re.compile(r"redis\.p?call\('(\w+)'")
# Words in capitals in the Python code that are no commands, and commands for which a user needs no right.
NO_COMMANDS = {"AUTH", "ASKING", "SENTINEL", "BGREWRITEAOF"}
# The first word of a command in the Python code.
KNOWN = re.compile(r"[A-Z]{3,14}")


def used_by_scripts() -> set[str]:
    """Return the commands in all Lua scripts; `push` of place.lua is one of two commands."""
    texts = [path.read_text() for path in (ROOT / "pipeline/queue/lua").glob("*.lua")]
    return {name for text in texts for name in CALL.findall(text)} | {"LPUSH", "RPUSH"}


def used_by_python() -> set[str]:
    """Return the commands in queue, rooms and link: texts in capitals that begin a call of `ask` or a tuple."""
    found = set()
    for folder in ("queue", "rooms", "link"):
        for path in (ROOT / "pipeline" / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                is_ask = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "ask"
                words = node.args if is_ask else node.elts if isinstance(node, ast.Tuple) else []
                if words and isinstance(words[0], ast.Constant) and KNOWN.fullmatch(str(words[0].value)):
                    second = words[1].value if len(words) > 1 and isinstance(words[1], ast.Constant) else ""
                    has_second = words[0].value in ("SCRIPT", "CLUSTER")
                    found.add(f"{words[0].value}|{second}" if has_second else str(words[0].value))
    return found - NO_COMMANDS


@pytest.mark.fault("O7")
def test_all_commands_of_the_service_are_tried() -> None:
    """The list has exactly the commands in use: a new one must be added, an unused one must be removed."""
    granted = {each[0] for each in TRIED} | {*LISTENING, *WISHED}
    used = used_by_scripts() | used_by_python()
    assert used - granted == set(), "not in pipeline/commands/checks/redis_rights.py"
    # The code selects these by a variable.
    by_name = {"PUBLISH", "HSETNX", "HINCRBYFLOAT", *LISTENING}
    assert granted - used - by_name == set(), "used nowhere"


@pytest.mark.fault("O7")
def test_operations_docs_name_the_rights() -> None:
    """docs/operations.md has the complete ACL line, which an operator can copy."""
    line = "ACL SETUSER pipeline on >PASSWORD " + " ".join(acl_rules("pipeline"))
    text = (ROOT / "docs/operations.md").read_text()
    section = text.partition("## Redis rights (ACL)")[2].partition("\n## ")[0]
    assert line in " ".join(section.split())
