"""A photo that fails does not delay other photos: python -m benchmarks.isolation [PART ...]

Real processes with default settings; the AI service is a fake that answers after a given time.

- poison: 20 photos that the AI service answers with 500, mixed with 20 good ones of another user, and for comparison 40
  good ones in the same order. Prints the seconds until each of the 20 good photos is done.
- parked: 10,000 jobs of a provider that asks to wait, in front of one job of another provider.
- outage: 200 uploads while the AI service is down for 60 s.
- hostile: photos made to hang their decoder or to fill its memory, with the offline provider. Prints the result of each
  photo, the peak memory of the service and of its children, and the seconds until a good photo sent after it is done.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from PIL import Image

from pipeline.errors import RetryableJobError
from pipeline.hooks.breaker import Breaker, SharedBreakers
from pipeline.metrics import Metrics
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Job, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.queue.worker import Worker
from tests.faults.chaos.world import children_of, resident_mib
from tests.pictures import empty_webp, encode, endless_jpeg, many_items, png
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.workers import Handler

POISON = "lego"
PHOTOS = 20
OUTAGE_SECONDS = 60.0
OUTAGE_UPLOADS = 200


def poison(rounds: int) -> None:
    """Print p50 and maximum of the seconds until a good photo is done, with and without poison, and the ratio."""
    print("| AI answers after | p50, max beside 20 poisoned | p50, max beside 20 good | max: ratio |")
    print("|---|---|---|---|")
    for delay_ms in (20, 300, 1000):
        with_poison, without = [], []
        for _ in range(rounds):
            with_poison += _good_seconds(POISON, delay_ms)
            without += _good_seconds("sneaker", delay_ms)
        shown = [f"{statistics.median(each):.2f}, {max(each):.2f} s" for each in (with_poison, without)]
        print(f"| {delay_ms} ms | {shown[0]} | {shown[1]} | {max(with_poison) / max(without):.2f} |", flush=True)


def _good_seconds(other_category: str, delay_ms: float) -> list[float]:
    behavior = {"delay_ms": delay_ms, "poison": POISON}
    with (
        tempfile.TemporaryDirectory() as folder,
        AiService(**behavior) as ai,
        Service(Path(folder), ai.url) as service,
    ):
        sent: dict[str, float] = {}
        for _ in range(PHOTOS):
            service.upload("other", category=other_category)
            asset_id = service.upload("good").json()["data"]["assetId"]
            sent[asset_id] = time.monotonic()
        seconds = []
        for asset_id, sent_at in sent.items():
            service.wait_log("asset_finished", assetId=asset_id)
            seconds.append(time.monotonic() - sent_at)
        return seconds


def parked(_rounds: int) -> None:
    """Print the seconds until a job is done that waits behind many jobs whose provider asks to wait."""
    for count in (10_000, 100_000):
        seconds = asyncio.run(_parked(count))
        print(f"{count} parked jobs in front: the good one is done after {seconds:.2f} s", flush=True)


async def _parked(count: int) -> float:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    done = asyncio.Event()
    breaker = Breaker(5, 15)
    holds = SharedBreakers({"busy": breaker, "idle": Breaker(5, 15)}, {"sneaker": ("busy",), "": ("idle",)})

    async def work(job: Job) -> None:
        if job.data["category"] == "camera":
            done.set()
            return
        breaker.busy(300, "busy")
        error = RetryableJobError("busy", retry_after_seconds=300)
        error.provider = "busy"
        raise error

    with RedisServer() as redis:
        queue = JobQueue(redis.url, lanes=holds.lanes)
        jobs = [NewJob(f"ai-processing:{n:024x}", {"category": "sneaker"}, lane="sneaker") for n in range(count)]
        await queue.restore(jobs)
        await queue.enqueue(f"ai-processing:{count:024x}", {"category": "camera"}, lane="camera")
        worker = Worker(queue, Handler(work), RetryPolicy(), Metrics(), holds=holds)
        started_at = time.perf_counter()
        worker.start()
        await done.wait()
        seconds = time.perf_counter() - started_at
        await worker.drain(1)
        await queue.close()
        return seconds


def outage(_rounds: int) -> None:
    """Print the statuses of the uploads of an outage, and the seconds from its end until all were done."""
    with (
        tempfile.TemporaryDirectory() as folder,
        AiService(delay_ms=20) as ai,
        Service(Path(folder), ai.url) as service,
    ):
        ai.kill()
        began_at = time.monotonic()
        ids = []
        for number in range(OUTAGE_UPLOADS):
            ids.append(service.upload().json()["data"]["assetId"])
            time.sleep(max(0, began_at + OUTAGE_SECONDS * (number + 1) / OUTAGE_UPLOADS - time.monotonic()))
        ai.start()
        back_at = time.monotonic()
        for asset_id in ids:
            service.wait_log("asset_finished", assetId=asset_id)
        seconds = time.monotonic() - back_at
        ends: dict[str, int] = {}
        for line in service.find("asset_finished"):
            ends[line["status"]] = ends.get(line["status"], 0) + 1
        highest = max(line["attempt"] for line in service.find("job_claimed"))
        starts = len(service.find("job_claimed"))
    print(f"{OUTAGE_UPLOADS} uploads in {OUTAGE_SECONDS:g} s without AI service: {ends}, highest attempt {highest},")
    print(f"{starts - OUTAGE_UPLOADS} starts in vain, all done {seconds:.1f} s after it was back")


def hostile(_rounds: int) -> None:
    """Print the result and the cost of each hostile photo."""
    photos = {
        "blank PNG 400 x 200 (E2)": encode(Image.new("RGB", (400, 200), "white"), "PNG"),
        "progressive JPEG, last scan 3,000 times (E3)": endless_jpeg(),
        "the same, 200 times: taken": endless_jpeg(scans=200),
        "lossless WebP 10000 x 10000, 38 bytes (E4)": empty_webp(),
        "lossless WebP 7000 x 7000: taken": empty_webp(7000, 7000),
        "AVIF 50 megapixels (E4)": encode(Image.new("RGB", (10_000, 5_000)), "AVIF", speed=10),
        "PNG 14000 x 14000": png(14_000, 14_000, depth=1, color=0),
        "AVIF that says it holds 150,000 pictures": many_items(b"avif", 150_000),
    }
    print("| photo | became | service, MiB before, most | children, most | next good photo done after |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, Service(Path(folder)) as service:
        _done_after(service, service.upload("good"))  # loads the models
        for name, content in photos.items():
            before = resident_mib(service.pid)
            with _memory_peaks(service) as peaks:
                reply = service.upload("hostile", image=content)
                seconds = _done_after(service, service.upload("good"))
                became = reply.json()["error"]["details"][0]["message"] if reply.status_code == 400 else ""
                if not became:
                    _done_after(service, reply)
                    asset = service.asset(reply.json()["data"]["assetId"], "hostile")
                    became = asset["aiMetadata"]["error"] or asset["status"]
            memory = f"{before:.0f}, {peaks['service']:.0f} | {peaks['children']:.0f}"
            print(f"| {name} | {became} | {memory} | {seconds:.1f} s |")


def _done_after(service: Service, reply: Any) -> float:
    sent_at = time.monotonic()
    service.wait_log("asset_finished", assetId=reply.json()["data"]["assetId"])
    return time.monotonic() - sent_at


@contextmanager
def _memory_peaks(service: Service) -> Iterator[dict[str, float]]:
    """Yield the peak memory during the block, in MiB: of the service, and of all its children together."""
    peaks, is_over = {"service": 0.0, "children": 0.0}, threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            peaks["service"] = max(peaks["service"], resident_mib(service.pid))
            peaks["children"] = max(peaks["children"], sum(map(resident_mib, children_of(service.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        is_over.set()
        watcher.join()


PARTS: dict[str, Callable[[int], Any]] = {"poison": poison, "parked": parked, "outage": outage, "hostile": hostile}

if __name__ == "__main__":
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="benchmarks.isolation", description=__doc__, formatter_class=formatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.parts or PARTS:
        PARTS[name](options.rounds)
