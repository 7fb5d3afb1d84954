"""The parts of benchmarks/fault_recovery.py: one installation with its uploads, and the list of faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.chaos.installation import ChaosService
from tests.service import AiService, Service

LONGEST_SECONDS = 150.0


@dataclass
class Scene:
    """One installation, its AI service and its accepted uploads.

    accepted: the ids of the assets.
    right_end: the status in which they must end.
    """

    folder: Path
    ai: AiService
    services: list[ChaosService] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    right_end: str = "active"

    def upload(self, count: int, service: Service | None = None) -> None:
        """Upload that many photos, by default to the first process; each must be accepted."""
        for _ in range(count):
            reply = (service or self.services[0]).upload()
            assert reply.status_code == 202, reply.text
            self.accepted.append(reply.json()["data"]["assetId"])

    def longest_answer(self, uploads: int) -> float:
        """Make that many uploads one by one; return the seconds of the slowest."""
        longest = 0.0
        for _ in range(uploads):
            sent_at = time.monotonic()
            self.upload(1)
            longest = max(longest, time.monotonic() - sent_at)
        return longest

    def seconds_until(self, is_true: Callable[[], Any], since: float) -> float:
        """Return the seconds from `since` until `is_true` answers true, infinity after LONGEST_SECONDS."""
        while not is_true():
            if time.monotonic() - since > LONGEST_SECONDS:
                return float("inf")
            time.sleep(0.02)
        return time.monotonic() - since

    def seconds_until_done(self, since: float, service: Service | None = None) -> float:
        return self.seconds_until(lambda: not self.unfinished(service), since)

    def unfinished(self, service: Service | None = None) -> list[str]:
        """Return the accepted assets that are not in the status `right_end`."""
        process = service or self.services[0]
        return [asset_id for asset_id in self.accepted if process.asset(asset_id)["status"] != self.right_end]

    def has_calls(self, count: int) -> bool:
        return sum(self.ai.calls().values()) == count

    def calls_beyond_once(self) -> int:
        return int(sum(self.ai.calls().values())) - len(self.accepted)

    def events_beyond_once(self) -> int:
        sent = [line for service in self.services for line in service.log if line["event"] == "asset_finished"]
        return len(sent) - len(self.accepted)


# The seconds until all jobs were done, and the moment from which they are counted.
Measured = tuple[float, str]
Row = Callable[[Scene, ExitStack], Measured]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    """Register a function as the row of that name."""

    def enter(function: Row) -> Row:
        ROWS[name] = function
        return function

    return enter


def start(scene: Scene, stack: ExitStack, **settings: str) -> ChaosService:
    """Start one more process on the scene's data directory."""
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


@contextmanager
def stopped_process(pid: int) -> Iterator[Callable[[], None]]:
    """Stop a process with SIGSTOP; yield a function that lets it continue."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)
