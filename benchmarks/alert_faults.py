"""The faults of benchmarks/alert_drills.py: each is caused and ended on real processes of the service."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from tests.faults.disks import Disk, mounted
from tests.mongo_server import MongoServer
from tests.packages import install
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.toxiproxy import free_port

T = TypeVar("T")
UPLOAD_EVERY_SECONDS = 3.0
DISK_MB = 64
SLOW_MS = 40_000
BLOCKER = '''
import os
import time
from pathlib import Path

from pipeline.hooks import Analysis, Attribute, hookimpl


class Blocker:
    async def analyze(self, request):
        if Path(os.environ["GATE"]).exists():
            time.sleep(0.5)
        sure = Attribute("Nike", 0.9)
        return Analysis(sure, sure, sure)


@hookimpl
def register_ai_providers(settings):
    yield "blocker", Blocker
'''


class World:
    """The parts of one drill.

    ai: the AI service of all processes.
    services: the processes; the first one gets the uploads.
    """

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.folder = folder
        self._opened = opened
        self.ai = self.enter(AiService())
        self.services: list[Service] = []

    def enter(self, part: AbstractContextManager[T]) -> T:
        """Start a part that ends with the drill."""
        return self._opened.enter_context(part)

    def serve(self, *, data_dir: Path | None = None, **settings: str) -> Service:
        """Start one more process of the service.

        data_dir: by default the directory that all processes share.
        """
        settings |= {"PORT": str(free_port())}
        service = Service(data_dir or self.folder / "photos", self.ai.url, **settings)
        service.start()
        self._opened.callback(lambda: service.stop() if service.is_running else None)
        self.services.append(service)
        return service

    def upload(self) -> None:
        """Let a user upload until the drill ends."""
        self.enter(self.uploading(UPLOAD_EVERY_SECONDS, "user-1"))

    @contextmanager
    def uploading(self, every_seconds: float, sub: str) -> Iterator[None]:
        """Upload as the user `sub` until the end of the block; failed uploads are ignored."""
        is_over = threading.Event()

        def drive() -> None:
            with httpx.Client() as client:
                while not is_over.wait(every_seconds):
                    with suppress(httpx.HTTPError):
                        self.services[0].upload(sub, client=client)

        thread = threading.Thread(target=drive)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


@dataclass
class Drill:
    """One fault.

    alerts: the alerts that must fire; "PipelineDependencyDown redis" is the one with name="redis".
    steps: a generator that prepares the world, then causes the fault, then ends it.
    """

    fault: str
    alerts: tuple[str, ...]
    steps: Callable[[World], Iterator[None]]


DRILLS: dict[str, Drill] = {}


def drill(fault: str, *alerts: str) -> Callable[[Callable[[World], Iterator[None]]], Callable[[World], Iterator[None]]]:
    """Register a function as a drill; it yields before the fault and before the end of the fault."""

    def add(steps: Callable[[World], Iterator[None]]) -> Callable[[World], Iterator[None]]:
        DRILLS[steps.__name__] = Drill(fault, alerts, steps)
        return steps

    return add


@drill("AI service stopped, no uploads", "PipelineDependencyDown provider:http")
def idle_ai_down(world: World) -> Iterator[None]:
    world.serve()
    yield
    world.ai.kill()
    yield
    world.ai.start()


@drill("AI service stopped, under uploads", "PipelineProviderHeld", "PipelineDependencyDown provider:http")
def ai_down(world: World) -> Iterator[None]:
    world.serve()
    world.upload()
    yield
    world.ai.kill()
    yield
    world.ai.start()


@drill("AI service takes 40 s for a photo", "PipelineAiSlow")
def slow_ai(world: World) -> Iterator[None]:
    world.serve(CONCURRENCY="20")
    world.upload()
    yield
    world.ai.configure(delay_ms=SLOW_MS)
    yield
    world.ai.configure(delay_ms=0)


@drill("Redis stopped", "PipelineDependencyDown redis")
def redis_down(world: World) -> Iterator[None]:
    redis = world.enter(RedisServer())
    world.serve(REDIS_URL=redis.url)
    world.upload()
    yield
    redis.stop()
    yield
    redis.start()


@drill("asset store: SQLite locked by another program", "PipelineDependencyDown store", "PipelineServerErrors")
def store_down(world: World) -> Iterator[None]:
    service = world.serve()
    world.upload()
    yield
    command = [sys.executable, "-c", LOCK, str(service.data_dir / "assets.sqlite")]
    locking = subprocess.Popen(command, stdin=subprocess.PIPE)
    yield
    locking.kill()
    locking.wait()


LOCK = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
    "connection.execute('BEGIN EXCLUSIVE')\n"
    "sys.stdin.read()"
)


@drill("asset store: MongoDB stopped, no uploads", "PipelineDependencyDown store")
def idle_mongo_down(world: World) -> Iterator[None]:
    mongo = world.enter(MongoServer())
    world.serve(MONGODB_URI=mongo.uri("photos"))
    yield
    mongo.stop()
    yield
    mongo.start()


@drill("image storage: the folder is gone", "PipelineDependencyDown storage", "PipelineServerErrors")
def storage_down(world: World) -> Iterator[None]:
    media = world.serve().data_dir / "media"
    world.upload()
    yield
    media.rename(media.with_name("away"))
    yield
    media.with_name("away").rename(media)


@drill("one user sends as fast as it can", "PipelineFlood")
def flood(world: World) -> Iterator[None]:
    world.serve(UPLOADS_PER_MINUTE_PER_USER="60")
    world.upload()
    yield
    with world.uploading(0.03, "user-2"):
        yield


@drill("a plugin blocks the event loop for 0.5 s each time", "PipelinePluginBlocksLoop")
def blocking_plugin(world: World) -> Iterator[None]:
    gate = world.folder / "gate"
    packages = install(world.folder / "packages", blocker=BLOCKER)
    world.serve(PYTHONPATH=packages["PYTHONPATH"], AI_PROVIDER="blocker", GATE=str(gate))
    world.upload()
    yield
    gate.touch()
    yield
    gate.unlink()


@drill("93 % of the disk are used", "PipelineDiskFilling")
def filling_disk(world: World) -> Iterator[None]:
    disk = _disk(world)
    yield
    disk.fill(left_bytes=DISK_MB * 1024 * 1024 * 7 // 100)
    yield
    disk.clear()


@drill("the disk is full", "PipelineDependencyDown disk", "PipelineServerErrors")
def full_disk(world: World) -> Iterator[None]:
    disk = _disk(world)
    yield
    disk.fill()
    yield
    disk.clear()


def _disk(world: World) -> Disk:
    disk = world.enter(mounted(world.folder / "disk", DISK_MB))
    redis = world.enter(RedisServer())
    world.serve(data_dir=disk.folder, REDIS_URL=redis.url, MAX_UPLOAD_BYTES="1000000")
    world.upload()
    return disk


@drill("one of two processes killed by kill -9", "PipelineInstanceDown", "PipelineProcessLost")
def dead_process(world: World) -> Iterator[None]:
    redis = world.enter(RedisServer())
    world.serve(REDIS_URL=redis.url)
    victim = world.serve(REDIS_URL=redis.url)
    world.upload()
    yield
    victim.kill()
    yield
    victim.start()


@drill("every process killed by kill -9", "PipelineNoSlots", "PipelineInstanceDown")
def none_left(world: World) -> Iterator[None]:
    service = world.serve()
    world.upload()
    yield
    service.kill()
    yield
    service.start()
