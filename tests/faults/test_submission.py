"""Uploads that are repeated, parallel, too many, or interrupted by a failure of the store."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.assets.asset import Asset
from pipeline.assets.image import ImageInfo
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import NotStorable, OutcomeUnknown
from pipeline.hooks.threads import DaemonThreads
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.submission import Submission
from pipeline.usecases.upload import Upload
from tests.contract.contracts import check_reply
from tests.factories import make_image, make_token
from tests.memory_storage import MemoryStorage
from tests.redis_server import RedisServer
from tests.service import AiService, Service

Pair = tuple[Service, Service]


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path, ai_service: AiService) -> Iterator[Pair]:
    """Two processes on one store and one Redis; an indirect parameter has settings."""
    settings: dict[str, str] = getattr(request, "param", {})
    with RedisServer() as redis:
        shared = {"REDIS_URL": redis.url} | settings
        with (
            Service(tmp_path, ai_service.url, **shared) as first,
            Service(tmp_path, ai_service.url, **shared) as second,
        ):
            yield first, second


def upload_at_once(pair: Pair, count: int, **arguments: Any) -> list[httpx.Response]:
    """Send equal uploads in parallel, alternating between the processes."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda number: pair[number % 2].upload(**arguments), range(count)))


def images(folder: Path) -> list[Path]:
    return [path for path in (folder / "media").rglob("*") if path.is_file()]


def asset_ids(replies: list[httpx.Response]) -> set[str]:
    assert {reply.status_code for reply in replies} == {202}
    return {reply.json()["data"]["assetId"] for reply in replies}


def claims(pair: Pair) -> int:
    return sum(len(service.find("job_claimed")) for service in pair)


def test_same_key_in_parallel_is_one_upload(pair: Pair, tmp_path: Path, ai_service: AiService) -> None:
    """Twenty requests over two processes: one asset, one job, one image, one provider call."""
    ai_service.configure(paused=True)
    (asset_id,) = asset_ids(upload_at_once(pair, 20, headers={"Idempotency-Key": "k-1"}))
    assert len(images(tmp_path)) == 1
    assert sum(len(service.find("asset_submitted")) for service in pair) >= 1
    ai_service.configure(paused=False)
    wait_finished(pair, asset_id)
    assert ai_service.state()["calls"] == claims(pair) == 1
    assert asset_ids([pair[0].upload(headers={"Idempotency-Key": "k-1"})]) == {asset_id}


def wait_finished(pair: Pair, asset_id: str) -> None:
    """Return once either process has finished the asset."""
    while True:
        for service in pair:
            if service.find("job_completed", assetId=asset_id):
                return
        with pair[0]._arrived:
            pair[0]._arrived.wait(0.05)


def test_same_key_with_another_payload_is_refused(pair: Pair) -> None:
    """422 with the field named, whether the image or the category differs; another user's key is another key."""
    key = {"Idempotency-Key": "k-2"}
    (asset_id,) = asset_ids([pair[0].upload(headers=key)])
    for changed in ({"category": "lego"}, {"image": make_image(seed=1)}):
        refused = pair[1].upload(headers=key, **changed)  # type: ignore[arg-type]
        assert refused.status_code == 422
        assert refused.json()["error"]["details"][0]["field"] == "Idempotency-Key"
    assert asset_ids([pair[1].upload("user-2", headers=key)]) != {asset_id}


