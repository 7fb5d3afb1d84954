"""Backup, restore and move under ten uploads a second: python -m benchmarks.moving [ASSETS] [--json FILE]

One service with its embedded parts (SQLite, local files, one process for previews), full of small photos of all formats
with a processed image and previews. The steps: a backup; its restore into another folder, which `verify` checks; the
move of all images to S3 (moto); the move of all assets to MongoDB and back. During each step another process uploads,
listens to events and fetches images. Prints a table: the seconds of each step, the uploads during it, and how many of
them were refused (any answer but 202), lost (accepted, but not finished or without its event) or dead (a URL that the
service showed and that did not give its image).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import describe
from benchmarks.moving_photos import PHOTOS, USERS
from tests.factories import make_token
from tests.mongo_server import MongoServer
from tests.moto_server import MotoServer
from tests.packages import install
from tests.service import ROOT, Service

ASSETS = 2000
UPLOADS_PER_SECOND = 10
BUCKET = "photos"
LONGEST_SECONDS = 3600.0
PLUGIN = '''
import io
from PIL import Image
from pipeline.hooks import Analysis, Attribute, ProcessedImage, hookimpl

FILE = io.BytesIO()
Image.effect_noise((200, 150), 40).save(FILE, "JPEG")

class Drawn:
    async def analyze(self, request):
        named = Attribute("Nike", 0.9)
        return Analysis(named, named, processed_image=ProcessedImage(FILE.getvalue(), "image/jpeg"))

@hookimpl
def register_ai_providers(settings):
    yield "drawn", Drawn
'''
Row = dict[str, Any]


class Embedded(Service):
    """The service with its embedded parts, and the commands that run beside it."""

    def __init__(self, folder: Path, plugins: Path, **settings: str) -> None:
        path = f"{plugins}{os.pathsep}{ROOT}"
        own = {"PREVIEW_PROCESSES": "1", "AI_PROVIDER": "drawn", "PYTHONPATH": path}
        super().__init__(folder, "", **own, **settings)

    def do(self, *arguments: str) -> tuple[float, Any]:
        """Run a command of run.py; return its seconds and its JSON output. Raises SystemExit when it fails."""
        began_at = time.monotonic()
        run = [sys.executable, str(ROOT / "run.py"), *arguments, "--json"]
        done = subprocess.run(run, capture_output=True, text=True, env=self.environment, timeout=LONGEST_SECONDS)
        if done.returncode:
            raise SystemExit(f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return time.monotonic() - began_at, json.loads(done.stdout)


def fill(service: Service, count: int) -> float:
    """Upload that many photos and wait until all are finished; return the seconds."""
    began_at = time.monotonic()
    client = httpx.Client(timeout=60)

    def upload(number: int) -> None:
        name, content_type, content = PHOTOS[number % len(PHOTOS)]
        reply = client.post(
            f"{service.url}/api/assets/analyze-queue",
            headers={"Authorization": f"Bearer {make_token(USERS[number % len(USERS)])}"},
            files={"image": (name, content, content_type)},
            data={"category": "sneaker"},
        )
        assert reply.status_code == 202, reply.text

    with client, concurrent.futures.ThreadPoolExecutor(8) as threads:
        for _ in threads.map(upload, range(count)):
            pass
    while (status := service.get("/api/assets/queue-status").json()["data"])["waiting"] + status["active"]:
        assert time.monotonic() < began_at + LONGEST_SECONDS
        time.sleep(0.2)
    return time.monotonic() - began_at


@contextmanager
def load(service: Service) -> Iterator[Row]:
    """Run benchmarks.moving_load during the block; after the block the dictionary has its figures."""
    command = [sys.executable, "-m", "benchmarks.moving_load", service.url, f"--per-second={UPLOADS_PER_SECOND}"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    figures: Row = {}
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield figures
    finally:
        out, _ = process.communicate("")
        figures |= json.loads(out)


def measure(count: int, folder: Path, report: Callable[[Row], None]) -> None:
    """Run all steps; report is called with the row of each."""
    plugins = folder / "plugins"
    install(plugins, drawn=PLUGIN)
    with ExitStack() as stack:
        moto = stack.enter_context(MotoServer())
        moto.s3.create_bucket(Bucket=BUCKET)
        stack.enter_context(moto.unchecked())
        service = stack.enter_context(Embedded(folder / "data", plugins, **moto.settings(f"s3://{BUCKET}")))
        report({"step": "fill", "seconds": fill(service, count), "done": {"assets": count}})

        def step(name: str, *arguments: str) -> None:
            with load(service) as figures:
                seconds, done = service.do(*arguments)
            report({"step": name, "seconds": seconds, "done": done} | figures)

        file = folder / "all.backup"
        step("backup", "backup", str(file))
        elsewhere = Embedded(folder / "elsewhere", plugins)
        with load(service) as figures:
            restored, done = elsewhere.do("restore", str(file))
            verified, _ = elsewhere.do("verify")
        report({"step": "restore elsewhere", "seconds": restored, "done": done} | figures)
        report({"step": "verify there", "seconds": verified, "done": done})
        step("verify", "verify")
        step("move --storage object", "move", "--storage", "object")
        report({"step": "verify afterwards", "seconds": service.do("verify")[0], "done": {}})
        mongo = stack.enter_context(MongoServer())
        step("move --store mongodb", "move", "--store", mongo.uri("moved"))
        step("move --store sqlite", "move", "--store", "sqlite")


def shown(row: Row) -> str:
    """Return a row of the table."""
    done = ", ".join(f"{number} {name}" for name, number in row["done"].items() if isinstance(number, int) and number)
    cells = [row["step"], f"{row['seconds']:.1f}", done]
    if "sent" in row:
        counts = (len(row[name]) for name in ("refused", "lost", "dead"))
        cells += [str(each) for each in (row["sent"], *counts, row["looked"], row["p50_ms"], row["p99_ms"])]
    else:
        cells += [""] * 7
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.moving")
    parser.add_argument("assets", type=int, nargs="?", default=ASSETS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures into this file")
    options = parser.parse_args()
    rows: list[Row] = []

    def report(row: Row) -> None:
        rows.append(row)
        print(shown(row), flush=True)

    print(f"{describe()}\n\n| step | seconds | done | uploads | refused | lost | dead | looked at | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        measure(options.assets, Path(folder), report)
    for row in rows:
        for name in ("refused", "lost", "dead"):
            for each in row.get(name, [])[:5]:
                print(f"{row['step']}: {name}: {each}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
