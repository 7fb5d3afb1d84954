"""Backup, restore, verify and moving images, beside a service that runs and takes uploads."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, ValidationError
from pipeline.images import ImageName, SavedImage
from pipeline.usecases.backup import back_up
from pipeline.usecases.image_move import choose_storage, move_images, probe
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.restoring import check_backup, restore
from pipeline.usecases.storages_in_use import LEFT_KIND, storages_left_lately
from pipeline.usecases.verifying import Verification
from tests.factories import make_asset, make_image
from tests.memory_storage import MemoryStorage
from tests.moto_server import MotoServer
from tests.service import ROOT, AiService, Service

pytestmark = pytest.mark.fault("U17")
# Waits for nothing.
AT_ONCE = OutageRetry(longest_seconds=0)
PHOTO = b"\xff\xd8photo"
PHOTO_HASH = hashlib.sha256(PHOTO).hexdigest()


def command(service: Service, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the settings of the service."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        capture_output=True,
        text=True,
        env=service.environment | changes,
        timeout=120,
    )


def read(service: Service, asset_id: str) -> dict[str, Any]:
    """Return the asset once it is finished."""
    url = f"{service.url}/api/assets/{asset_id}?wait=30"
    asset: dict[str, Any] = httpx.get(url, headers=service.headers(), timeout=40).json()["data"]
    return asset


def pictures(asset: dict[str, Any]) -> list[str]:
    """Return the URLs of the asset's images that the service keeps."""
    images = asset["images"]
    return [images["original"]["url"], *(each["url"] for each in (images["previews"] or {}).values())]


