"""500 uploads to their events, in this version and in another one: python -m benchmarks.versions REVISION

The other version runs from a checkout and an environment of its own under build/versions. Every round runs the other
version, this one without previews, and this one with its defaults. Each has its embedded parts and a fake AI service
that takes 5 ms. The photos are noise of 100 KB, whose previews cost nothing, and a generated JPEG of 2 megapixels,
whose previews cost as much as those of a phone's photo.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
from PIL import Image, ImageFilter

from benchmarks import machine
from benchmarks.comparison import OURS, Column, Comparison, Report
from benchmarks.peers import CHECKOUT
from benchmarks.uploads.suite import Running, drive, lag_p99_ms
from tests.factories import make_noise_image
from tests.service import AiService, Service

FOLDER = CHECKOUT / "build" / "versions"
PHOTO_SIZE = (1632, 1224)
COLUMNS = [
    Column("accepted", "/s", more_is_better=True),
    Column("total", "s"),
    Column("p50", "s"),
    Column("p99", "s"),
    Column("CPU", "ms each"),
    Column("loop lag p99", "ms"),
]


def check_out(revision: str) -> Path:
    """Return a folder with that version, installed into its .venv."""
    name = subprocess.check_output(["git", "rev-parse", "--short", revision], cwd=CHECKOUT, text=True).strip()
    folder = FOLDER / name
    if not folder.exists():
        subprocess.run(["git", "worktree", "prune"], cwd=CHECKOUT, check=True)
        subprocess.run(["git", "worktree", "add", "--detach", str(folder), name], cwd=CHECKOUT, check=True)
    subprocess.run(["make", "--silent", ".venv/installed"], cwd=folder, check=True)
    return folder


def make_photo() -> bytes:
    """Return a JPEG with as much detail as a photo has, about 0.4 MB."""
    width, height = PHOTO_SIZE
    small = (width // 8, height // 8)
    noise = Image.frombytes("RGB", small, random.Random(0).randbytes(small[0] * small[1] * 3))
    buffer = io.BytesIO()
    noise.resize(PHOTO_SIZE).filter(ImageFilter.GaussianBlur(1)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(checkout: Path, settings: Mapping[str, str], image: Path, count: int) -> dict[str, float]:
    """Return the figures of one run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        service = Service(folder, stack.enter_context(AiService(delay_ms=5)).url, SHUTDOWN_SECONDS="1")
        service.checkout = checkout
        if checkout != CHECKOUT:
            service.python = str(checkout / ".venv/bin/python")
        del service.environment["PREVIEW_PROCESSES"]
        service.environment |= settings
        service.start()
        stack.callback(service.kill)
        running = Running(int(service.url.rpartition(":")[2]), service.pid)
        drive(running, "events", 32, image=image)
        before, cpu = lag_p99_ms(running.port, {})[1], machine.cpu_seconds(running.pids)
        times = drive(running, "events", count, image=image)
        cpu = machine.cpu_seconds(running.pids) - cpu
        lag = lag_p99_ms(running.port, before)[0]
        _check_previews(service, wanted="PREVIEW_PROCESSES" not in settings and checkout == CHECKOUT)
    waits = statistics.quantiles(times["waits"], n=100)
    return {
        "accepted": count / times["accepted"],
        "total": times["total"],
        "p50": waits[49],
        "p99": waits[98],
        "CPU": cpu / count * 1000,
        "loop lag p99": lag,
    }


def _check_previews(service: Service, *, wanted: bool) -> None:
    items = httpx.get(f"{service.url}/api/assets?limit=100", headers=service.headers("user-1")).json()["data"]["items"]
    made = sum(bool(item["images"].get("previews")) for item in items)
    if bool(made) is not wanted:
        raise RuntimeError(f"{made} of {len(items)} assets have previews")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.versions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    other = check_out(options.revision)
    report = Report("versions", machine=machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        for title, content in (("100 KB of noise", make_noise_image(100_000)), ("2 megapixels", make_photo())):
            image = Path(folder, "image")
            image.write_bytes(content)
            comparison = Comparison(f"{options.count} uploads, {title}", "", COLUMNS)
            candidates = {
                OURS: partial(measure, CHECKOUT, {}, image, options.count),
                f"{OURS}, no previews": partial(measure, CHECKOUT, {"PREVIEW_PROCESSES": "0"}, image, options.count),
                other.name: partial(measure, other, {}, image, options.count),
            }
            comparison.measure(candidates, options.rounds)
            report.comparisons.append(comparison)
    report.print()


if __name__ == "__main__":
    main()
