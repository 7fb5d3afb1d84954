"""Runs `plugins verify` on many plugins at once: each in a fork of one process that has imported everything.

A script with four arguments: a folder with plugins of one file each, an empty folder, the number of forks at the same
time, and the seconds for each plugin. Prints {name: [a message of the child, ..., {"exit": code}]}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from pipeline.commands import conformance, suite_child  # noqa: F401
from pipeline.hooks.kinds import BUILT_IN_MODULES

GRACE_SECONDS = 3.0


def main() -> None:
    """Verify all plugins of the folder."""
    plugins, work = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    at_once, seconds = int(sys.argv[3]), float(sys.argv[4])
    for module in BUILT_IN_MODULES:
        importlib.import_module(module)
    gc.freeze()  # else each child copies this memory in its first garbage collection
    waiting = sorted(plugins.glob("*.py"), reverse=True)
    running: dict[int, tuple[Path, float]] = {}
    codes = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            path = waiting.pop()
            running[_fork(path, work / path.stem, seconds)] = path, monotonic() + seconds + GRACE_SECONDS
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[running.pop(pid)[0].stem] = os.waitstatus_to_exitcode(status)
            continue
        for late in [pid for pid, (_, ends_at) in running.items() if ends_at < monotonic()]:
            with suppress(ProcessLookupError):
                os.killpg(late, signal.SIGKILL)
        sleep(0.02)  # os.waitpid has no time limit
    messages = {name: [*map(json.loads, (work / name / "messages").read_text().splitlines())] for name in codes}
    print(json.dumps({name: [*messages[name], {"exit": code}] for name, code in codes.items()}))


def _fork(path: Path, folder: Path, seconds: float) -> int:
    about = folder / "broken-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "broken.py").write_text(path.read_text())
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[ai_queue_pipeline]\nbroken = broken\n")
    reports = (folder / "messages").open("w", buffering=1)
    if pid := os.fork():
        reports.close()
        return pid
    os.setsid()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["DATA_DIR"] = str(folder / "data")
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    suite_child.run("broken", None, seconds, lambda message: print(json.dumps(message), file=reports, flush=True))
    os._exit(0)


if __name__ == "__main__":
    main()