class Uploads:
    """Uploads up to ten photos a second until it is left; what was refused is kept."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.accepted: list[str] = []
        self.refused: list[str] = []
        self.some = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._upload)

    def __enter__(self) -> Uploads:
        self._thread.start()
        assert self.some.wait(60)
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _upload(self) -> None:
        number = 0
        while not self._is_over.wait(0.1):
            number += 1
            response = self.service.upload(image=make_image("JPEG", seed=number))
            if response.status_code == 202:
                self.accepted.append(response.json()["data"]["assetId"])
            else:
                self.refused.append(response.text)
            if number == 5:
                self.some.set()


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url, PREVIEW_PROCESSES="1") as service:
        yield service


@pytest.mark.gen_test(timeout=120)
async def test_backup_beside_uploads_is_whole_and_comes_back_elsewhere(
    service: Service, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, ai_service: AiService
) -> None:
    """Every asset in it has its images; restored under another address all is shown, and `verify` finds no flaw."""
    file = tmp_path / "all.backup"
    with Uploads(service) as uploads:
        made = command(service, "backup", str(file), "--json")
    assert made.returncode == 0, made.stderr
    assert uploads.refused == [] and file.stat().st_mode & 0o777 == 0o600
    tally = json.loads(made.stdout)
    assert tally["assets"] >= 5 and tally["flaws"] == []
    checked = command(service, "verify", str(file), "--json")
    assert (checked.returncode, json.loads(checked.stdout)) == (0, tally)
    first = uploads.accepted[0]
    elsewhere = Service(tmp_path_factory.mktemp("elsewhere"), ai_service.url)
    restored = command(elsewhere, "restore", str(file), "--json")
    assert restored.returncode == 0, restored.stderr
    again = command(elsewhere, "restore", str(file))
    assert again.returncode == 1 and "empty" in again.stderr
    assert command(elsewhere, "restore", str(file), "--resume").returncode == 0
    with elsewhere:
        asset = read(elsewhere, first)
        assert asset["images"]["original"]["url"].startswith(elsewhere.url)
        for url in pictures(asset):
            assert httpx.get(url).status_code == 200
        found = command(elsewhere, "verify", "--json")
        assert found.returncode == 0, found.stdout


@pytest.mark.gen_test(timeout=60)
async def test_photo_that_was_being_processed_is_processed_where_it_is_restored(
    tmp_path: Path, store: SqliteAssetStore, ai_service: AiService
) -> None:
    """Under its old job, as soon as the service runs."""
    storage, asset, photo = MemoryStorage(), make_asset(), make_image()
    digest = hashlib.sha256(photo).hexdigest()
    assert await store.create(dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=digest)))
    storage.images[asset.original.public_id] = photo
    await back_up(store, storage, tmp_path / "file")
    elsewhere = Service(tmp_path / "elsewhere", ai_service.url)
    assert command(elsewhere, "restore", str(tmp_path / "file")).returncode == 0
    with elsewhere:
        done = read(elsewhere, asset.id)
        assert (done["status"], done["processingJobId"]) == ("active", asset.processing_job_id)


@pytest.mark.gen_test(timeout=60)
async def test_process_that_starts_after_a_move_saves_its_first_upload_there(
    tmp_path: Path, ai_service: AiService, moto: MotoServer, bucket: str, in_s3: dict[str, str]
) -> None:
    """STORAGE_BACKEND still names the old one. A storage that cannot be used is chosen by no move and no process."""
    service = Service(tmp_path, ai_service.url, **in_s3)
    moved = command(service, "move", "--storage", "object", PLUGIN_OBJECT_ENDPOINT="http://127.0.0.1:1")
    assert moved.returncode == 1 and "again" in moved.stderr
    assert command(service, "move", "--storage", "object").returncode == 0
    with service:
        assert service.upload().status_code == 202
        assert len(moto.keys(bucket)) == 1
    elsewhere = Service(tmp_path, ai_service.url, **in_s3 | {"PLUGIN_OBJECT_ENDPOINT": "http://127.0.0.1:1"})
    with elsewhere:
        assert elsewhere.upload().status_code == 202
        assert len(moto.keys(bucket)) == 1
        elsewhere.remove_lines(elsewhere.wait_log("storage_not_chosen", storage="object"))


@pytest.mark.gen_test(timeout=180)
async def test_images_move_to_s3_and_back_while_the_service_serves(
    tmp_path: Path, ai_service: AiService, moto: MotoServer, in_s3: dict[str, str]
) -> None:
    """No upload is refused, and every picture can be had at every moment, also under the URL it had before."""
    with Service(tmp_path, ai_service.url, PREVIEW_PROCESSES="1", **in_s3) as service, moto.unchecked():
        first = service.upload().json()["data"]["assetId"]
        before = pictures(read(service, first))
        for storage in ("object", "local"):
            with Uploads(service) as uploads:
                moved = command(service, "move", "--storage", storage, "--json")
            assert moved.returncode == 0, moved.stderr + moved.stdout
            assert uploads.refused == [] and json.loads(moved.stdout)["images"] > 0
            for asset_id in (first, *uploads.accepted[-5:]):
                asset = read(service, asset_id)
                for url in pictures(asset):
                    assert url.startswith(moto.url) == (storage == "object"), url
                    got = httpx.get(url)
                    assert got.status_code == 200, got.text
            for url in before:
                assert httpx.get(url, follow_redirects=True).status_code == 200
        done_again = json.loads(command(service, "move", "--storage", "local", "--json").stdout)
        assert done_again["images"] == 0
        found = command(service, "verify", "--json")
        assert found.returncode == 0, found.stdout


@pytest.mark.gen_test(timeout=60)
async def test_verify_finds_what_is_wrong(service: Service, tmp_path: Path) -> None:
    """A missing image, a damaged one, and one that nobody names and that is old."""
    ids = [service.upload(image=make_image(seed=number)).json()["data"]["assetId"] for number in range(3)]
    for asset_id in ids:
        read(service, asset_id)
    (media,) = tmp_path.rglob("media")
    (gone,) = (media / ids[0]).glob("original-*")
    gone.unlink()
    (damaged,) = (media / ids[1]).glob("original-*")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    stray = media / ("f" * 24) / "original-1.jpg"
    stray.parent.mkdir()
    stray.write_bytes(make_image())
    os.utime(stray, (0, 0))
    found = command(service, "verify", "--json")
    assert found.returncode == 1
    flaws = sorted(json.loads(found.stdout)["flaws"])
    assert [flaw.rsplit(" ", 1)[1] for flaw in flaws] == [
        word for _, word in sorted([(ids[0], "missing"), (ids[1], "damaged"), ("f" * 24, "unnamed")])
    ]


@pytest.mark.gen_test
async def test_what_is_kept_comes_back(tmp_path: Path, store: SqliteAssetStore) -> None:
    """Dead letters, the pause and the store's own id; and what an asset says of itself, to the millisecond."""
    storage = MemoryStorage()
    asset = make_asset(status=AssetStatus.FAILED, finished_at=utc_now(), claims={"email": "a@b.c"})
    assert await store.create(asset)
    storage.images[asset.original.public_id] = b"photo"
    about = ("user-1", asset.id)
    await store.put_record(Record("job of ai-processing", "ai-processing:1", utc_now(), {"failed": {"é": 1}}, *about))
    identity = await store.identity()
    tally = await back_up(store, storage, tmp_path / "file")
    # Its hash is another one than the document says.
    assert tally.flaws == [f"{asset.original.public_id} of asset {asset.id} is damaged"]
    other = SqliteAssetStore(tmp_path / "other.sqlite")
    await other.open()
    await restore(other, MemoryStorage(), tmp_path / "file")
    assert await other.get(asset.id) == asset
    assert await other.identity() == identity
    record = await other.records("job of ai-processing", limit=10)
    assert record == await store.records("job of ai-processing", limit=10) and record[0].user_id == "user-1"
    with pytest.raises(Conflict):
        await restore(other, MemoryStorage(), tmp_path / "file")
    await other.close()


