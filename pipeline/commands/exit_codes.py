"""The exit codes of the commands."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes. click itself uses 2 for an unknown option."""

    WELL = 0
    FAILED = 1
    WRONG_USE = 2
    UNFINISHED = 3
    INTERRUPTED = 130


class Unfinished(Exception):
    """Nothing has failed, but the command's wait has timed out. The text says so, and how to continue."""


EPILOG = (
    "Exit codes of all commands: 0 success; 1 all or a part failed; 2 wrong use or configuration; 3 nothing failed, "
    "but something was not finished in time; 130 interrupted by Ctrl-C. Results go to standard output, everything else "
    "to standard error."
)
