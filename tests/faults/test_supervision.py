"""Every long-lived task of a process is ended once, as by an unforeseen fault: it is restarted, readiness names it
meanwhile, and a photo that is sent afterwards is processed and its event received.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline.app import App
from pipeline.assets.asset import AssetStatus
from pipeline.clock import utc_now
from pipeline.metrics import TASKS
from pipeline.queue.job import Job
from pipeline.settings import Settings
from pipeline.supervision import SupervisedTask
from tests.factories import SECRET, make_asset, make_image, make_token
from tests.service import AiService
from tests.workers import Bench, Handler

# The embedded Redis is another process: test_embedded_redis.py.
KINDS = sorted(set(TASKS) - {"embedded"})


class Caller:
    """A user of one process of the service."""

    def __init__(self, app: App, session: aiohttp.ClientSession) -> None:
        self.app = app
        self._session = session
        self._headers = {"Authorization": f"Bearer {make_token('user-1')}"}

    async def readiness(self) -> tuple[int, dict[str, str]]:
        """Return the status of /readyz and its message for each broken part."""
        async with self._session.get(f"{self.app.address}/readyz") as reply:
            body = await reply.json()
            details = body.get("error", {}).get("details", [])
            return reply.status, {each["field"]: each["message"] for each in details}

    async def upload(self) -> str:
        form = aiohttp.FormData({"category": "sneaker"})
        form.add_field("image", make_image(), filename="photo.jpg", content_type="image/jpeg")
        url = f"{self.app.address}/api/assets/analyze-queue"
        async with self._session.post(url, data=form, headers=self._headers) as reply:
            assert reply.status == 202, await reply.text()
            asset_id: str = (await reply.json())["data"]["assetId"]
            return asset_id

    @asynccontextmanager
    async def listening(self, since: str = "") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        params = {"since": since} if since else {}
        async with self._session.ws_connect(f"{self.app.address}/ws", headers=self._headers, params=params) as socket:
            assert (await socket.receive_json(timeout=20))["event"] == "connected"
            yield socket


@asynccontextmanager
async def running(folder: Path, redis_url: str, ai_service_url: str) -> AsyncIterator[Caller]:
    settings = Settings(
        port=0,
        data_dir=folder,
        redis_url=redis_url,
        jwt_secret=SECRET,
        ai_service_url=ai_service_url,
        lease_seconds=2,
    )
    app = App(settings)
    await app.start()
    async with aiohttp.ClientSession() as session:
        yield Caller(app, session)
    await app.stop()


def tasks_of(caller: Caller, kind: str) -> list[SupervisedTask]:
    return [watched for watched in caller.app.parts.base.supervisor._all if watched.kind == kind]


@pytest.mark.fault("E10")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.gen_test(timeout=60)
async def test_ended_task_is_restarted(
    kind: str, tmp_path: Path, redis_url: str, ai_service: AiService, logs: list[Any]
) -> None:
    """All tasks of one kind are cancelled at once and restarted."""
    async with running(tmp_path, redis_url, ai_service.url) as caller, caller.listening() as socket:
        while (await caller.readiness())[0] != 200:
            await asyncio.sleep(0.01)
        # Some tasks have finished their work.
        ended = [each for each in tasks_of(caller, kind) if each.task is not None and not each.task.done()]
        assert ended, f"no task is of the kind {kind}"
        for watched in ended:
            assert watched.task is not None
            watched.task.cancel()
        status, broken = await caller.readiness()
        assert status == 503 and ended[0].name in broken["tasks"], broken
        while (await caller.readiness())[0] != 200:
            await asyncio.sleep(0.01)
        # A task with an end, such as the upgrade of old assets, may have finished by now.
        assert all(watched.task and not watched.task.cancelled() for watched in ended)
        assert not any(watched.task and watched.task.done() and watched.task.exception() for watched in ended)
        asset_id = await caller.upload()
        event = await socket.receive_json(timeout=20)
        assert (event["event"], event["assetId"], event["status"]) == ("asset_processed", asset_id, "active")
        assert {line["task"] for line in logs if line["event"] == "task_ended"} == {each.name for each in ended}
        metric = caller.app.parts.base.metrics.task_restarts.labels(kind)._value.get()
        assert metric == len(ended)


@pytest.mark.gen_test(timeout=60)
async def test_every_task_of_a_process_is_of_a_known_kind(
    tmp_path: Path, redis_url: str, ai_service: AiService
) -> None:
    """An unknown kind would have no metric series before its first failure."""
    async with running(tmp_path, redis_url, ai_service.url) as caller:
        kinds = {watched.kind for watched in caller.app.parts.base.supervisor._all}
        assert kinds == set(KINDS)


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=60)
async def test_thread_that_watches_the_loop_is_restarted(
    tmp_path: Path, redis_url: str, ai_service: AiService, logs: list[Any]
) -> None:
    """A thread that ends also ends the task that started it, and both are restarted."""
    async with running(tmp_path, redis_url, ai_service.url) as caller:
        watchdog = caller.app.parts.operation.watchdog
        first = watchdog._thread
        watchdog._stopped.set()
        while watchdog._thread is first:
            await asyncio.sleep(0.01)
        assert watchdog._thread is not None and watchdog._thread.is_alive()
        assert [line["task"] for line in logs if line["event"] == "task_ended"] == ["watchdog"]


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=60)
async def test_archived_asset_is_not_replayed(
    tmp_path: Path, redis_url: str, ai_service: AiService
) -> None:
    """An asset archived after its end has no event: the others are replayed, and the socket stays open."""
    async with running(tmp_path, redis_url, ai_service.url) as caller:
        store, now = caller.app.parts.assets.store, utc_now()
        archived = replace(make_asset(), user_id="user-1", status=AssetStatus.ARCHIVED, finished_at=now)
        failed = replace(make_asset(), user_id="user-1", status=AssetStatus.FAILED, finished_at=now)
        for asset in (archived, failed):
            assert await store.create(asset)
        async with caller.listening(since="2026-01-01T00:00:00.000Z") as socket:
            event = await socket.receive_json(timeout=20)
            assert (event["event"], event["assetId"]) == ("asset_processed", failed.id)
            asset_id = await caller.upload()
            assert (await socket.receive_json(timeout=20))["assetId"] == asset_id


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=60)
async def test_cancellation_that_escapes_a_handler_frees_its_slot(redis_url: str, logs: list[Any]) -> None:
    """The lease of the job ends and the same slot runs the job a second time."""
    bench = Bench(redis_url, lease_seconds=0.5)
    escaped = []

    async def work(job: Job) -> None:
        if not escaped:
            escaped.append(job.id)
            raise asyncio.CancelledError

    bench.start(Handler(work), concurrency=1, lease_seconds=0.5, renew_seconds=0.1)
    await bench.enqueue(2)
    await bench.until(lambda stats: stats.completed == 2)
    (line,) = [line for line in logs if line["event"] == "task_ended"]
    assert line["task"] == "ai-processing slot 0"
    await bench.close()


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=60)
async def test_writer_whose_connection_breaks_opens_the_file_anew(
    tmp_path: Path, redis_url: str, ai_service: AiService, logs: list[Any]
) -> None:
    """The caller of the write gets UNAVAILABLE; later writes succeed."""
    async with running(tmp_path, redis_url, ai_service.url) as caller, caller.listening() as socket:
        parts: Any = caller.app.parts
        broken: Any = parts.assets.store._writer
        # They write when the process starts, and would use the broken connection first.
        starting = [each for each in parts.base.supervisor._all if each.name in ("storages in use", "upgrade")]
        while not all(each.task.done() for each in starting):
            await asyncio.sleep(0.01)

        async def fail(work: object) -> None:
            raise RuntimeError("an unforeseen error")

        broken.run = fail
        with pytest.raises(AssertionError, match="UNAVAILABLE"):
            await caller.upload()
        while (await caller.readiness())[0] != 200:
            await asyncio.sleep(0.01)
        asset_id = await caller.upload()
        assert (await socket.receive_json(timeout=20))["assetId"] == asset_id
        with closing(sqlite3.connect(tmp_path / "assets.sqlite")) as file:
            assert file.execute("SELECT count(*) FROM assets").fetchone() == (1,)