@pytest.mark.gen_test
async def test_file_that_is_no_backup_or_not_whole_is_refused(tmp_path: Path, store: SqliteAssetStore) -> None:
    """A picture, a tar of something else, a backup that was cut off or changed."""
    storage, asset = MemoryStorage(), make_asset()
    assert await store.create(asset)
    good = tmp_path / "good"
    await back_up(store, storage, good)
    content = good.read_bytes()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as other:
        other.addfile(tarfile.TarInfo("letter.txt"))
    cut_off = content[: content.index(b"end.json")]
    for number, bad in enumerate([b"", make_image(), tar.getvalue(), cut_off, content[:1024]]):
        file = tmp_path / f"bad-{number}"
        file.write_bytes(bad)
        with pytest.raises(ValidationError):
            check_backup(file)
    assert check_backup(good).assets == 1


@pytest.mark.gen_test
async def test_backup_that_fails_leaves_the_older_one(tmp_path: Path, store: SqliteAssetStore) -> None:
    """Its file appears only when it is whole."""

    class Away(MemoryStorage):
        async def read(self, name: Any) -> bytes:
            raise RuntimeError("away")

    file = tmp_path / "file"
    file.write_bytes(b"an older one")
    assert await store.create(make_asset())
    with pytest.raises(RuntimeError):
        await back_up(store, Away(), file)
    assert file.read_bytes() == b"an older one" and [each.name for each in tmp_path.glob("file*")] == ["file"]


class Two(MemoryStorage):
    """Two storages in one; the first of `backends` is the current one. Fails when so many images have been saved."""

    def __init__(self) -> None:
        super().__init__()
        self.backends = ("new", "memory")
        self.inner = {"new": MemoryStorage(), "memory": MemoryStorage()}
        self.saves_left = 0

    async def save(self, public_id: str, *arguments: Any) -> SavedImage:
        if not self.saves_left:
            raise DependencyUnavailable("Image storage unavailable")
        self.saves_left -= 1
        await self.inner["new"].save(public_id, *arguments)
        return SavedImage("new", f"https://new.example/{public_id}")

    async def read(self, name: ImageName) -> bytes:
        return await self.inner[name.backend].read(name)

    async def delete(self, name: ImageName) -> None:
        await self.inner[name.backend].delete(name)


