"""The commands `backup`, `restore`, `verify` and `move` while a service runs and accepts uploads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.usecases.backup import back_up
from tests.factories import make_asset, make_image
from tests.integration.running_service import Uploads, command, pictures, read
from tests.memory_storage import MemoryStorage
from tests.moto_server import MotoServer
from tests.service import AiService, Service

pytestmark = pytest.mark.fault("U17")


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url, PREVIEW_PROCESSES="1") as service:
        yield service


@pytest.mark.gen_test(timeout=120)
async def test_backup_during_uploads_is_complete_and_can_be_restored_elsewhere(
    service: Service, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, ai_service: AiService
) -> None:
    """Each asset in the file has its images. A service at another address serves them, and `verify` finds no flaw."""
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
    repeated = command(elsewhere, "restore", str(file))
    assert repeated.returncode == 1 and "empty" in repeated.stderr
    assert command(elsewhere, "restore", str(file), "--resume").returncode == 0
    with elsewhere:
        asset = read(elsewhere, first)
        assert asset["images"]["original"]["url"].startswith(elsewhere.url)
        for url in pictures(asset):
            assert httpx.get(url).status_code == 200
        found = command(elsewhere, "verify", "--json")
        assert found.returncode == 0, found.stdout


@pytest.mark.gen_test(timeout=60)
async def test_unfinished_photo_of_a_backup_is_processed_after_the_restore(
    tmp_path: Path, store: SqliteAssetStore, ai_service: AiService
) -> None:
    """The restored service runs the job of the backup as soon as it starts."""
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
async def test_process_that_starts_after_a_move_saves_in_the_new_storage(
    tmp_path: Path, ai_service: AiService, moto: MotoServer, bucket: str, in_s3: dict[str, str]
) -> None:
    """STORAGE_BACKEND still names the old storage. No move and no process chooses a storage that cannot be used."""
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
async def test_images_move_to_s3_and_back_while_the_service_runs(
    tmp_path: Path, ai_service: AiService, moto: MotoServer, in_s3: dict[str, str]
) -> None:
    """No upload is refused. Each image can be fetched at every moment, also with the URL it had before the move."""
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
        repeated = json.loads(command(service, "move", "--storage", "local", "--json").stdout)
        assert repeated["images"] == 0
        found = command(service, "verify", "--json")
        assert found.returncode == 0, found.stdout


@pytest.mark.gen_test(timeout=60)
async def test_verify_reports_each_flaw(service: Service, tmp_path: Path) -> None:
    """`verify` reports a missing image, a damaged image, and an old image that no asset names."""
    ids = [service.upload(image=make_image(seed=number)).json()["data"]["assetId"] for number in range(3)]
    for asset_id in ids:
        read(service, asset_id)
    (media,) = tmp_path.rglob("media")
    (missing,) = (media / ids[0]).glob("original-*")
    missing.unlink()
    (damaged,) = (media / ids[1]).glob("original-*")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    unnamed = media / ("f" * 24) / "original-1.jpg"
    unnamed.parent.mkdir()
    unnamed.write_bytes(make_image())
    os.utime(unnamed, (0, 0))
    found = command(service, "verify", "--json")
    assert found.returncode == 1
    flaws = sorted(json.loads(found.stdout)["flaws"])
    assert [flaw.rsplit(" ", 1)[1] for flaw in flaws] == [
        word for _, word in sorted([(ids[0], "missing"), (ids[1], "damaged"), ("f" * 24, "unnamed")])
    ]
