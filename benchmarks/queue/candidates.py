"""The libraries of the comparison: how each is installed and called, and its promise for a killed worker's job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.comparison import OURS
from benchmarks.peers import FOLDER, from_npm, from_pypi, python_of

HERE = Path(__file__).parent
BULLMQ = "BullMQ"


@dataclass(frozen=True)
class Candidate:
    """One library.

    command: its program without role, URL and count.
    remark: its promise for a job whose worker is killed.
    slowness: a slow library gets that many times fewer jobs, so that its run ends too; the rates do not change.
    """

    name: str
    install: Callable[[], str]
    command: Sequence[str]
    remark: str
    slowness: int = 1
    has_bulk: bool = False
    acknowledges: bool = True
    is_python: bool = True


def python_peer(name: str, packages: str, module: str, remark: str, *options: str, **more: object) -> Candidate:
    """Return a library from PyPI with a venv of its own.

    packages: separated by spaces; the first one names the venv.
    module: its program, in this folder.
    options: arguments of the program before the role.
    """
    folder = FOLDER / packages.split("[")[0]
    shown = [package.split("[")[0] for package in packages.split()]
    command = [python_of(folder), "-m", f"benchmarks.queue.{module}", *options]
    return Candidate(name, lambda: from_pypi(folder, packages, shown), command, remark, **more)  # type: ignore


def all_candidates() -> list[Candidate]:
    """Return all libraries, ours first."""
    node = FOLDER / "bullmq"
    ours_and_bullmq = [
        Candidate(
            OURS,
            lambda: f"redis-py {version('redis')}, hiredis {version('hiredis')}",
            [python_of(None), "-m", "benchmarks.queue.ours"],
            "a lease per job, renewed; a killed worker's job runs again when it ends; an id is enqueued once; retries, "
            "dead letters, pause, breaker and metrics are on",
            has_bulk=True,
        ),
        Candidate(
            BULLMQ,
            lambda: from_npm(node, "bullmq@5 ioredis@5", ("bullmq", "ioredis")),
            ["env", f"NODE_PATH={node / 'node_modules'}", "node", str(HERE / "bullmq.js")],
            "a lock per job, renewed; a killed worker's job runs again when it ends",
            has_bulk=True,
            is_python=False,
        ),
    ]
    return [*ours_and_bullmq, *python_candidates()]


def python_candidates() -> list[Candidate]:
    """Return the libraries from PyPI."""
    # Long because it is a table.
    return [
        python_peer(
            "taskiq, list",
            "taskiq-redis",
            "taskiq_peer",
            "BRPOP: a killed worker's job is lost",
            "list",
            slowness=2,
            acknowledges=False,
        ),
        python_peer(
            "taskiq, stream",
            "taskiq-redis",
            "taskiq_peer",
            "acknowledged after the job; others claim what is pending after ten minutes",
            "stream",
            slowness=4,
        ),
        python_peer(
            "dramatiq",
            "dramatiq[redis]",
            "dramatiq_peer",
            "acknowledged after the job; a dead worker's jobs come back after a minute; threads",
            slowness=4,
        ),
        python_peer(
            "saq",
            "saq[redis] typing_extensions",
            "saq_peer",
            "an active list; a sweeper brings lost jobs back",
            slowness=4,
        ),
        python_peer(
            "celery",
            "celery[redis]",
            "celery_peer",
            "acks_late; a killed worker's job comes back after the visibility timeout, an hour; threads",
            slowness=10,
        ),
        python_peer(
            "arq",
            "arq",
            "arq_peer",
            "a lock per job, a lost job runs again when it ends; polls each millisecond here, 0.5 s by default",
            slowness=10,
        ),
        python_peer(
            "rq",
            "rq",
            "rq_peer",
            "one job at a time (SimpleWorker); a lost job is moved to the failed ones",
            slowness=10,
            has_bulk=True,
        ),
    ]
