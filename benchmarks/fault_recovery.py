"""The cost of each fault: python -m benchmarks.fault_recovery [FAULT ...]

Real processes with default settings (leases of 15 s); each fault is caused once. Prints a table: the uploads accepted,
how many of them did not end in the right status (lost), the calls of the AI service beyond one per upload, the events
beyond one per upload, and the seconds until all jobs were done, counted from the moment that the row names.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import aiohttp

from benchmarks.fault_scene import LONGEST_SECONDS, ROWS, Measured, Scene, row, start, stopped_process
from tests.factories import make_token
from tests.redis_server import RedisServer
from tests.service import AiService

HANGS_MS = 3_600_000


@row("kill -9, 5 running, 20 waiting; restart with the embedded Redis")
def kill_and_restart(scene: Scene, stack: ExitStack) -> Measured:
    scene.ai.configure(paused=True)
    service = start(scene, stack)
    scene.upload(25)
    service.wait_log("job_claimed", count=5)
    service.kill()
    scene.ai.configure(paused=False)
    since = time.monotonic()
    service.start()
    return scene.seconds_until_done(since), "restart"


@row("kill -9, 5 running, 15 waiting; another process goes on")
def kill_one_of_two(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    scene.ai.configure(paused=True)
    killed = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(5)
    killed.wait_log("job_claimed", count=5)
    other = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(15, other)
    other.wait_log("job_claimed", count=5)
    killed.kill()
    since = time.monotonic()
    scene.ai.configure(paused=False)
    waiting = scene.seconds_until(lambda: len(other.find("job_completed")) == 15, since)
    return scene.seconds_until_done(since, other), f"kill; the waiting ones after {waiting:.1f} s"


@row("a job during which the process dies three times")
def deadly_job(scene: Scene, stack: ExitStack) -> Measured:
    scene.ai.configure(paused=True)
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
    scene.ai.configure(paused=True)
    service = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(25)
    service.wait_log("job_claimed", count=5)
    redis.client().flushall()
    since = time.monotonic()
    scene.ai.configure(paused=False)
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
    scene.ai.configure(replies=[{"delay_ms": HANGS_MS, "times": 5}])
    since = time.monotonic()
    scene.upload(25)
    return scene.seconds_until_done(since), "upload; the provider's time is 90 s"


@row("client away when the event is sent")
def client_away(scene: Scene, stack: ExitStack) -> Measured:
    service = start(scene, stack)
    scene.upload(5)
    scene.seconds_until_done(time.monotonic())
    since = time.monotonic()
    assets = service.get("/api/assets", finishedSince="2020-01-01T00:00:00Z").json()["data"]["items"]
    assert {asset["id"] for asset in assets} == set(scene.accepted)
    return time.monotonic() - since, "it is back and asks with finishedSince"


@row("process stopped (SIGSTOP) for 58 s with 4 running, another process goes on")
def stopped_for_a_minute(scene: Scene, stack: ExitStack) -> Measured:
    redis = stack.enter_context(RedisServer())
    scene.ai.configure(paused=True)
    stopped = start(scene, stack, REDIS_URL=redis.url)
    scene.upload(4)
    scene.seconds_until(lambda: sum(scene.ai.calls().values()) == 4, time.monotonic())
    other = start(scene, stack, REDIS_URL=redis.url)
    go_on = stack.enter_context(stopped_process(stopped.pid))
    since = time.monotonic()
    scene.ai.configure(paused=False)
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


def measure(name: str) -> Sequence[object]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        scene = Scene(folder, stack.enter_context(AiService()))
        seconds, since = ROWS[name](scene, stack)
        lost = len(scene.unfinished(next(service for service in scene.services if service.is_running)))
        calls, events = scene.calls_beyond_once(), scene.events_beyond_once()
    return name, len(scene.accepted), lost, calls, events, f"{seconds:.2f}", since


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fault", nargs="*", help="a part of the names of the rows to run; default: all rows")
    wanted = parser.parse_args().fault
    print("| fault | accepted | lost | calls beyond one | events beyond one | seconds | since |")
    print("|---|---|---|---|---|---|---|")
    for name in ROWS:
        if not wanted or any(part in name for part in wanted):
            print("|", " | ".join(str(cell) for cell in measure(name)), "|", flush=True)


if __name__ == "__main__":
    main()
