"""What the exit codes of the commands mean."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """2 is also what click gives for an option that does not exist."""

    WELL = 0
    FAILED = 1
    WRONG_USE = 2
    UNFINISHED = 3
    INTERRUPTED = 130


class Unfinished(Exception):
    """Nothing has failed, but what was waited for has not come in time. The text says so, and how to go on."""


EPILOG = (
    "Exit codes of all commands: 0 it went well; 1 it failed, or a part of it; 2 wrong use or configuration; "
    "3 nothing failed, but not all was finished in time; 130 interrupted by Ctrl-C. Results go to standard output, "
    "everything else to standard error."
)
