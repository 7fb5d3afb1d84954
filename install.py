"""Installs into .venv what `make` needs: `install.py EXTRA...`, extras of setup.cfg. Does nothing when all is there.

Each problem of the machine is reported in one line. An incomplete .venv is never used: the file .venv/installing exists
while pip runs, and a .venv with that file is made again. Needs only Python. Old Pythons must be able to read this file,
because it reports that they are too old.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BEGUN = VENV / "installing"
# Written when everything is there: for which place, by which setup.cfg, with which extras.
MARK = VENV / "installed"
# What venv and pip write into .venv. Other things there, as the tools of CI, are not ours.
MADE = ("bin", "etc", "include", "lib", "lib64", "share", "pyvenv.cfg", ".gitignore", "installed", "installing")
# What each extra takes on the disk, and how much of it must be free before: pip unpacks and keeps a cache.
SIZE_MB = {"local": 500, "test": 900, "bench": 1000}
SPARE_MB = 300
NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|Read timed out|ConnectionResetError"
    r"|IncompleteRead|ProtocolError|ProxyError|SSLError|Max retries exceeded"
)


def main(extras: "list[str]") -> None:
    """Return when .venv has the extras; exit with one line when that is impossible."""
    state = _state()
    recorded = _recorded()
    is_moved = recorded.get("venv", state["venv"]) != state["venv"]
    is_sound = not is_moved and not BEGUN.exists() and _works()
    is_same = is_sound and recorded.get("setup") == state["setup"]
    if is_same and set(extras) <= set(recorded["extras"]):
        return
    extras = sorted(set(extras) | set(recorded["extras"] if is_same else ()))
    try:
        if not is_sound:
            _make_venv(extras)
        BEGUN.touch()
        _pip_install(extras)
        MARK.write_text(json.dumps(dict(state, extras=extras)))
        BEGUN.unlink()
    except BaseException:
        with contextlib.suppress(OSError):
            if BEGUN.exists():
                _remove()
        raise


def _state() -> "dict[str, str]":
    setup = b"".join((ROOT / name).read_bytes() for name in ("setup.cfg", "pyproject.toml"))
    return {"venv": os.path.realpath(str(VENV)), "setup": hashlib.sha256(setup).hexdigest()}


def _recorded() -> "dict[str, Any]":
    """Return what MARK says, {} when it is of an earlier version or not there."""
    try:
        recorded = json.loads(MARK.read_text())
    except (OSError, ValueError):
        recorded = {}
    return dict(recorded)


def _works() -> bool:
    """True when the Python of .venv runs and has its pip: after an upgrade of the system's Python it has not."""
    check = [str(PYTHON), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def _make_venv(extras: "list[str]") -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        _fail("Python's own %s is missing. %s; then run this again." % (missing[0], _how_to_get_venv()))
    needed = max(SIZE_MB.get(extra, 0) for extra in extras) + SPARE_MB
    free = shutil.disk_usage(str(ROOT)).free // 1000000
    if free < needed:
        _fail("%d MB must be free in %s for .venv, there are %d MB" % (needed, ROOT, free))
    print("Installing into .venv (about %d MB, a minute or two) ..." % (needed - SPARE_MB), flush=True)
    _remove()
    VENV.mkdir(exist_ok=True)
    BEGUN.touch()
    # Not sys.executable: that may be the one of the .venv that was just removed.
    made = _run([getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(VENV)])
    if made.returncode:
        _fail_after(made, "Python cannot make .venv")


def _how_to_get_venv() -> str:
    if not Path("/etc/debian_version").exists():
        return "Install all of Python %d.%d, as its package for venv" % sys.version_info[:2]
    is_default = os.path.realpath("/usr/bin/python3") == os.path.realpath(sys.executable)
    return "Run: sudo apt install %s" % ("python3-venv" if is_default else "python%d.%d-venv" % sys.version_info[:2])


def _pip_install(extras: "list[str]") -> None:
    project = ".[%s]" % ",".join(extras)
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "--editable", project]
    done = _run([str(PYTHON), "-m", "pip", *install])
    if done.returncode:
        _fail_after(done, "pip cannot install what is needed")
    # What pip takes for well may still lack a library of the system.
    started = _run([str(PYTHON), "run.py", "--help"])
    if started.returncode:
        _fail_after(started, "What pip installed does not start")


def _run(command: "list[str]") -> "subprocess.CompletedProcess[bytes]":
    """Run a command and capture its output, without the variables that make pip install outside .venv."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PIP_USER"] = "0"
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
        environment.pop(name, None)
    return subprocess.run(
        command, cwd=str(ROOT), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, close_fds=False,
    )


def _fail_after(done: "subprocess.CompletedProcess[bytes]", what: str) -> NoReturn:
    """Exit with one line that has the cause, when it is known; else print the program's output before the line."""
    output = done.stdout.decode(errors="replace").strip()
    if "No space left on device" in output or "Disk quota exceeded" in output:
        _fail("%s: the disk is full. Make room, then run this again." % what)
    why = NETWORK.search(output)
    if why:
        # pip downloads everything before it changes anything, so .venv is unchanged.
        BEGUN.unlink()
        _fail("%s: the package index does not answer (%s). Run this again when it does." % (what, why.group()))
    if done.returncode < 0:
        _fail("%s: it was ended by %s. Run this again." % (what, signal.Signals(-done.returncode).name))
    if "\n" not in output:
        _fail("%s: %s" % (what, output.replace("Error: ", "", 1)))
    print(output, file=sys.stderr)
    _fail("%s; why is above" % what)


def _remove() -> None:
    """Remove the files that venv and pip made."""
    for name in MADE:
        path = VENV / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        elif path.is_symlink() or path.exists():
            path.unlink()
    with contextlib.suppress(OSError):
        VENV.rmdir()


def _acquire_lock() -> None:
    """Wait until no other installation runs. The pip of a killed installation has the lock until it ends."""
    lock = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(lock, True)
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another installation into .venv ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)


def _fail(line: str) -> NoReturn:
    sys.exit("Error: " + line)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        # The Python that .venv was made with may be newer.
        if os.access(str(PYTHON), os.X_OK) and Path(sys.prefix).resolve() != VENV:
            os.execv(str(PYTHON), [str(PYTHON), *sys.argv])
        version = "%s is %d.%d" % (sys.executable, sys.version_info[0], sys.version_info[1])
        _fail("Python 3.11 or newer is needed, %s. If you have one: make PYTHON=python3.12" % version)
    # So that the pip of this run ends too, and its incomplete files are removed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("Error: ended while installing. Run this again."))
    try:
        _acquire_lock()
        main(sys.argv[1:])
    except OSError as error:
        _fail("%s cannot be used: %s" % (error.filename or VENV, error.strerror or error))
    except KeyboardInterrupt:
        _fail("stopped while installing. Run this again.")
