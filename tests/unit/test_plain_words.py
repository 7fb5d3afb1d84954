"""The house in plain words: words and shapes that a newcomer stumbles over, each with what to write instead.

A check that can be argued with: a word that is right where it stands is put on a list below, with the reason.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import program

ROOT = Path(__file__).parents[2]
PRODUCT = ("pipeline", "plugins", "examples", "benchmarks", "grafana")
PYTHON = (*PRODUCT, "tests")
TEXTS = (
    *(*PRODUCT, "clients", "contracts", "deploy", "docs", "tests", ".ci"),
    *("README.md", "CONTRIBUTING.md", "setup.cfg", "Makefile"),
)
READ = {
    *(".py", ".js", ".ts", ".lua", ".css", ".html", ".md"),
    *(".json", ".yml", ".yaml", ".txt", ".cfg", ".conf", ".tpl", ""),
}
# What to write instead of each.
BANNED = {
    r"whoever|somebody|nobody|everybody": "name it: the process, the client, the user, the operator; or: no process",
    r"told|heard|hears?": "sent, published, reported, confirmed, received: these are five different things here",
    r"lends?|lent|lender": "gives, makes",
    r"leans? on": "needs, depends on",
    r"strangers?": "unauthenticated client, unknown user",
    r"goodbye": "close; the frame of this name is promised by the contract",
    r"bears?": "accepts, survives: 'may be called twice'",
    r"mend(s|ed|ing)?": "repair",
    r"excuses?": "refund of an attempt",
    r"judged?|judges": "decide, check",
    r"its turn": "slot, reserved call, share",
    r"riddles?": "name the thing",
}
# Between quotes these are names that the outside knows. The reason for each:
NAMES = {
    "goodbye": "the frame before a socket or stream is closed, in the contract",
    "mend": "the key in the JSON lines of check since 0.1.0",
    "told": "the key that version 0.1 stored for a delivered Web Push message",
}
# Where a banned word is right without quotes: the file, the word, the reason.
ALLOWED = {
    "contracts/rooms.asyncapi.json": ("goodbye", "references and titles of the frame"),
}
# Not written by us, or not read as a text.
DATA = {"package-lock.json", "lexicon.json"}
# The list of the words has them all.
LISTS = {"tests/unit/test_plain_words.py"}
LONGEST_FUNCTION, LONGEST_FILE, MOST_METHODS = 40, 300, 15
LONG, MANY = "Long because", "Many methods because"


def files(roots: tuple[str, ...]) -> list[str]:
    """Return the files of the repository in these folders, those under version control only."""
    git = [program("git"), "ls-files", "--", *roots]
    found = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in found.stdout.splitlines() if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def words_in(name: str) -> Iterator[str]:
    """Yield each banned word of the file with its line and what to write instead."""
    allowed = ALLOWED.get(name, ("", ""))[0]
    names = rf"""["'`]({"|".join(NAMES)}) ?["'`]|event: goodbye"""
    for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
        text = re.sub(names, "", line)
        for pattern, instead in BANNED.items():
            # A part of a name counts too.
            for match in re.finditer(rf"(?<![a-z0-9-])({pattern})(?![a-z0-9-])", text, re.IGNORECASE):
                if match[0].lower() != allowed:
                    yield f"{name}:{number}: {match[0]!r}: {instead}"


def test_banned_words_do_not_occur() -> None:
    """No word of BANNED is in the product, the clients, the documents or the tests, but those in NAMES and ALLOWED."""
    names = [name for name in files(TEXTS) if Path(name).suffix in READ and Path(name).name not in DATA]
    names = [name for name in names if name not in LISTS]
    assert [fault for name in names for fault in words_in(name)] == []


def test_allowed_words_are_still_needed() -> None:
    """A file on the list has its word, else the list would grow old."""
    for name, (word, _) in ALLOWED.items():
        assert re.search(rf"\b{word}\b", (ROOT / name).read_text(encoding="utf-8"), re.IGNORECASE), name


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Yield the name, the text and the tree of each Python module of the product and of the tests."""
    for name in files(PYTHON):
        if name.endswith(".py"):
            text = (ROOT / name).read_text(encoding="utf-8")
            yield name, text, ast.parse(text)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield all functions and methods of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def sizes_over(tree: ast.Module, lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each part that is too large, and the text where its reason may stand: the file's head, and around it."""
    head = "\n".join(lines[:40])
    if len(lines) > LONGEST_FILE:
        yield f"{len(lines)} lines", head
    for node in functions(tree):
        size = (node.end_lineno or node.lineno) - node.lineno + 1
        if size > LONGEST_FUNCTION:
            yield f"{node.name}: {size} lines", "\n".join(lines[node.lineno - 4 : node.end_lineno])
    for each in ast.walk(tree):
        if isinstance(each, ast.ClassDef):
            methods = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in each.body)
            if methods > MOST_METHODS:
                around = "\n".join(lines[each.lineno - 5 : each.lineno + 12])
                yield f"class {each.name}: {methods} methods", head + around


def test_parts_are_short_or_say_why_not() -> None:
    """Functions of 40 lines, files of 300 and classes of 15 methods at most, or a sentence that gives the reason."""
    faults = [
        f"{name}: {size}"
        for name, text, tree in modules()
        for size, around in sizes_over(tree, text.splitlines())
        if (MANY if size.endswith("methods") else LONG) not in around
    ]
    assert faults == []


def test_parameters_in_docstrings_have_a_line_each() -> None:
    """No line of a docstring explains two parameters of its function: `first: ... second: ...`."""
    faults = []
    for name, _, tree in modules():
        for node in functions(tree):
            parameters = {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            for line in (ast.get_docstring(node) or "").splitlines():
                if len(parameters.intersection(re.findall(r"(?:^|[.;] )(\w+): ", line))) > 1:
                    faults.append(f"{name} {node.name}: {line.strip()}")
    assert faults == []