def test_client_that_gave_up_gets_the_first_asset(pair: Pair, tmp_path: Path, ai_service: AiService) -> None:
    """It closes its connection before the answer and repeats the upload with its key: there is one asset, one image."""
    files = {"image": ("photo.jpg", make_image(), "image/jpeg")}
    headers = {"Authorization": f"Bearer {make_token()}", "Idempotency-Key": "k-3"}
    url = f"{pair[0].url}/api/assets/analyze-queue"
    request = httpx.Request("POST", url, headers=headers, files=files, data={"category": "sneaker"})
    connection = http.client.HTTPConnection(pair[0].url.removeprefix("http://"))
    connection.request("POST", "/api/assets/analyze-queue", request.read(), dict(request.headers))
    connection.close()
    repeated = pair[1].upload(headers={"Idempotency-Key": "k-3"})
    (asset_id,) = asset_ids([repeated])
    wait_finished(pair, asset_id)
    listed = pair[0].get("/api/assets").json()["data"]["items"]
    assert [item["id"] for item in listed] == [asset_id]
    assert len(images(tmp_path)) == 1 and ai_service.state()["calls"] == 1


def test_key_of_a_deleted_asset_makes_a_new_asset(pair: Pair) -> None:
    """The key was deleted with the asset: the repeated upload is a new asset, which runs at once."""
    key = {"Idempotency-Key": "k-4"}
    (asset_id,) = asset_ids([pair[0].upload(headers=key)])
    wait_finished(pair, asset_id)
    url = f"{pair[0].url}/api/assets/{asset_id}"
    assert httpx.delete(url, headers=pair[0].headers()).status_code == 204
    for service in pair:
        service.remove_lines()
    (second,) = asset_ids([pair[0].upload(headers=key)])
    wait_finished(pair, second)
    assert second != asset_id and pair[0].asset(second)["status"] == "active"


@pytest.mark.parametrize("pair", [{"DEDUPE_UPLOADS": "true"}], indirect=True)
def test_equal_uploads_without_key_are_one_while_it_is_processing(
    pair: Pair, tmp_path: Path, ai_service: AiService
) -> None:
    """Parallel uploads are one asset; another category, user, key or image, or a later upload, is another."""
    ai_service.configure(paused=True)
    (asset_id,) = asset_ids(upload_at_once(pair, 20))
    assert len(images(tmp_path)) == 1
    others = [
        pair[0].upload(category="lego"),
        pair[0].upload("user-2"),
        pair[0].upload(headers={"Idempotency-Key": "own"}),
        pair[0].upload(image=make_image(seed=1)),
    ]
    assert len(asset_ids(others) | {asset_id}) == 5
    ai_service.configure(paused=False)
    wait_finished(pair, asset_id)
    later = asset_ids([pair[1].upload()])
    assert asset_id not in later
    wait_finished(pair, *later)
    assert ai_service.state()["calls"] == 6


@pytest.mark.fault("O19")
@pytest.mark.parametrize(
    "pair",
    [{"QUEUE_FAIRNESS": fairness, "MAX_BACKLOG_PER_USER": "3", "MAX_BACKLOG": "8"} for fairness in ("none", "user")],
    indirect=True,
    ids=["fifo", "fair"],
)
def test_backlog_is_bounded_per_user_and_in_all(pair: Pair, ai_service: AiService) -> None:
    """A user's fourth unfinished photo gets 429, and the ninth waiting photo of all users 503, both with Retry-After.

    All accepted photos are processed.
    """
    ai_service.configure(paused=True)
    accepted = [pair[0].upload(f"filler-{number}") for number in range(10)]
    for service in pair:
        service.wait_log("job_claimed", count=5)
    accepted += [pair[0].upload("anna") for _ in range(3)]
    refused = pair[0].upload("anna")
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert refused.json()["error"]["code"] == "RATE_LIMITED"
    check_reply("post", "/api/assets/analyze-queue", 429, refused.json(), refused.headers)
    assert pair[1].upload("anna").status_code == 429, "another process counts the same"
    accepted += [pair[1].upload(f"other-{number}") for number in range(5)]
    refused = pair[1].upload("another")
    assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
    assert asset_ids(accepted)
    ai_service.configure(paused=False)
    for reply in accepted:
        wait_finished(pair, reply.json()["data"]["assetId"])


