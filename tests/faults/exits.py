"""How long the end of a service may take, and a plugin that makes it difficult."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.packages import install
from tests.service import Service

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
# How long the end may take when the process waits for nothing, and while Redis is away.
PROMPT_SECONDS, REDIS_SECONDS = 1.5, 2.0
SHUTDOWN_SECONDS = 1.0
LONGEST_SECONDS = SHUTDOWN_SECONDS + 2

PACKAGE = """
import asyncio, atexit, concurrent.futures, ctypes, multiprocessing, re, threading, time
from pathlib import Path
from pipeline.hooks import Analysis, Attribute, hookimpl

def spin(number):
    while True:
        pass

def read(fifo):
    return len(Path(fifo).read_bytes())

class SlowExit:
    def __init__(self, name, folder, sandbox):
        self.analyze_as, self.fifo = getattr(self, name), str(folder / "fifo")
        self.pool = sandbox.pool("slow", processes=5)

    async def analyze(self, request):
        await self.analyze_as()
        return Analysis(Attribute("Leica", 0.9), Attribute("M6", 0.9))

    async def thread(self):
        threading.Thread(target=time.sleep, args=(1000,), name="left-thread").start()

    async def executor(self):
        self.executor = concurrent.futures.ProcessPoolExecutor(2)
        self.futures = [self.executor.submit(spin, number) for number in range(4)]

    async def processes(self):
        self.processes = multiprocessing.Pool(2)
        self.results = self.processes.map_async(spin, range(4))

    async def at_exit(self):
        atexit.register(time.sleep, 1000)

    async def terminated(self):
        for _ in range(5):
            process = multiprocessing.Process(target=time.sleep, args=(1000,))
            process.start()
            process.terminate()
            process.join()

    async def hangs(self):
        await asyncio.sleep(1000)

    async def ignores_cancellation(self):
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

    async def blocks(self):
        time.sleep(1000)

    async def matches(self):
        re.match("(a+)+$", "a" * 100 + "b")

    async def runs_c(self):
        libc = ctypes.CDLL(None)
        while True:
            libc.sleep(1000)

    async def reads(self):
        await self.pool.run(read, self.fifo, seconds=60)

@hookimpl
def register_ai_providers(settings, sandbox):
    yield settings.ai_provider[0], lambda: SlowExit(settings.ai_provider[0], settings.data_dir, sandbox)
"""


def service_with(tmp_path: Path, provider: str, **more: str) -> Service:
    """Return a service with the plugin; its provider does with a photo what its name says."""
    packages = install(tmp_path / "packages", slow_exit=PACKAGE)
    settings = {"AI_PROVIDER": provider, "SHUTDOWN_SECONDS": f"{SHUTDOWN_SECONDS}"} | more
    return Service(tmp_path / "data", **packages, **settings)


def stop(service: Service) -> float:
    """Send SIGTERM, check that the exit code is 0, and return how many seconds the end took."""
    started_at = time.monotonic()
    assert service.stop() == 0
    return time.monotonic() - started_at
