"""A person corrects what the AI said: over HTTP, against runs of the same moment, and what is kept of attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.assets.asset import ATTEMPTS_AT_MOST, HISTORY_AT_MOST, AiMetadata, Asset, AssetStatus
from pipeline.assets.events import asset_processed
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.client import Client
from pipeline.clock import utc_now
from pipeline.errors import RetryableJobError
from pipeline.hooks import UNKNOWN, Analysis, Attribute
from pipeline.usecases.corrections import Corrections
from pipeline.usecases.processing import Processing
from tests.contract.contracts import check_reply
from tests.factories import make_asset, make_token
from tests.integration.processed_jobs import Plugins, make_job, make_processing, run, submit
from tests.service import AiService, Service

FOUND = AiMetadata(brand={"value": "Nike", "confidence": 0.9}, model=None, processed_at=utc_now())


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    with Service(tmp_path, ai_service.url) as service:
        yield service


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture
def processing(store: SqliteAssetStore, plugins: Plugins) -> Processing:
    return make_processing(store, plugins)


def patch(service: Service, asset_id: str, body: Any, sub: str = "user-1") -> httpx.Response:
    """Return the reply to a PATCH, which is as the contract has it."""
    path = f"/api/assets/{asset_id}"
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = httpx.patch(service.url + path, headers=service.headers(sub), timeout=30, **content)
    check_reply("PATCH", path, response.status_code, response.json(), response.headers)
    return response


async def finished(store: SqliteAssetStore, status: AssetStatus, **fields: Any) -> Asset:
    asset = make_asset(status=status, finished_at=utc_now(), **fields)
    assert await store.create(asset)
    return asset


@pytest.mark.gen_test(timeout=60)
async def test_owner_corrects_and_every_tab_hears(service: Service) -> None:
    """The text counts with confidence 1, is told to sockets that ask for progress, and null gives the field back."""
    async with Client(service.url, make_token(), progress=True) as client:
        await client.listen()
        asset_id = str((await asyncio.to_thread(service.upload, "user-1")).json()["data"]["assetId"])
        event = await client.next_event()
        while event["event"] != "asset_processed":
            event = await client.next_event()
        said = await client.correct(asset_id, brand="Adidas", colorway="Mint")
        assert said["aiMetadata"]["brand"] == {"value": "Adidas", "confidence": 1}
        assert said["aiMetadata"]["model"] == event["aiMetadata"]["model"]
        assert sorted(said["corrections"]) == ["brand", "colorway"] and said["corrections"]["brand"]["by"] == "user-1"
        told = await client.next_event()
        assert (told["event"], told["assetId"], told["fields"]) == ("asset_corrected", asset_id, ["brand", "colorway"])
        assert told["aiMetadata"] == {name: said["aiMetadata"][name] for name in ("brand", "model", "colorway")}
        back = await client.correct(asset_id, brand=None)
        assert back["aiMetadata"]["brand"] == event["aiMetadata"]["brand"]
        assert back["attempts"][0] | {"startedAt": "", "endedAt": ""} == {
            **{"attempt": 1, "startedAt": "", "endedAt": "", "provider": "http", "model": None},
            **{"outcome": "completed", "reason": None},
        }
        assert back["provenance"]["provider"] == "http"


@pytest.mark.gen_test(timeout=60)
async def test_what_is_no_correction_is_refused(service: Service) -> None:
    """Every fault is named; another user's asset does not exist; nothing is changed."""
    asset_id = str(service.upload("user-1").json()["data"]["assetId"])
    for body, field in [
        (b"", "body"),
        (b"[]", "body"),
        ({}, "body"),
        (b"{" * 10_000, "body"),
        (b'{"brand": "' + b"x" * 20_000 + b'"}', "body"),
        ({"brand": ""}, "brand"),
        ({"brand": "\x1b[2J \x00"}, "brand"),
        ({"model": 3}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"status": "active"}, "status"),
    ]:
        response = patch(service, asset_id, body)
        assert response.status_code == 400, response.text
        assert [each["field"] for each in response.json()["error"]["details"]] == [field]
    assert patch(service, asset_id, {"brand": "Mine"}, sub="user-2").status_code == 404
    assert httpx.patch(f"{service.url}/api/assets/{asset_id}", json={"brand": "Mine"}).status_code == 401


