"""Our service beside an Express and a FastAPI stack, from the upload to the event: python -m benchmarks.uploads

Every candidate is one process with five job slots, a JWT check, the image in a local folder, the asset in a database
and the job in a Redis with an append-only file; the AI service is a fake that takes 5 ms. `ours` stores assets in
SQLite, which is the default, and has image, asset and job on the disk (fsync) before it answers 202. The peers store
assets in DocumentDB behind FerretDB 2 (or in MongoDB, without `documentdb` on PATH); a second row of ours does the
same. The load client is a process of its own on the same machine, with 32 keep-alive connections.
"""

# Long because it also starts the candidates, which only this suite has.
from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import machine
from benchmarks.comparison import OURS, Column, Comparison, Goal, Report, best
from benchmarks.peers import CHECKOUT, FOLDER, CannotHave, environment, from_npm, from_pypi, python_of, spawn
from tests.factories import SECRET, make_token
from tests.mongo_server import MongoServer
from tests.redis_server import RedisServer
from tests.service import AiService, Service

HERE = Path(__file__).parent
NPM = "express@5 multer@2 bullmq@5 ioredis@5 mongodb@6 jsonwebtoken@9 ws@8"
PYPI = "fastapi python-multipart arq pymongo pyjwt uvicorn[standard] httpx websockets"
STORE = "DocumentDB" if shutil.which("documentdb") else "MongoDB"
OURS_MONGO, EXPRESS, BARE, FASTAPI = f"ours, {STORE}", f"Express, {STORE}", "Express, no database", f"FastAPI, {STORE}"
FLOOR = "Tornado that only reads"
CLIENT_SECONDS = 300
SMALL, LARGE, HUGE = 100_000, 5_000_000, 9_500_000
IN_FLIGHT = 100
THROUGHPUT = [
    Column("accepted", "/s", more_is_better=True),
    Column("p50", "ms"),
    Column("p99", "ms"),
    Column("probe p99", "ms"),
    Column("CPU", "s per GB"),
    Column("peak memory", "MiB"),
]


@dataclass
class Running:
    """A service under test.

    others: further processes whose CPU counts, as its Redis.
    """

    port: int
    pid: int
    others: list[int] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        return [*machine.descendants(self.pid), *self.others]


Start = Callable[[ExitStack, str], Running]


def start_ours(with_mongo: bool, stack: ExitStack, ai_url: str) -> Running:
    """Start run.py with its defaults: the embedded Redis, and SQLite or a MongoDB."""
    settings = {"SHUTDOWN_SECONDS": "1", "LOG_FORMAT": "json"}
    if with_mongo:
        settings["MONGODB_URI"] = stack.enter_context(MongoServer()).uri("bench")
    # Its Redis may still be writing when it is removed.
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
    service = Service(folder, ai_url, **settings)
    service.start()
    stack.callback(service.kill)
    return Running(int(service.url.rpartition(":")[2]), service.pid)


def start_peer(command: Sequence[str], with_mongo: bool, stack: ExitStack, ai_url: str) -> Running:
    """Start a peer with a Redis and a database of its own."""
    redis = stack.enter_context(RedisServer())
    media = stack.enter_context(tempfile.TemporaryDirectory())
    uri = stack.enter_context(MongoServer()).uri("bench") if with_mongo else ""
    settings = {"REDIS_URL": redis.url, "MONGODB_URI": uri, "AI_SERVICE_URL": ai_url}
    settings |= {"JWT_SECRET": SECRET, "MEDIA": media}
    pid, port = spawn(stack, command, **environment(), **settings)
    return Running(int(port), pid, [redis.pid])


def start_floor(stack: ExitStack, _ai_url: str) -> Running:
    """Start the server that discards the bodies."""
    pid, port = spawn(stack, [sys.executable, "-m", "benchmarks.uploads.bare_server"])
    return Running(int(port), pid)


