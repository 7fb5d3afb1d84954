"""Runs a command under the restrictions of a unit file of deploy/systemd, without systemd.

A process can put two of them on itself: the allowed system calls (listed by systemd-analyze, set by libseccomp), and no
memory that is both writable and executable.

python -m tests.deploy.confined UNIT COMMAND ...
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.requirements import program

# linux/prctl.h, since Linux 6.3; seccomp.h.
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
REFUSE, ALLOW, EPERM = 0x00050000, 0x7FFF0000, 1


def system_calls(name: str) -> set[str]:
    """Return the system calls of a set like @system-service."""
    if not name.startswith("@"):
        return {name}
    command = [program("systemd-analyze"), "syscall-filter", name]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    members = re.findall(r"^    ([@\w-]+)$", listed.stdout, re.MULTILINE)
    return set().union(*map(system_calls, members))


def allowed_calls(unit: str) -> set[str]:
    """Return the system calls that SystemCallFilter of a unit allows."""
    found: set[str] = set()
    for sign, names in re.findall(r"^SystemCallFilter=(~?)(.+)$", unit, re.MULTILINE):
        named = set().union(*map(system_calls, names.split()))
        found = found - named if sign else found | named
    return found


def confine(unit: str) -> None:
    """Restrict this process and all processes that it starts."""
    if "MemoryDenyWriteExecute=yes" in unit:
        ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(REFUSE | EPERM)))
    for name in allowed_calls(unit):
        if (number := seccomp.seccomp_syscall_resolve_name(name.encode())) >= 0:
            assert seccomp.seccomp_rule_add(rules, ctypes.c_uint32(ALLOW), number, 0) == 0
    assert seccomp.seccomp_load(rules) == 0


if __name__ == "__main__":
    confine(Path(sys.argv[1]).read_text())
    os.execvp(sys.argv[2], sys.argv[2:])