@pytest.mark.gen_test
async def test_correction_stands_against_later_runs(
    store: SqliteAssetStore, processing: Processing, plugins: Plugins
) -> None:
    """Also one that comes while a run is under way: its result is told with what the person said."""
    asset, job = await submit(store)
    correcting = Corrections(store)

    async def correct() -> None:
        await correcting.correct(asset.id, asset.user_id, {"brand": "Adidas", "model": "Samba"})

    plugins.before_answer = correct
    plugins.analysis = Analysis(Attribute("Nike", 0.9), UNKNOWN)
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.ACTIVE
    assert current.ai_metadata.brand == {"value": "Nike", "confidence": 0.9}
    assert current.corrected_metadata.brand == {"value": "Adidas", "confidence": 1}
    ((event, _),) = plugins.events
    assert event == asset_processed(current) and event["aiMetadata"]["model"] == {"value": "Samba", "confidence": 1}


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("status", "meta", "said", "becomes"),
    [
        (AssetStatus.PARTIAL, FOUND, {"model": "Pegasus"}, AssetStatus.ACTIVE),
        (AssetStatus.PARTIAL, FOUND, {"colorway": "Red"}, AssetStatus.PARTIAL),
        (AssetStatus.FAILED, AiMetadata(error="no"), {"brand": "Nike", "model": "Pegasus"}, AssetStatus.ACTIVE),
        (AssetStatus.FAILED, AiMetadata(error="no"), {"brand": "Nike"}, AssetStatus.PARTIAL),
    ],
    ids=["complete", "not complete", "failed, complete", "failed, not complete"],
)
async def test_status_follows_what_is_known(
    store: SqliteAssetStore, status: AssetStatus, meta: AiMetadata, said: dict[str, str], becomes: AssetStatus
) -> None:
    """And goes back with the corrections."""
    asset = await finished(store, status, ai_metadata=meta)
    correcting = Corrections(store)
    corrected = await correcting.correct(asset.id, asset.user_id, said)
    assert corrected.status is becomes and corrected.corrected_metadata.error is None
    back = await correcting.correct(asset.id, asset.user_id, dict.fromkeys(said))
    assert (back.status, back.corrected_metadata) == (status, meta)


@pytest.mark.gen_test
async def test_corrections_at_once_all_stand(store: SqliteAssetStore) -> None:
    """Three tabs correct three fields at the same moment; only the last corrections are remembered one by one."""
    asset = await finished(store, AssetStatus.PARTIAL, ai_metadata=FOUND)
    correcting = Corrections(store)
    fields = ("brand", "model", "colorway")
    await asyncio.gather(*(correcting.correct(asset.id, asset.user_id, {name: name}) for name in fields))
    current = await store.get(asset.id)
    assert current is not None and {name: each["value"] for name, each in current.corrections.items()} == {
        name: name for name in fields
    }
    for number in range(HISTORY_AT_MOST):
        current = await correcting.correct(asset.id, asset.user_id, {"brand": f"B{number}"})
    assert [each["value"] for each in current.history] == [f"B{number}" for number in range(HISTORY_AT_MOST)]
    assert all(each["by"] == asset.user_id for each in current.history)


@pytest.mark.gen_test
async def test_attempts_that_failed_are_kept(store: SqliteAssetStore, processing: Processing, plugins: Plugins) -> None:
    """With their reason; the last ten of them."""
    asset, _ = await submit(store)
    plugins.analysis = RetryableJobError("AI service unavailable")
    for number in range(ATTEMPTS_AT_MOST + 2):
        with pytest.raises(RetryableJobError):
            await processing.process(make_job(asset, attempt=number + 1))
        await store.refund_start(asset.id, asset.processing_job_id)
    current = await store.get(asset.id)
    assert current is not None
    assert [(each["attempt"], each["outcome"], each["reason"]) for each in current.attempts] == [
        (number + 1, "failed", "AI service unavailable") for number in range(2, ATTEMPTS_AT_MOST + 2)
    ]
