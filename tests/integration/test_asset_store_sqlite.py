"""The store in a SQLite file: writes of two processes, indexes, and deleted bytes."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.sqlite import SqliteAssetStore
from tests.factories import make_asset
from tests.integration.asset_stores import NOON, begin, finish, record_reads
from tests.service import ROOT


@pytest.mark.gen_test(timeout=60)
async def test_sqlite_accepts_writes_of_two_processes(tmp_path: Path) -> None:
    """Two processes that write at the same time wait for each other instead of failing."""
    code = f"""
import asyncio
from pathlib import Path
from pipeline.assets.sqlite import SqliteAssetStore
from tests.factories import make_asset
async def main():
    store = SqliteAssetStore(Path({str(tmp_path / "assets.sqlite")!r}))
    await store.open()
    for _ in range(20):
        assert all(await asyncio.gather(*(store.create(make_asset("both")) for _ in range(10))))
    await store.close()
asyncio.run(main())
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [await asyncio.to_thread(process.wait) for process in processes] == [0, 0]
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    assert len(await store.page("both", limit=1000)) == 400
    await store.close()


@pytest.mark.gen_test
async def test_sqlite_reads_are_served_by_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read of assets scans or sorts a table."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    statements = record_reads(store, monkeypatch)
    await store.open()
    after = (NOON, "0" * 24)
    await store.get("0" * 24)
    await store.page("u")
    await store.page("u", after=after)
    await store.finished_since("u", NOON, limit=5, after=after)
    await store.unfinished_before(NOON, limit=5, after=after)
    with closing(sqlite3.connect(tmp_path / "assets.sqlite")) as connection:
        for sql, values in statements:
            plan = "; ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))
            assert re.fullmatch(r"SEARCH assets USING (PRIMARY KEY|INDEX \w+) \(.*\)", plan), f"{sql}: {plan}"
    await store.close()


@pytest.mark.gen_test
async def test_sqlite_reads_of_retention_and_erase_are_served_by_indexes(io_loop: IOLoop, tmp_path: Path) -> None:
    """No statement of retention, erase or keys scans a table."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    statements: list[tuple[str, Any]] = []
    read, write = store._read, store._write

    async def record_read(sql: str, values: Any) -> Any:
        statements.append((sql, values))
        return await read(sql, values)

    async def record_write(sql: str, values: Any) -> Any:
        statements.append((sql, values))
        return await write(sql, values)

    store._read, store._write = record_read, record_write  # type: ignore[method-assign]
    for after in (None, (NOON, "a" * 24)):
        await store.expired(NOON, limit=10, after=after)
        await store.originals_before(NOON, limit=10, after=after)
        await store.newest_records("audit", limit=10, after=after)
    await store.records_of("user-1")
    await store.records_of("user-1", kinds=["delivery"])
    await store.records_of("user-1", "a" * 24)
    await store.discard_keys("a" * 24)
    await store.damaged_of("user-1")
    await store.existing_ids(["a" * 24])
    plans = [await read(f"EXPLAIN QUERY PLAN {sql}", values) for sql, values in statements]
    steps = [row["detail"] for plan in plans for row in plan]
    assert len(plans) == 14
    assert [step for step in steps if "json_each" not in step and not step.startswith(("SEARCH", "LIST"))] == []
    await store.close()


@pytest.mark.gen_test
async def test_scrub_removes_deleted_bytes_from_the_files(io_loop: IOLoop, tmp_path: Path) -> None:
    """After 500 of 1000 assets were deleted and the store was scrubbed, the files contain none of the 500."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    assets = [make_asset(f"secret-person-{number % 2}") for number in range(1000)]
    await asyncio.gather(*map(store.create, assets))
    await asyncio.gather(*(begin(store, asset) for asset in assets))
    await asyncio.gather(*(finish(store, asset, 1) for asset in assets))
    await asyncio.gather(*(store.delete(asset.id, asset.user_id) for asset in assets[::2]))
    await store.scrub()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert content.count(b"secret-person-0") == 0
    assert content.count(b"secret-person-1") >= 500
    await store.close()