@pytest.mark.gen_test
async def test_move_that_was_interrupted_goes_on(store: SqliteAssetStore) -> None:
    """Wherever it ended before: every image is named where it is then, none was moved twice, damaged ones stay."""
    storage, assets = Two(), []
    for number in range(6):
        content = b"photo %d" % number
        digest = hashlib.sha256(content if number else b"another one").hexdigest()
        asset = make_asset()
        asset = dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=digest))
        assert await store.create(asset)
        storage.inner["memory"].images[asset.original.public_id] = content
        assets.append(asset)
    moved = 0
    for _ in range(3):
        storage.saves_left = 2
        try:
            moved += (last := await move_images(store, storage, outage_retry=AT_ONCE)).images
        except DependencyUnavailable:
            moved += 2
    storage.saves_left = 2
    last = await move_images(store, storage, outage_retry=AT_ONCE)
    assert (moved + last.images, len(last.left)) == (5, 1) and assets[0].original.public_id in last.left[0]
    for asset in assets[1:]:
        current = await store.get(asset.id)
        assert current is not None and current.original.backend == "new"
        assert await storage.read(current.image_names[0]) == await storage.read(asset.image_names[0])
    assert [flaw.what async for flaw in Verification(store, storage, recheck_seconds=0).flaws()] == ["damaged"]


@pytest.mark.gen_test
async def test_image_that_changes_while_it_is_moved_is_not_named(store: SqliteAssetStore) -> None:
    """Its asset was deleted meanwhile: the copy goes, too."""
    storage, asset = Two(), make_asset()
    content = b"photo"
    digest = hashlib.sha256(content).hexdigest()
    asset = dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=digest))
    assert await store.create(asset)
    storage.inner["memory"].images[asset.original.public_id] = content
    storage.saves_left = 1
    save = storage.save

    async def save_late(*arguments: Any) -> SavedImage:
        saved = await save(*arguments)
        await store.delete(asset.id, asset.user_id)
        return saved

    storage.save = save_late  # type: ignore[assignment,method-assign]
    assert (await move_images(store, storage)).images == 0
    assert storage.inner["new"].images == {}


def two(*assets: Asset, saves: int = 9) -> Two:
    """Return two storages, the images of the assets in the old one."""
    storage = Two()
    storage.saves_left = saves
    for asset in assets:
        storage.inner["memory"].images[asset.original.public_id] = PHOTO
    return storage


async def created(store: SqliteAssetStore, **fields: Any) -> Asset:
    """Insert an asset with that photo."""
    asset = make_asset(**fields)
    asset = dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=PHOTO_HASH))
    assert await store.create(asset)
    return asset


@pytest.mark.gen_test
async def test_older_move_gives_way_to_a_newer_one(store: SqliteAssetStore) -> None:
    """Two that go to different storages would undo each other's work."""
    storage = two(await created(store))
    await choose_storage(store, "elsewhere", instead_of="memory")
    with pytest.raises(Conflict, match="elsewhere"):
        await move_images(store, storage, outage_retry=AT_ONCE)
    assert storage.inner["new"].images == {}
    await choose_storage(store, "new", instead_of="memory")
    assert (await move_images(store, storage, outage_retry=AT_ONCE)).images == 1
    record = await store.find_record("move", "storage")
    assert record is not None and record.data == {"to": "new", "insteadOf": ["elsewhere", "memory"]}


@pytest.mark.gen_test
@pytest.mark.parametrize("loses", ["all", "half"])
async def test_storage_that_loses_what_it_is_given_gets_nothing(store: SqliteAssetStore, loses: str) -> None:
    """The asset names its old image, and no half copy stays behind; a probe would have said it before."""
    asset = await created(store)
    storage = two(asset)
    save = storage.save

    async def save_badly(public_id: str, file: Any, content_type: str) -> SavedImage:
        saved = await save(public_id, file, content_type)
        new = storage.inner["new"].images
        if loses == "all":
            del new[public_id]
        else:
            new[public_id] = new[public_id][:-1]
        return saved

    storage.save = save_badly  # type: ignore[method-assign]
    with pytest.raises(DependencyUnavailable, match="does not give back"):
        await move_images(store, storage, outage_retry=AT_ONCE)
    assert storage.inner["new"].images == {} and await store.get(asset.id) == asset
    with pytest.raises(DependencyUnavailable, match="does not give back"):
        await probe(storage)
    assert storage.inner["new"].images == {}


@pytest.mark.gen_test
async def test_storage_that_is_away_for_a_moment_is_waited_for(store: SqliteAssetStore) -> None:
    """The one that images are read from, and the one they go to."""
    asset = await created(store)
    storage = two(asset)
    storage.saves_left, waits = 0, []

    def comes_back(cause: str) -> None:
        waits.append(cause)
        storage.saves_left = 1

    assert (await move_images(store, storage, outage_retry=OutageRetry(comes_back))).images == 1
    assert len(waits) == 1 and list(storage.inner["new"].images) == [asset.original.public_id]


