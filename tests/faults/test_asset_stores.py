"""Faults under the two asset stores, and their effect on the callers of the store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.sqlite_schema import MIGRATIONS
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable, NotStorable
from tests.factories import make_asset
from tests.integration.asset_stores import record_reads
from tests.mongo_server import MongoServer
from tests.slowdown import slowdown
from tests.service import ROOT


@pytest.fixture
def own_mongo_server() -> Iterator[MongoServer]:
    with MongoServer() as server:
        yield server


@pytest.mark.gen_test
async def test_sqlite_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    """Each failed open ends its thread; a remaining thread would keep the process from ending."""
    before = set(threading.enumerate())
    (tmp_path / "assets.sqlite").write_bytes(b"this is no database" * 100)
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    with pytest.raises(ConfigurationError):
        await store.open()
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join, 2)
        assert not thread.is_alive() or thread.name.startswith("asyncio"), thread


@pytest.mark.gen_test
async def test_sqlite_opens_once_the_obstacle_is_gone(tmp_path: Path) -> None:
    """After a failed open, the next open succeeds and creates the tables."""
    path = tmp_path / "assets.sqlite"
    path.write_bytes(b"this is no database" * 100)
    store = SqliteAssetStore(path)
    with pytest.raises(ConfigurationError):
        await store.open()
    path.unlink()
    await store.open()
    assert await store.create(make_asset())
    await store.close()


@pytest.mark.gen_test
async def test_sqlite_refuses_a_file_of_a_newer_version(tmp_path: Path) -> None:
    """An older service does not write into tables that it does not know."""
    connection = sqlite3.connect(tmp_path / "assets.sqlite")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(ConfigurationError, match="newer version"):
        await SqliteAssetStore(tmp_path / "assets.sqlite").open()


@pytest.mark.gen_test
async def test_sqlite_brings_a_file_of_the_first_version_up_to_date(tmp_path: Path) -> None:
    """A file from before the column `excused` is opened, and its assets can be read."""
    path, asset = tmp_path / "assets.sqlite", make_asset()
    connection = sqlite3.connect(path)
    connection.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
    original = json.dumps(asset.to_document()["images"]["original"])
    meta = json.dumps({"brand": None, "model": None, "colorway": None, "processedAt": None, "error": None})
    row = (asset.id, asset.user_id, asset.category, "processing", original, None, asset.processing_job_id, 2, meta)
    connection.execute("INSERT INTO assets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, 0)", row)
    connection.commit()
    connection.close()
    store = SqliteAssetStore(path)
    await store.open()
    await store.refund_start(asset.id, asset.processing_job_id)
    found = await store.get(asset.id)
    await store.close()
    assert found is not None and (found.fence, found.excused, found.starts) == (2, 1, 1)


@pytest.mark.gen_test
@pytest.mark.parametrize("fault", [{"user_id": "\ud800"}, {"fence": 2**70}], ids=["text", "number"])
async def test_sqlite_write_that_is_refused_fails_alone(store: SqliteAssetStore, fault: dict[str, Any]) -> None:
    """Writes in the same commit, and later writes, succeed; the store still closes."""
    assets = [make_asset() for _ in range(4)]
    tasks = [store.create(asset) for asset in (*assets[:2], make_asset(**fault), *assets[2:])]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [result for result in results if result is True] == [True] * 4
    assert isinstance(results[2], NotStorable) and results[2].__cause__ is not None
    assert [await store.get(asset.id) for asset in assets] == assets
    await store.close()


@pytest.mark.gen_test
async def test_sqlite_check_fails_while_writes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a refused write the check fails until the other process unlocks the file, although reads work."""
    monkeypatch.setattr("pipeline.assets.sqlite_schema.BUSY_SECONDS", 0.01)
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    with closing(sqlite3.connect(tmp_path / "assets.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DependencyUnavailable):
            await store.create(make_asset())
        with pytest.raises(DependencyUnavailable, match="cannot be written"):
            await store.check()
    await store.check()
    assert await store.create(make_asset())
    await store.close()


@pytest.mark.gen_test(timeout=60)
async def test_sqlite_is_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    """Processes that create the file at the same time all open it; none fails because it is locked."""
    code = f"""
import asyncio, sys
from pathlib import Path
from pipeline.assets.sqlite import SqliteAssetStore
async def main():
    for number in range(40):
        print(number, flush=True)
        sys.stdin.readline()
        store = SqliteAssetStore(Path({str(tmp_path)!r}) / str(number) / "assets.sqlite")
        await store.open()
        await store.close()
asyncio.run(main())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        for _ in range(40):
            # Each round begins when all processes are ready.
            for process in processes:
                assert process.stdout is not None and process.stdin is not None
                assert await asyncio.to_thread(process.stdout.readline), "a process could not open the store"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
                process.stdin.flush()
        for process in processes:
            await asyncio.to_thread(process.communicate, timeout=10)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]


@pytest.mark.gen_test
async def test_sqlite_searches_from_the_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later page does not read the rows of the earlier pages."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    asked = record_reads(store, monkeypatch)
    now = utc_now()
    await store.page("u", after=(now, "0" * 24))
    await store.finished_since("u", now - timedelta(days=1), limit=5, after=(now, "0" * 24))
    await store.unfinished_before(now, limit=5, after=(now, "0" * 24))
    await store.close()
    connection = sqlite3.connect(tmp_path / "assets.sqlite")
    plans = [connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall() for sql, values in asked]
    connection.close()
    for plan, start in zip(plans, ("(createdAt,id)<", "(finishedAt,id)>", "(createdAt,id)>"), strict=True):
        assert len(plan) == 1 and start in plan[0][3], plan


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("is_hung", [True, False], ids=["hung", "stopped"])
async def test_mongo_calls_fail_within_the_timeout_in_an_outage(own_mongo_server: MongoServer, is_hung: bool) -> None:
    """A hundred calls at once fail in time, although the driver has threads for a few only."""
    store = MongoAssetStore(own_mongo_server.uri("many"), timeout_seconds=0.5)
    await store.open()
    if is_hung:
        os.kill(own_mongo_server.pid, signal.SIGSTOP)
        # Until it is stopped it may answer a call or two.
        os.waitid(os.P_PID, own_mongo_server.pid, os.WSTOPPED)
    else:
        own_mongo_server.stop()
    try:
        started_at = time.monotonic()
        results = await asyncio.gather(*(store.get("0" * 24) for _ in range(100)), return_exceptions=True)
        assert time.monotonic() - started_at < 1.5 * slowdown()
        assert {type(result) for result in results} == {DependencyUnavailable}
    finally:
        if is_hung:
            os.kill(own_mongo_server.pid, signal.SIGCONT)
        await store.close()