def install(report: Report) -> dict[str, Start]:
    """Return the start function of each candidate that can be installed; the report says why another is left out."""
    starts: dict[str, Start] = {OURS: partial(start_ours, False)}
    has_mongo = bool(shutil.which("documentdb") or shutil.which("mongod"))
    if not has_mongo:
        report.notes.append("Like for like is left out: neither documentdb (.ci/documentdb) nor mongod is on PATH.")
    else:
        starts[OURS_MONGO] = partial(start_ours, True)
        if STORE == "DocumentDB":
            report.versions.append("DocumentDB: DocumentDB 1.0 behind FerretDB 2.7, in place of a MongoDB")
    try:
        folder = FOLDER / "express"
        shown = ("express", "multer", "bullmq", "mongodb")
        report.versions.append(f"Express: {from_npm(folder, NPM, shown)}")
        command = ["env", f"NODE_PATH={folder / 'node_modules'}", "node", str(HERE / "express_server.js")]
        starts |= {EXPRESS: partial(start_peer, command, True)} if has_mongo else {}
        starts[BARE] = partial(start_peer, command, False)
    except CannotHave as error:
        report.notes.append(f"Express is left out: {error}")
    try:
        folder = FOLDER / "fastapi"
        report.versions.append(f"FastAPI: {from_pypi(folder, PYPI, ('fastapi', 'uvicorn', 'arq', 'pymongo'))}")
        command = [python_of(folder), "-m", "benchmarks.uploads.fastapi_server"]
        starts |= {FASTAPI: partial(start_peer, command, True)} if has_mongo else {}
    except CannotHave as error:
        report.notes.append(f"FastAPI is left out: {error}")
    return starts


