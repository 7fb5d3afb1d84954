"""Where run.py, the installed command `pipeline` and `python -m pipeline` begin.

`health` passes by the rest of the command line. It runs every half a minute beside each process, and importing all
commands takes a second of CPU time.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that was typed."""
    if sys.argv[1:2] == ["health"]:
        from pipeline.commands.health import health

        health(sys.argv[2:], prog_name="pipeline health")
    else:
        from pipeline.cli import main as commands

        commands()


if __name__ == "__main__":
    main()
