"""The entry point of run.py and of the command `pipeline`: calls pipeline/cli.py, or prints in one line why it cannot.

Imports the standard library only, in a syntax that old Pythons can parse, so that they can report their version.
"""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the command line; exit with one line when this Python is too old or a package is missing."""
    if sys.version_info < (3, 11):
        sys.exit("Error: Python 3.11 or newer is needed, this one is %d.%d: %s" % (*sys.version_info[:2], _way_out()))
    try:
        from pipeline.cli import main as command_line

        # It imports the command that was typed.
        command_line()
    except ImportError as error:
        # A module of the service itself is missing: the trace helps to find the bug.
        if (error.name or "pipeline").split(".")[0] == "pipeline":
            raise
        if isinstance(error, ModuleNotFoundError):
            sys.exit("Error: %s is not installed for %s: %s" % (error.name, sys.executable, _way_out()))
        sys.exit("Error: what is installed for %s does not work (%s): %s" % (sys.executable, error, _way_out()))


def program() -> "list[str]":
    """Return the arguments that start this program again: run.py, the command `pipeline`, or -m pipeline."""
    # Not the path of __main__.py: Python would then import pipeline/queue in place of its own module queue.
    return ["-m", "pipeline"] if Path(sys.argv[0]).name == "__main__.py" else [sys.argv[0]]


def _way_out() -> str:
    """Return the command to type instead."""
    if not (ROOT / "install.py").exists():
        return "install it again: pip install --force-reinstall 'ai-queue-pipeline[local]'"
    python = ROOT / ".venv" / "bin" / "python"
    is_other = Path(sys.prefix).resolve() != python.parents[1].resolve()
    if is_other and os.access(str(python), os.X_OK):
        return " ".join(["run", os.path.relpath(str(python)), *map(shlex.quote, [*program(), *sys.argv[1:]])])
    return "run `make demo` or `make run`, which install what is needed into .venv"