def drive(running: Running, do: str, count: int, parallel: int = 32, *, image: int | Path = SMALL) -> dict[str, Any]:
    """Run the load client with a plan and return its figures.

    do: see load.py.
    image: the size in bytes of a generated image, or a file.
    """
    plan = {"do": do, "port": running.port, "count": count, "parallel": parallel, "token": make_token(expires_in=3600)}
    plan |= {"bytes": image} if isinstance(image, int) else {"image": str(image)}
    command = [sys.executable, "-m", "benchmarks.uploads.load", json.dumps(plan)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=CLIENT_SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


class Peak:
    """The peak resident memory of a process during the block, in MiB.

    base: the memory before the block.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.base = self.mib = machine.resident_mib([pid])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.mib = max(self.mib, machine.resident_mib([self._pid]))


def lag_p99_ms(port: int, before: dict[float, float]) -> tuple[float, dict[float, float]]:
    """Return the p99 of the event loop's lag since `before`, from our own metric, and the metric's buckets now.

    before: the buckets of an earlier call, empty for those of the start.
    """
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    buckets = re.findall(r'pipeline_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', page)
    now = {float(bound): float(count) for bound, count in buckets}
    counts = {bound: count - before.get(bound, 0) for bound, count in now.items()}
    wanted, low, reached = 0.99 * max(counts.values(), default=0), 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= wanted and count > reached:
            return 1000 * (low + (bound - low) * (wanted - reached) / (count - reached)), now
        low, reached = bound, count
    return 0.0, now


def measure_throughput(start: Start, image_bytes: int, count: int) -> dict[str, float]:
    """Return the figures of one run."""
    with ExitStack() as stack:
        ai_service = stack.enter_context(AiService(delay_ms=5))
        running = start(stack, ai_service.url)
        drive(running, "upload", 32, image=20_000)
        is_ours = "/metrics" if httpx.get(f"http://127.0.0.1:{running.port}/metrics").status_code == 200 else ""
        before = lag_p99_ms(running.port, {})[1] if is_ours else {}
        cpu = machine.cpu_seconds(running.pids)
        with Peak(running.pid) as peak:
            times = drive(running, "upload", count, image=image_bytes)
        cpu = machine.cpu_seconds(running.pids) - cpu
        figures = {"loop lag p99": lag_p99_ms(running.port, before)[0]} if is_ours else {}
    latencies, probes = (statistics.quantiles(times[name], n=100) for name in ("latencies", "probes"))
    return figures | {
        "accepted": count / times["seconds"],
        "p50": latencies[49] * 1000,
        "p99": latencies[98] * 1000,
        "probe p99": probes[98] * 1000,
        "CPU": cpu / (count * image_bytes / 1e9),
        "peak memory": peak.mib,
    }


def measure_flight(start: Start) -> dict[str, float]:
    """Return the memory of IN_FLIGHT uploads at once, after one complete upload."""
    with ExitStack() as stack:
        ai_service = stack.enter_context(AiService(delay_ms=5))
        running = start(stack, ai_service.url)
        drive(running, "events", 1, 1, image=HUGE)
        with Peak(running.pid) as peak:
            drive(running, "flight", IN_FLIGHT, image=HUGE)
    return {"base": peak.base, "peak": peak.mib, "difference": peak.mib - peak.base}


def measure_events(start: Start, count: int) -> dict[str, float]:
    """Return the times from uploads to their events."""
    with ExitStack() as stack:
        ai_service = stack.enter_context(AiService(delay_ms=5))
        running = start(stack, ai_service.url)
        drive(running, "events", 32, image=20_000)
        cpu = machine.cpu_seconds(running.pids)
        times = drive(running, "events", count)
        cpu = machine.cpu_seconds(running.pids) - cpu
    waits = statistics.quantiles(times["waits"], n=100)
    figures = {"accepted": times["accepted"], "total": times["total"], "p50": waits[49], "p99": waits[98]}
    return figures | {"CPU": 1000 * cpu / count}


def measure(rounds: int, small: int = 2_000, large: int = 200, events: int = 500) -> Report:
    """Install the peers and measure all candidates; a peer that cannot be installed is left out."""
    report = Report("uploads", machine=machine.describe())
    starts = install(report)
    what = "Until all were answered with 202; jobs run at the same time. `probe` is GET /livez every 10 ms."
    lag = Column("loop lag p99", "ms")
    seconds = [*(Column(name, "s") for name in ("accepted", "total", "p50", "p99")), Column("CPU", "ms per photo")]
    memory = [Column("base", "MiB"), Column("peak", "MiB"), Column("difference", "MiB")]
    only_uploads = starts | {FLOOR: start_floor}
    for title, size, count in (("Uploads of 100 KB", SMALL, small), ("Uploads of 5 MB", LARGE, large)):
        comparison = Comparison(title, f"{count} uploads. {what}", [*THROUGHPUT, lag])
        comparison.remarks[FLOOR] = "discards the body: no check, no file, no asset, no job; the cost of Tornado itself"
        candidates = {name: partial(measure_throughput, start, size, count) for name, start in only_uploads.items()}
        comparison.measure(candidates, rounds)
        report.comparisons.append(comparison)
    text = f"{IN_FLIGHT} bodies stop half-way until all are half-way, then all go on. Of the service process alone."
    flight = Comparison(f"{IN_FLIGHT} uploads of 9.5 MB at once", text, memory)
    flight.measure({name: partial(measure_flight, start) for name, start in starts.items()}, 1)
    text = (
        f"{events} uploads of 100 KB, to the last event on the user's socket; p50 and p99 from upload to event. CPU: "
        "of the service and its Redis, without the database."
    )
    end_to_end = Comparison(f"{events} uploads end to end", text, seconds)
    candidates = {name: partial(measure_events, start, events) for name, start in starts.items()}
    end_to_end.measure(candidates, rounds)
    report.comparisons += [flight, end_to_end]
    report.goals += goals(*report.comparisons)
    return report


def goals(small: Comparison, large: Comparison, flight: Comparison, events: Comparison) -> Iterator[Goal]:
    """Yield the goals: with our default store, and with the same database as the peers."""
    stored, peers = (EXPRESS, FASTAPI), (EXPRESS, FASTAPI, BARE)
    for comparison, name, rivals, least in (
        (small, OURS, stored, 1.5),
        (small, OURS_MONGO, stored, 1.2),
        (small, OURS, (BARE,), 1),
        (large, OURS, peers, 1.5),
    ):
        rival = best(comparison, "accepted", rivals, more_is_better=True)
        if rival and (ratio := comparison.ratio("accepted", name, rival)) is not None:
            what = f"{comparison.title}, accepted ({name})"
            yield Goal(what, f">= {least} x {rival}", f"{ratio:.2f} x", ratio >= least)
    for comparison in (small, large):
        if (lag := comparison.median(OURS, "loop lag p99")) is not None:
            yield Goal(f"{comparison.title}, loop lag p99", "<= 10 ms", f"{lag:.0f} ms", lag <= 10)
    if (more := flight.median(OURS, "difference")) is not None:
        yield Goal(flight.title, "<= base + 20 MiB", f"+ {more:.1f} MiB", more <= 20)
    rival = best(events, "total", stored, more_is_better=False)
    for name, most in ((OURS, 0.6), (OURS_MONGO, 0.8)):
        if rival and (ratio := events.ratio("total", name, rival)) is not None:
            yield Goal(f"{events.title} ({name})", f"<= {most} x {rival}", f"{ratio:.2f} x", ratio <= most)
    if (ratio := events.ratio("CPU", OURS, FASTAPI)) is not None:
        yield Goal("CPU per 100 KB upload with its job", f"<= 0.7 x {FASTAPI}", f"{ratio:.2f} x", ratio <= 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.uploads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, default=2_000)
    parser.add_argument("--large", type=int, default=200)
    options = parser.parse_args()
    measure(options.rounds, options.small, options.large).print()


if __name__ == "__main__":
    main()
