"""What each fault costs: python -m benchmarks.fault_recovery [FAULT ...]

Real processes with default settings (leases of 15 s), each fault caused once. Prints a table: uploads accepted, how
many of them did not end as they should (lost), how often the AI service was asked beyond once each, how many events
were sent beyond one each, and the seconds until all was done, counted from the moment the row names.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tests.factories import make_token
from tests.faults.chaos.installation import ChaosService
from tests.redis_server import RedisServer
from tests.service import AiService, Service

LONGEST_SECONDS = 150.0
HANGS_MS = 3_600_000


@dataclass
class Scene:
    """The parts of one fault and what was accepted."""

    folder: Path
    ai: AiService
    services: list[ChaosService] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    right_end: str = "active"

    def upload(self, count: int, service: Service | None = None) -> None:
        """Have so many photos accepted."""
        for _ in range(count):
            reply = (service or self.services[0]).upload()
            assert reply.status_code == 202, reply.text
            self.accepted.append(reply.json()["data"]["assetId"])

    def longest_answer(self, uploads: int) -> float:
        """Upload so many one by one; return the seconds that the slowest of them took."""
        longest = 0.0
        for _ in range(uploads):
            asked_at = time.monotonic()
            self.upload(1)
            longest = max(longest, time.monotonic() - asked_at)
        return longest

    def seconds_until(self, is_true: Callable[[], Any], since: float) -> float:
        """Return the seconds from `since` until it is true, infinite when it does not become so."""
        while not is_true():
            if time.monotonic() - since > LONGEST_SECONDS:
                return float("inf")
            time.sleep(0.02)
        return time.monotonic() - since

    def seconds_until_done(self, since: float, service: Service | None = None) -> float:
        return self.seconds_until(lambda: not self.left(service), since)

    def left(self, service: Service | None = None) -> list[str]:
        """Return the accepted assets that have not ended as they should."""
        asked = service or self.services[0]
        return [asset_id for asset_id in self.accepted if asked.asset(asset_id)["status"] != self.right_end]

    def has_calls(self, count: int) -> bool:
        return sum(self.ai.calls().values()) == count

    def calls_beyond_once(self) -> int:
        return int(sum(self.ai.calls().values())) - len(self.accepted)

    def events_beyond_once(self) -> int:
        sent = [line for service in self.services for line in service.log if line["event"] == "asset_finished"]
        return len(sent) - len(self.accepted)


# The seconds until all was done, and since when they are counted.
Measured = tuple[float, str]
Row = Callable[[Scene, ExitStack], Measured]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    """Enter the function in the table under that name."""

    def enter(function: Row) -> Row:
        ROWS[name] = function
        return function

    return enter


def start(scene: Scene, stack: ExitStack, **settings: str) -> ChaosService:
    """Start one more process on the folder of the scene."""
    service = stack.enter_context(running(ChaosService(scene.folder, scene.ai.url, lease_seconds=15, **settings)))
    scene.services.append(service)
    return service


@contextmanager
def running(service: ChaosService) -> Iterator[ChaosService]:
    service.start()
    try:
        yield service
    finally:
        if service.is_running:
            service.kill()


@row("kill -9, 5 running, 20 waiting; restart with the embedded Redis")
def kill_and_restart(scene: Scene, stack: ExitStack) -> Measured:
    scene.ai.order(held=True)
    service = start(scene, stack)
    scene.upload(25)
    service.wait_log("job_claimed", count=5)
    service.kill()
    scene.ai.order(held=False)
    since = time.monotonic()
    service.start()
    return scene.seconds_until_done(since), "restart"


@row("kill -9, 5 running, 15 waiting; another process goes on")
def kill_one_of_two(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    scene.ai.order(held=True)
    killed = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(5)
    killed.wait_log("job_claimed", count=5)
    other = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(15, other)
    other.wait_log("job_claimed", count=5)
    killed.kill()
    since = time.monotonic()
    scene.ai.order(held=False)
    waiting = scene.seconds_until(lambda: len(other.find("job_completed")) == 15, since)
    return scene.seconds_until_done(since, other), f"kill; the waiting ones after {waiting:.1f} s"


@row("a job during which the process dies three times")
def deadly_job(scene: Scene, stack: ExitStack) -> Measured:
    scene.ai.order(held=True)
    scene.right_end = "failed"
    service = start(scene, stack)
    scene.upload(1)
    for deaths in range(1, 4):
        service.wait_log("job_claimed")
        scene.seconds_until(partial(scene.has_calls, deaths), time.monotonic())
        service.kill()
        since = time.monotonic()
        service.start()
    return scene.seconds_until_done(since), "third restart"


@row("FLUSHALL, 5 running, 20 waiting")
def wiped_redis(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    scene.ai.order(held=True)
    service = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(25)
    service.wait_log("job_claimed", count=5)
    redis.client().flushall()
    since = time.monotonic()
    scene.ai.order(held=False)
    return scene.seconds_until_done(since), "wipe"


@row("Redis down during 5 uploads")
def redis_down(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    start(scene, stack, REDIS_URL=redis.url)
    redis.stop()
    longest = scene.longest_answer(5)
    redis.start()
    return scene.seconds_until_done(time.monotonic()), f"Redis is back; answered within {longest:.2f} s"


@row("Redis stopped (SIGSTOP) during 5 uploads")
def redis_hangs(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    start(scene, stack, REDIS_URL=redis.url)
    stopped = stack.enter_context(stopped_process(redis.pid))
    longest = scene.longest_answer(5)
    stopped()
    return scene.seconds_until_done(time.monotonic()), f"Redis goes on; answered within {longest:.2f} s"


@row("AI service down for 15 s, 25 uploads")
def ai_down(scene: Scene, stack: ExitStack) -> Measured:
    start(scene, stack)
    scene.ai.kill()
    scene.upload(25)
    time.sleep(15)
    scene.ai.start()
    return scene.seconds_until_done(time.monotonic()), "it is back"


@row("AI service never answers the first 5 of 25")
def ai_hangs(scene: Scene, stack: ExitStack) -> Measured:
    start(scene, stack)
    scene.ai.order(replies=[{"delay_ms": HANGS_MS, "times": 5}])
    since = time.monotonic()
    scene.upload(25)
    return scene.seconds_until_done(since), "upload; the provider's time is 90 s"


@row("client away when the event is sent")
def client_away(scene: Scene, stack: ExitStack) -> Measured:
    service = start(scene, stack)
    scene.upload(5)
    scene.seconds_until_done(time.monotonic())
    since = time.monotonic()
    found = service.get("/api/assets", finishedSince="2020-01-01T00:00:00Z").json()["data"]["items"]
    assert {asset["id"] for asset in found} == set(scene.accepted)
    return time.monotonic() - since, "it is back and asks with finishedSince"


@row("process stopped (SIGSTOP) for 58 s with 4 running, another process goes on")
def stopped_for_a_minute(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    scene.ai.order(held=True)
    stopped = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(4)
    scene.seconds_until(lambda: sum(scene.ai.calls().values()) == 4, time.monotonic())
    other = start(scene, stack, REDIS_URL=redis.url)
    go_on = stack.enter_context(stopped_process(stopped.pid))
    since = time.monotonic()
    scene.ai.order(held=False)
    seconds = scene.seconds_until_done(since, other)
    before = [other.asset(asset_id) for asset_id in scene.accepted]
    time.sleep(max(0, since + 58 - time.monotonic()))
    go_on()
    stopped.wait_log("lease_lost", count=4)
    overwritten = sum(other.asset(asset["id"]) != asset for asset in before)
    return seconds, f"stop; {overwritten} results overwritten after it went on"


@row("socket on another process than the job")
def other_process(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    web = start(scene, stack, REDIS_URL=redis.url, ROLE="web")
    start(scene, stack, REDIS_URL=redis.url, ROLE="worker")
    delays: dict[str, float] = {}
    is_open = threading.Event()

    async def listen() -> None:
        headers = {"Authorization": f"Bearer {make_token()}"}
        async with aiohttp.ClientSession(headers=headers) as session, session.ws_connect(f"{web.url}/ws") as socket:
            await socket.receive_json()
            is_open.set()
            while len(delays) < 25:
                event = await socket.receive_json(timeout=LONGEST_SECONDS)
                sent_at = datetime.fromisoformat(event["timestamp"])
                delays.setdefault(event["assetId"], (datetime.now(UTC) - sent_at).total_seconds())

    listening = threading.Thread(target=asyncio.run, args=(listen(),))
    listening.start()
    is_open.wait()
    scene.upload(25)
    listening.join()
    assert delays.keys() == set(scene.accepted)
    return max(delays.values()), "commit of each, the slowest"


@contextmanager
def stopped_process(pid: int) -> Iterator[Callable[[], None]]:
    """Stop a process; yield what lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)


def measure(name: str) -> Sequence[object]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        scene = Scene(folder, stack.enter_context(AiService()))
        seconds, since = ROWS[name](scene, stack)
        lost = len(scene.left(next(service for service in scene.services if service.is_running)))
        calls, events = scene.calls_beyond_once(), scene.events_beyond_once()
    return name, len(scene.accepted), lost, calls, events, f"{seconds:.2f}", since


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fault", nargs="*", help="rows whose name has this in it; default: all")
    wanted = parser.parse_args().fault
    print("| fault | accepted | lost | calls beyond one | events beyond one | seconds | since |")
    print("|---|---|---|---|---|---|---|")
    for name in ROWS:
        if not wanted or any(part in name for part in wanted):
            print("|", " | ".join(str(cell) for cell in measure(name)), "|", flush=True)


if __name__ == "__main__":
    main()
