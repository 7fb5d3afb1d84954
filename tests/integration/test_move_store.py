"""The command `move --store` while a service takes uploads."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store_move import MOVE, STORE
from tests.integration.running_service import Uploads, command, read
from tests.service import ROOT, AiService, Service

pytestmark = pytest.mark.fault("U17")


async def kill_move(service: Service, path: Path, uri: str) -> None:
    """Start the command that moves the store in `path` to `uri`, and kill it after its first heartbeat."""
    arguments = [sys.executable, str(ROOT / "run.py"), "move", "--store", uri]
    move = subprocess.Popen(arguments, env=service.environment, stderr=subprocess.DEVNULL)
    store = SqliteAssetStore(path)
    await store.open()
    while not (record := await store.find_record(MOVE, STORE)) or not record.data["beat"]:
        await asyncio.sleep(0.02)
    await store.close()
    move.send_signal(signal.SIGKILL)
    move.wait()


@pytest.mark.gen_test(timeout=180)
async def test_service_takes_uploads_while_its_store_moves_and_back(
    tmp_path: Path, ai_service: AiService, mongo_uri: str
) -> None:
    """The store moves to a MongoDB, with the command killed once, and back: no upload is refused and all end.

    The service restarts in between with its old settings. The address is in no log.
    """
    with Service(tmp_path, ai_service.url) as service:
        with Uploads(service) as uploads:
            await kill_move(service, tmp_path / "assets.sqlite", mongo_uri)
            moved = command(service, "move", "--store", mongo_uri, "--json")
            assert moved.returncode == 0, moved.stderr
            assert json.loads(moved.stdout)["flaws"] == []
            service.wait_log("store_moved")
        service.stop()
        service.start()
        with Uploads(service) as more:
            service.wait_log("store_moved")
        for asset_id in uploads.accepted + more.accepted:
            assert read(service, asset_id)["status"] == "active"
        assert uploads.refused == more.refused == []
        assert mongo_uri not in json.dumps(service.lines) + moved.stderr + moved.stdout
        repeated = command(service, "move", "--store", mongo_uri)
        assert repeated.returncode == 0 and "in that store already" in repeated.stderr
        assert command(service, "verify").returncode == 0
        with Uploads(service) as last:
            back = command(service, "move", "--store", "sqlite", "--json")
            assert back.returncode == 0, back.stderr
            service.wait_log("store_moved", 2)
        for asset_id in uploads.accepted + more.accepted + last.accepted:
            assert read(service, asset_id)["status"] == "active"
        assert last.refused == []
        listed = httpx.get(f"{service.url}/api/assets?limit=100", headers=service.headers()).json()["data"]["items"]
        assert len(listed) == min(100, len(uploads.accepted + more.accepted + last.accepted))


def test_command_says_what_it_needs(tmp_path: Path) -> None:
    """Without a target, with two targets, or with an unknown kind of address the error names the fault."""
    service = Service(tmp_path)
    for arguments, text in (
        ([], "Use either"),
        (["--storage", "local", "--abandon"], "Use either"),
        (["--store", "postgres://x"], "mongodb://"),
    ):
        refused = command(service, "move", *arguments)
        assert refused.returncode == 2 and text in refused.stderr and "Traceback" not in refused.stderr
