"""A user corrects the result of the AI: over HTTP, during a run of the job, and the attempts that an asset stores."""

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
    """Return the reply to a PATCH, checked against the contract."""
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
async def test_correction_is_published_to_the_owners_connections(service: Service) -> None:
    """A corrected field has confidence 1 and is sent to sockets with progress; null restores the AI's value."""
    async with Client(service.url, make_token(), progress=True) as client:
        await client.listen()
        asset_id = str((await asyncio.to_thread(service.upload, "user-1")).json()["data"]["assetId"])
        event = await client.next_event()
        while event["event"] != "asset_processed":
            event = await client.next_event()
        reply = await client.correct(asset_id, brand="Adidas", colorway="Mint")
        assert reply["aiMetadata"]["brand"] == {"value": "Adidas", "confidence": 1}
        assert reply["aiMetadata"]["model"] == event["aiMetadata"]["model"]
        assert sorted(reply["corrections"]) == ["brand", "colorway"]
        assert reply["corrections"]["brand"]["by"] == "user-1"
        sent = await client.next_event()
        assert (sent["event"], sent["assetId"], sent["fields"]) == ("asset_corrected", asset_id, ["brand", "colorway"])
        assert sent["aiMetadata"] == {name: reply["aiMetadata"][name] for name in ("brand", "model", "colorway")}
        restored = await client.correct(asset_id, brand=None)
        assert restored["aiMetadata"]["brand"] == event["aiMetadata"]["brand"]
        assert restored["attempts"][0] | {"startedAt": "", "endedAt": ""} == {
            **{"attempt": 1, "startedAt": "", "endedAt": "", "provider": "http", "model": None},
            **{"outcome": "completed", "reason": None},
        }
        assert restored["provenance"]["provider"] == "http"


@pytest.mark.gen_test(timeout=60)
async def test_malformed_correction_is_refused(service: Service) -> None:
    """The error names the field of the fault; another user's asset gives 404, and a missing token 401."""
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
async def test_correction_during_a_run_is_not_overwritten(
    store: SqliteAssetStore, processing: Processing, plugins: Plugins
) -> None:
    """The event of the run has the corrected values, and the asset stores both the AI's values and the correction."""
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
    ("status", "meta", "corrections", "expected"),
    [
        (AssetStatus.PARTIAL, FOUND, {"model": "Pegasus"}, AssetStatus.ACTIVE),
        (AssetStatus.PARTIAL, FOUND, {"colorway": "Red"}, AssetStatus.PARTIAL),
        (AssetStatus.FAILED, AiMetadata(error="no"), {"brand": "Nike", "model": "Pegasus"}, AssetStatus.ACTIVE),
        (AssetStatus.FAILED, AiMetadata(error="no"), {"brand": "Nike"}, AssetStatus.PARTIAL),
    ],
    ids=["complete", "not complete", "failed, complete", "failed, not complete"],
)
async def test_status_follows_the_corrected_fields(
    store: SqliteAssetStore, status: AssetStatus, meta: AiMetadata, corrections: dict[str, str], expected: AssetStatus
) -> None:
    """Corrections change the status of the asset; when they are removed, it has its earlier status."""
    asset = await finished(store, status, ai_metadata=meta)
    correcting = Corrections(store)
    corrected = await correcting.correct(asset.id, asset.user_id, corrections)
    assert corrected.status is expected and corrected.corrected_metadata.error is None
    restored = await correcting.correct(asset.id, asset.user_id, dict.fromkeys(corrections))
    assert (restored.status, restored.corrected_metadata) == (status, meta)


@pytest.mark.gen_test
async def test_concurrent_corrections_are_all_stored(store: SqliteAssetStore) -> None:
    """Three corrections of three fields at the same time are all stored; the history keeps the newest ones."""
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
async def test_failed_attempts_are_stored(store: SqliteAssetStore, processing: Processing, plugins: Plugins) -> None:
    """The asset stores the last ten failed attempts with their reason."""
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
