"""The rows of modules that the design allows to import from each other, and the imports of each file."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Rows from top to bottom: a module imports only from rows below its own; assets, queue, rooms and hooks never import
# each other.
ROWS = [
    {"start"},
    {"cli"},
    {"serving"},
    {"app"},
    {"routes"},
    {"handlers"},
    {"parts"},
    {"usecases", "watchdog", "stores"},
    {"assets", "queue", "rooms", "hooks"},
    {"auth", "otel"},
    {"settings"},
    {"sandbox", "link", "disk", "environment", "keys", "origins", "clock", "pages"},
    {"errors"},
    {"unreachable", "queue_metrics"},
    {"texts", "hold", "delays", "grouped", "instants", "addresses", "proxies", "images", "weak_secrets"},
]
# The only rows that modules of SHARED import.
LOWEST_ROWS = ROWS[-6:]
# Modules that every row may import.
SHARED = {"metrics", "logs", "tracing", "supervision"}
# Modules in no row, which only the start and the command line import.
STARTING = {
    *("embedded", "embedded_files", "data_dir", "exit", "services", "systemd"),
    *("commands", "client", "demo", "testing"),
}


def modules(folder: str) -> list[Path]:
    """Return the Python files of a folder of the repository."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> set[str]:
    """Return the modules a file imports, other than for types only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def part(name: str) -> str | None:
    """Return the module or package of pipeline/ that a dotted name belongs to, or None."""
    return name.split(".")[1] if name.startswith("pipeline.") else None