@pytest.mark.gen_test
async def test_damaged_document_and_refused_image_are_told_and_stop_nothing(
    tmp_path: Path, store: SqliteAssetStore
) -> None:
    """`move` and `verify` name each, and all others are moved."""
    good, bad, refused = [await created(store) for _ in range(3)]
    storage = two(good, bad, refused)
    save = storage.save

    async def save_some(public_id: str, *arguments: Any) -> SavedImage:
        if public_id == refused.original.public_id:
            raise ValidationError.of("image", "The image storage refused this image")
        return await save(public_id, *arguments)

    storage.save = save_some  # type: ignore[method-assign]
    with sqlite3.connect(tmp_path / "assets.sqlite") as database:
        database.execute("UPDATE assets SET original = 'x' WHERE id = ?", [bad.id])
    moved = await move_images(store, storage, outage_retry=AT_ONCE)
    assert moved.images == 1 and sorted(moved.left) == sorted(
        [
            f"The document of asset {bad.id} is damaged",
            f"{refused.original.public_id} of asset {refused.id} in memory is refused by new: "
            "The image storage refused this image",
        ]
    )
    flaws = [flaw.text async for flaw in Verification(store, storage, recheck_seconds=0).flaws()]
    assert flaws == [f"The document of asset {bad.id} is damaged"]


@pytest.mark.gen_test
async def test_image_of_version_0_1_gets_its_hash_and_its_type(store: SqliteAssetStore) -> None:
    """Nothing is known of it but its name; afterwards it is known as every other."""
    asset = make_asset()
    old = dataclasses.replace(asset.original, sha256="", bytes=0, content_type="")
    assert await store.create(dataclasses.replace(asset, original=old))
    storage = two(asset)
    assert (await move_images(store, storage, outage_retry=AT_ONCE)).images == 1
    current = await store.get(asset.id)
    assert current is not None and current.original.backend == "new"
    assert (current.original.sha256, current.original.bytes) == (PHOTO_HASH, len(PHOTO))


@pytest.mark.gen_test
async def test_moved_image_stays_as_long_as_its_urls_work(store: SqliteAssetStore) -> None:
    """Noted for the sweeper; `verify` counts what has yet to go, and calls it no flaw."""
    asset = await created(store)
    storage = two(asset)
    storage.put(asset.original.public_id)
    await move_images(store, storage, outage_retry=AT_ONCE, url_seconds=2 * 86_400)
    assert list(storage.inner["memory"].images) == [asset.original.public_id]
    now = utc_now()
    assert await storages_left_lately(store, now + timedelta(days=1.9)) == {"memory"}
    assert await storages_left_lately(store, now + timedelta(days=2.1)) == set()
    storage.backends = ("memory",)
    found = [flaw.what async for flaw in Verification(store, storage, recheck_seconds=0).flaws()]
    assert found == ["leaving"]


@pytest.mark.gen_test
async def test_verify_says_nothing_of_what_is_under_way(store: SqliteAssetStore) -> None:
    """An erase removes images and then the document; a delete the other way round; a move names it elsewhere."""
    erased, moved = await created(store), await created(store)
    storage = two(moved)
    storage.put("f" * 24 + "/original-1", at=utc_now() - timedelta(days=1))
    read = storage.read

    async def read_and_go_on(name: ImageName) -> bytes:
        if name == erased.image_names[0]:
            # Only after the first reading has failed.
            IOLoop.current().add_callback(store.delete, erased.id, erased.user_id)
        if name == moved.image_names[0]:
            await move_images(store, two(moved), outage_retry=AT_ONCE)
            await store.delete_records(LEFT_KIND, "memory")
            storage.inner["new"].images[name.public_id] = storage.inner["memory"].images.pop(name.public_id)
        return await read(name)

    storage.read = read_and_go_on  # type: ignore[method-assign]
    storage.backends = ("memory",)
    assert [flaw async for flaw in Verification(store, storage, recheck_seconds=0.1).flaws()] == []
