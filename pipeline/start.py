"""What run.py and the command `pipeline` call: hands over to pipeline/cli.py, or says in one line why that cannot be.

Imports nothing that has to be installed, and old Pythons must be able to read it: here they say that they are too old.
"""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the command line; exit with one line when this Python, or what is installed for it, does not do."""
    if sys.version_info < (3, 11):
        sys.exit("Error: Python 3.11 or newer is needed, this one is %d.%d: %s" % (*sys.version_info[:2], _way_out()))
    try:
        from pipeline.cli import main as command_line

        # It imports the command that was typed.
        command_line()
    except ImportError as error:
        # A fault of ours: the trace is wanted.
        if (error.name or "pipeline").split(".")[0] == "pipeline":
            raise
        if isinstance(error, ModuleNotFoundError):
            sys.exit("Error: %s is not installed for %s: %s" % (error.name, sys.executable, _way_out()))
        sys.exit("Error: what is installed for %s does not work (%s): %s" % (sys.executable, error, _way_out()))


def program() -> "list[str]":
    """Return what Python was started with: run.py, the command `pipeline`, or -m pipeline."""
    # As a file __main__.py would be found beside pipeline/queue, which Python would then take for its own queue.
    return ["-m", "pipeline"] if Path(sys.argv[0]).name == "__main__.py" else [sys.argv[0]]


def _way_out() -> str:
    """Return what to type instead."""
    if not (ROOT / "install.py").exists():
        return "install it again: pip install --force-reinstall 'ai-queue-pipeline[local]'"
    python = ROOT / ".venv" / "bin" / "python"
    is_other = Path(sys.prefix).resolve() != python.parents[1].resolve()
    if is_other and os.access(str(python), os.X_OK):
        return " ".join(["run", os.path.relpath(str(python)), *map(shlex.quote, [*program(), *sys.argv[1:]])])
    return "run `make demo` or `make run`, which install what is needed into .venv"
