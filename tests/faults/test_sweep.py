"""Stored images that no asset names go within a day, and no other image ever goes."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.asset_ids import processed_public_id
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.storages import Storages
from pipeline.hooks.storage_calls import StorageCalls
from pipeline.images import ImageName, SavedImage
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.tracing import OFF
from pipeline.usecases.retention import LEAST_AGE, OWNERS, Sweeper
from pipeline.usecases.storages_in_use import storages_left, names_in_use, record_storage_left
from pipeline.plugins.storage_local import LocalStorage
from tests.factories import make_asset, make_image
from tests.memory_storage import MemoryStorage
from tests.packages import install
from tests.redis_server import RedisServer
from tests.service import AiService, Service

LONG_AGO = utc_now() - 2 * LEAST_AGE
TURN_KEY = "pipeline:{ai-processing}:turn:sweep"


@dataclass
class Yard:
    """A store, a Redis and a storage with what is swept; `later` is how far its clock runs ahead."""

    store: SqliteAssetStore
    storage: Any
    queue: JobQueue
    redis: Redis
    metrics: Metrics
    later: timedelta = timedelta()

    def sweeper(self) -> Sweeper:
        now = lambda: utc_now() + self.later  # noqa: E731
        return Sweeper(self.store, self.storage, self.queue, self.metrics, now=now)

    async def sweep(self) -> None:
        """Sweep as if the last one were long ago."""
        self.redis.delete(TURN_KEY)
        await self.sweeper().sweep()

    async def add(self, status: AssetStatus = AssetStatus.ACTIVE, fence: int = 0, processed: int = 0) -> Asset:
        """Insert an asset and save its images. processed: of which run."""
        asset = make_asset(status=status, fence=fence)
        if processed:
            public_id = processed_public_id(asset.id, processed)
            asset = replace(asset, processed=ImageRef("memory", public_id, "https://images.example/p", "0" * 64))
        for name in asset.image_names:
            await self.save(name.public_id)
        assert await self.store.create(asset)
        return asset

    async def save(self, public_id: str) -> str:
        await self.storage.save(public_id, io.BytesIO(make_image()), "image/jpeg")
        return public_id

    async def names(self) -> set[str]:
        """Return what is stored, but for the marks of installations."""
        parts = self.storage.list_images(self.storage.backends[0], "", 100)
        stored = [image.public_id async for part in parts for image in part]
        return {name for name in stored if not name.startswith(OWNERS)}

    @property
    def swept(self) -> float:
        return self.metrics.registry.get_sample_value("pipeline_images_swept_total") or 0


def names_of(asset: Asset) -> list[str]:
    return [name.public_id for name in asset.image_names]


def no_other(name: str) -> StorageCalls:
    raise ConfigurationError(f"there is no storage {name}")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return tmp_path / "media"


@pytest.fixture
def yard(io_loop: IOLoop, tmp_path: Path, media: Path, redis_url: str, redis: Redis) -> Iterator[Yard]:
    """With images in a folder, marked as ours; its clock is a day ahead, so that all that is stored is old."""
    local, metrics = LocalStorage(media, "http://127.0.0.1:8080"), Metrics()
    methods = {name: getattr(local, name) for name in ("save", "open", "delete", "check", "list")}
    storing = StorageCalls(BoundPlugin("storage", "memory", local, methods, threads=2, metrics=metrics), 5, OFF)
    store, queue = SqliteAssetStore(tmp_path / "assets.sqlite"), JobQueue(redis_url)
    io_loop.run_sync(store.open)
    yard = Yard(store, Storages(storing, no_other), queue, redis, metrics)
    io_loop.run_sync(yard.sweep)
    yard.later = timedelta(days=1)
    yield yard
    io_loop.run_sync(queue.close)
    io_loop.run_sync(store.close)
    io_loop.run_sync(storing.close)


@pytest.mark.fault("E14")
@pytest.mark.gen_test
async def test_sweep_removes_what_no_asset_names(yard: Yard, media: Path) -> None:
    """Images whose asset never came or is gone, and those of superseded runs; nothing that is named, or not ours."""
    record = [
        *names_of(await yard.add()),
        *names_of(await yard.add(fence=3, processed=3)),
        *names_of(await yard.add(AssetStatus.FAILED, fence=5)),
    ]
    running = await yard.add(AssetStatus.PROCESSING, fence=4)
    record += [running.original.public_id, await yard.save(processed_public_id(running.id, 4))]
    for number in (1, 3, 5, 44):
        await yard.save(processed_public_id(running.id, number))
    for name in ("original-1a2b3c4d", "processed-1", "preview/320"):
        await yard.save(f"{make_asset().id}/{name}")
    foreign = ["beach", "holidays/beach", "65f0/original", f"backup/{make_asset().id}/original", f"{make_asset().id}"]
    record += [await yard.save(name) for name in foreign]
    (media / "notes.txt").write_text("not ours")
    await yard.sweep()
    assert await yard.names() == {*record, "notes"}
    assert yard.swept == 7


@pytest.mark.fault("E14")
@pytest.mark.gen_test
async def test_image_that_may_still_be_named_stays(yard: Yard, media: Path) -> None:
    """What is younger than any upload or job is left alone, told by when the file was saved."""
    asset_id = make_asset().id
    younger, older = await yard.save(f"{asset_id}/original-1"), await yard.save(f"{asset_id}/original-2")
    limit = (utc_now() + yard.later - LEAST_AGE).timestamp()
    os.utime(media / f"{younger}.jpg", (limit + 60, limit + 60))
    os.utime(media / f"{older}.jpg", (limit - 60, limit - 60))
    await yard.sweep()
    assert await yard.names() == {younger}


@pytest.mark.gen_test
async def test_one_process_sweeps_and_then_none_for_hours(yard: Yard) -> None:
    """Of two that find it due one sweeps; afterwards a key in Redis keeps both from it, and its loss sweeps sooner."""
    first, second = yard.sweeper(), yard.sweeper()
    yard.redis.delete(TURN_KEY)
    await yard.save(f"{make_asset().id}/original-1")
    await asyncio.gather(first.sweep(), second.sweep())
    assert yard.swept == 1
    left = await yard.save(f"{make_asset().id}/original-1")
    for sweeper in (first, second):
        await sweeper.sweep()
    assert await yard.names() == {left}
    assert 5 * 3600 < int(str(yard.redis.ttl(TURN_KEY))) <= 6 * 3600
    await yard.sweep()
    assert await yard.names() == set()


@pytest.mark.gen_test
@pytest.mark.parametrize("away", ["store", "store's answer", "storage", "queue"])
async def test_nothing_is_removed_while_something_is_away(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Without a sure answer no image goes; the sweep is made when all are back."""
    orphan = await yard.save(f"{make_asset().id}/original-1")

    async def unavailable(*arguments: Any) -> Any:
        raise DependencyUnavailable("away")

    broken = {
        "store": (yard.store, "identity"),
        "store's answer": (yard.store, "get_many"),
        "storage": (yard.storage.current, "_call"),
        "queue": (yard.queue, "_call"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*broken[away], unavailable)
        with pytest.raises(DependencyUnavailable):
            await yard.sweep()
    assert await yard.names() == {orphan}
    await yard.sweep()
    assert await yard.names() == set()


@pytest.mark.gen_test
async def test_two_installations_in_one_storage_sweep_nothing(yard: Yard, tmp_path: Path) -> None:
    """Each would take the images of the other for its own leftovers; the one that came later marks it, too."""
    theirs = replace(yard, store=SqliteAssetStore(tmp_path / "another.sqlite"))
    await theirs.store.open()
    orphan = await yard.save(f"{make_asset().id}/original-1")
    for each in (theirs, yard, theirs):
        await each.sweep()
    assert await yard.names() == {orphan}
    await theirs.store.close()


@pytest.mark.gen_test
async def test_new_mark_must_grow_old_before_anything_goes(yard: Yard, media: Path) -> None:
    """Another installation gets as long to leave its mark as its images need to look like leftovers."""
    orphan = await yard.save(f"{make_asset().id}/original-1")
    (mark,) = (media / OWNERS).iterdir()
    mark.unlink()
    for _ in range(2):
        yard.later = timedelta()
        os.utime(media / f"{orphan}.jpg", (0, 0))
        await yard.sweep()
    assert await yard.names() == {orphan}
    os.utime(mark, (0, 0))
    await yard.sweep()
    assert await yard.names() == set()


@pytest.mark.gen_test
@pytest.mark.fault("U16")
async def test_storage_that_images_were_moved_away_from_is_swept_when_their_urls_have_ended(yard: Yard) -> None:
    """Until then no asset names them, and pages that were loaded before still show them."""
    orphan = await yard.save(f"{make_asset().id}/original-1")
    await record_storage_left(yard.store, "memory", int(yard.later.total_seconds()) + 3600)
    await yard.sweep()
    assert await yard.names() == {orphan}
    yard.later += timedelta(hours=2)
    await yard.sweep()
    assert await yard.names() == set()


@pytest.mark.gen_test
@pytest.mark.fault("U12")
async def test_storage_that_was_left_and_is_empty_is_forgotten(yard: Yard) -> None:
    """It keeps no settings in use for ever; one that still holds an image is remembered, and so is the current one."""

    class Two(MemoryStorage):
        backends = ("new", "memory")  # type: ignore[assignment]

        async def list_images(self, backend: str, *arguments: Any) -> Any:
            async for images in super().list_images(backend, *arguments):
                if backend == "memory":
                    yield images

    asset = make_asset()
    assert await yard.store.create(asset)
    yard.storage = Two()
    mark = f"{OWNERS}{await yard.store.identity()}"
    yard.storage.put(mark, asset.original.public_id, at=LONG_AGO)
    for name in ("new", "memory"):
        await yard.store.put_record(Record("storage", name, utc_now(), {}))
        await record_storage_left(yard.store, name, 0)
    await yard.sweep()
    assert set(await names_in_use(yard.store)) == {"new", "memory"} and mark in yard.storage.images
    await yard.store.delete(asset.id, asset.user_id)
    for _ in range(2):
        await yard.sweep()
    assert await names_in_use(yard.store) == ["new"] and asset.original.public_id not in yard.storage.images
    assert await storages_left(yard.store) == {"new"}


@pytest.mark.gen_test
async def test_storage_that_refuses_to_delete_ends_the_sweep(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image that cannot be removed is passed over; a storage that refuses them all is left in peace."""
    orphans = [await yard.save(f"{make_asset().id}/original-1") for _ in range(20)]
    delete, refused = yard.storage.delete, {orphans[3]}
    asked = []

    async def delete_some(name: ImageName) -> None:
        asked.append(name)
        if name.public_id in refused:
            raise DependencyUnavailable("Image storage unavailable")
        await delete(name)

    monkeypatch.setattr(yard.storage, "delete", delete_some)
    await yard.sweep()
    assert await yard.names() == refused
    refused.update([await yard.save(f"{make_asset().id}/original-1") for _ in range(20)])
    asked.clear()
    with pytest.raises(DependencyUnavailable):
        await yard.sweep()
    assert len(asked) == 5


class Shuffled(MemoryStorage):
    """A storage whose calls take turns at random. What a run stores looks old at once."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance

    async def pause(self) -> None:
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)

    async def save(self, public_id: str, *arguments: Any) -> SavedImage:
        saved = await super().save(public_id, *arguments)
        if "processed" in public_id:
            self.put(public_id, at=LONG_AGO)
        await self.pause()
        return saved

    async def delete(self, name: ImageName) -> None:
        await self.pause()
        await super().delete(name)


async def live(yard: Yard, chance: random.Random) -> None:
    """Let one asset be uploaded, run, run again and perhaps deleted, as the service does it."""
    asset = make_asset()
    await yard.save(asset.original.public_id)
    # Only now may it look old: no upload takes so long as a sweep lets it.
    await yard.store.create(asset)
    yard.storage.put(asset.original.public_id, at=LONG_AGO)
    for _ in range(chance.randrange(1, 4)):
        begun = await yard.store.begin(asset.id, asset.user_id, asset.processing_job_id)
        assert begun is not None
        if chance.random() < 0.3:
            continue  # its process died before it saved anything
        public_id = await yard.save(processed_public_id(asset.id, begun.fence))
        if chance.random() < 0.3:
            continue  # and here after that
        ref = ImageRef("memory", public_id, "https://images.example/p", "0" * 64)
        keep = dict(status=AssetStatus.PARTIAL, ai_metadata=asset.ai_metadata, finished_at=utc_now())
        finished = await yard.store.finish(
            asset.id, asset.processing_job_id, begun.fence, processed=ref, **keep  # type: ignore[arg-type]
        )
        assert finished is not None
        if chance.random() < 0.5:
            break
        await yard.store.requeue(asset.id, asset.user_id, asset.processing_job_id)
    if chance.random() < 0.3:
        await yard.store.delete(asset.id, asset.user_id)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.gen_test(timeout=60)
async def test_sweep_beside_uploads_runs_and_deletes_removes_nothing_that_is_named(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever the order of three hundred lives and of the sweeps beside them: what is named at the end is stored."""
    monkeypatch.setattr("pipeline.usecases.retention.REST_SECONDS", 0)
    chance = random.Random(seed)
    parts = yard.storage.list_images(yard.storage.backends[0], OWNERS, 2)
    (mark,) = [image.public_id async for part in parts for image in part]
    yard.storage, yard.later = Shuffled(chance), timedelta()
    yard.storage.put(mark, at=LONG_AGO)

    async def live_on() -> None:
        for _ in range(15):
            await live(yard, chance)

    lives = [asyncio.create_task(live_on()) for _ in range(20)]
    while not all(each.done() for each in lives):
        await yard.sweep()
    await asyncio.gather(*lives)
    removed_beside = yard.swept
    await yard.sweep()
    ids = {name.split("/")[0] for name in yard.storage.saved_at} - {"owner"}
    assets = await yard.store.get_many(ids)
    named = {public_id for asset in assets for public_id in names_of(asset)}
    stored = await yard.names()
    assert named <= stored and len(named) > 200
    # What else is there belongs to runs that may yet be committed.
    assert all(any(asset.refers_to(ImageName("memory", public_id)) for asset in assets) for public_id in stored)
    assert removed_beside > 0


SIGNALS = """
import time
from pathlib import Path
from pipeline.hooks import hookimpl
from pipeline.plugins.storage_local import LocalStorage

class Signals(LocalStorage):
    def __init__(self, folder):
        super().__init__(folder / "media", "http://127.0.0.1:8080")
        self.folder = folder

    def save(self, public_id, file, content_type):
        url = super().save(public_id, file, content_type)
        if (self.folder / "hang").exists():
            (self.folder / "saved").touch()
            while (self.folder / "hang").exists():
                time.sleep(0.02)
        return url

@hookimpl
def register_storage_backends(settings):
    yield "signals", lambda: Signals(settings.data_dir)
"""


class SweepingService(Service):
    """Looks at once whether a sweep is due, and again soon."""

    command = (
        "-c",
        "from pipeline.usecases import retention\n"
        "retention.FIRST_SECONDS = retention.LOOK_SECONDS = (0.1, 0.2)\n"
        "from pipeline.cli import main\n"
        "main(['serve'])",
    )


@pytest.mark.fault("E14")
def test_image_of_an_upload_killed_before_its_insert_is_swept(tmp_path: Path, ai_service: AiService) -> None:
    """kill -9 between save and insert: after six hours the image goes, that of a good upload stays."""
    packages = install(tmp_path / "packages", signals=SIGNALS)
    data, media = tmp_path / "data", tmp_path / "data/media"
    with RedisServer() as redis:
        shared = packages | {"STORAGE_BACKEND": "signals", "REDIS_URL": redis.url}
        service = SweepingService(data, ai_service.url, **shared)
        with service:
            service.wait_log("storage_marked")
            good = service.upload().json()["data"]["assetId"]
            service.wait_log("job_completed")
            (data / "hang").touch()
            upload = threading.Thread(target=_upload_in_vain, args=(service,))
            upload.start()
            while not (data / "saved").exists():
                assert upload.is_alive()
                upload.join(0.02)
            service.kill()
            upload.join()
            (data / "hang").unlink()
            images = [path for path in media.glob("*/*") if path.is_file()]
            assert len([path for path in images if path.parent.name not in (good, "owner", ".incoming")]) == 1
            for path in images:
                os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
            redis.client().flushall()
            service.start()
            service.wait_log("images_swept", count=1)
            assert {path.parent.name for path in media.glob("*/*") if path.is_file()} == {good, "owner"}
            httpx.get(f"{service.url}/livez").raise_for_status()


def _upload_in_vain(service: Service) -> None:
    with pytest.raises(httpx.TransportError):
        service.upload("ben", image=make_image(seed=1))


@pytest.mark.fault("E14")
def test_image_of_a_save_that_overran_its_time_goes_when_it_ends(tmp_path: Path, ai_service: AiService) -> None:
    """The client hears 503; the thread, which nobody can cancel, stores the image later, and then it is removed."""
    packages = install(tmp_path / "packages", signals=SIGNALS)
    data = tmp_path / "data"
    settings = packages | {"STORAGE_BACKEND": "signals", "STORAGE_TIMEOUT_SECONDS": "0.5"}
    with Service(data, ai_service.url, **settings) as service:
        (data / "hang").touch()
        assert service.upload().status_code == 503
        assert len([path for path in (data / "media").glob("*/*") if path.is_file()]) == 1
        (data / "hang").unlink()
        while [path for path in (data / "media").glob("*/*") if path.is_file()]:
            assert service.get("/api/assets").status_code == 200