@pytest.mark.parametrize("pair", [{"QUEUE_FAIRNESS": "user"}], indirect=True)
def test_fairness_starts_the_second_user_early(pair: Pair, ai_service: AiService) -> None:
    """While a hundred photos of one user wait, the first photo of another user starts with the next free slots."""
    ai_service.configure(paused=True)
    for _ in range(100):
        pair[0].upload("anna")
    for service in pair:
        service.wait_log("job_claimed", count=5)
    (asset_id,) = asset_ids([pair[0].upload("ben")])
    ai_service.configure(paused=False)
    wait_finished(pair, asset_id)
    before = sum(len(service.find("job_claimed")) for service in pair)
    order = [line["assetId"] for service in pair for line in service.find("job_claimed")]
    assert asset_id in order and before >= 11
    started = min(
        [line["assetId"] for line in service.find("job_claimed")].index(asset_id)
        for service in pair
        if service.find("job_claimed", assetId=asset_id)
    )
    assert started <= 10, json.dumps(order)


class UnsureStore(SqliteAssetStore):
    """A store whose answer to an insert is lost, before or after the insert."""

    does_insert = True

    async def create(self, asset: Asset) -> bool:
        if self.does_insert:
            await super().create(asset)
        raise OutcomeUnknown("The asset store cannot be reached")


@pytest.mark.parametrize("does_insert", [True, False], ids=["inserted", "not inserted"])
@pytest.mark.gen_test(timeout=20)
async def test_insert_of_unknown_outcome_is_settled_later(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, does_insert: bool
) -> None:
    """The client gets 503; an inserted asset has its image and is processed, otherwise the image is removed."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.SETTLE_SECONDS", (0.01, 0.01))
    store, storage, queue = UnsureStore(tmp_path / "assets.sqlite"), MemoryStorage(), JobQueue(redis_url)
    store.does_insert = does_insert
    await store.open()
    deferred = asyncio.Event()
    pool = DaemonThreads(1, "tested")
    orphaned_images = OrphanedImages(store, storage)
    submission = Submission(
        *(store, storage, queue, Metrics()),
        orphaned_images=orphaned_images,
        urls=ImageUrls(storage),
        pool=pool,
        on_deferred=deferred.set,
    )
    image = ImageInfo(3, 64, 48, "image/jpeg")
    with pytest.raises(OutcomeUnknown):
        await submission.submit(Upload("user-1", "lego", io.BytesIO(b"abc"), image, "0" * 64, "r-1"))
    assert len(storage.images) == 1
    await asyncio.gather(*submission.unsettled.tasks)
    assert len(storage.images) == (1 if does_insert else 0)
    assert deferred.is_set() == does_insert
    await queue.close()
    await store.close()


@pytest.mark.fault("E32")
@pytest.mark.gen_test
async def test_upload_that_cannot_be_stored_leaves_nothing(tmp_path: Path, redis_url: str) -> None:
    """An upload with a far too long image URL ends with an error, no image and no job; the next upload is accepted."""
    store, storage, queue = SqliteAssetStore(tmp_path / "assets.sqlite"), MemoryStorage(), JobQueue(redis_url)
    await store.open()
    pool = DaemonThreads(1, "tested")
    orphaned_images, urls = OrphanedImages(store, storage), ImageUrls(storage)
    submission = Submission(store, storage, queue, Metrics(), orphaned_images=orphaned_images, urls=urls, pool=pool)
    image = ImageInfo(3, 64, 48, "image/jpeg")
    storage.host = "x" * 17_000_000
    with pytest.raises(NotStorable):
        await submission.submit(Upload("user-1", "lego", io.BytesIO(b"abc"), image, "0" * 64, "r-1"))
    assert storage.images == {} and (await queue.stats()).waiting == 0
    storage.host = "images.example"
    await submission.submit(Upload("user-1", "lego", io.BytesIO(b"abc"), image, "0" * 64, "r-1"))
    assert len(storage.images) == 1 and (await queue.stats()).waiting == 1
    await queue.close()
    await store.close()
