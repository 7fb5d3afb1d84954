"""Assets: their documents in a store, their JSON for clients, and their ids."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef, to_timestamp
from pipeline.assets.asset_ids import new_asset_id, preview_public_id
from pipeline.clock import utc_now
from tests.contract.contracts import check_reply
from tests.factories import make_asset


def test_document_and_back_is_the_same_asset() -> None:
    """An asset that is read from its document equals the one that was stored."""
    found = AiMetadata({"value": "a", "confidence": 0.5}, None, None, utc_now(), None)
    asset = dataclasses.replace(
        make_asset(),
        status=AssetStatus.PARTIAL,
        fence=3,
        processed=ImageRef("memory", "a/processed-3", "https://x/p.webp", "0" * 64),
        ai_metadata=found,
        finished_at=utc_now(),
    )
    assert Asset.from_document(asset.to_document()) == asset


def test_json_follows_the_contract() -> None:
    """Clients get names in camelCase, timestamps in milliseconds and no ids of the storage."""
    body = make_asset().to_json({})
    check_reply("GET", "/api/assets/{id}", 200, {"success": True, "data": body})
    assert "publicId" not in body["images"]["original"] and "fence" not in body


def test_sweeper_of_version_0_1_leaves_previews_alone() -> None:
    """The sweeper deletes images that no document names, if their names have the form of version 0.1."""
    deleted_by_0_1 = re.compile(r"([0-9a-f]{24})/[a-z0-9-]+")
    assert not deleted_by_0_1.fullmatch(preview_public_id(make_asset().id, 320))


@pytest.mark.spec("T005")
def test_failed_is_a_status() -> None:
    """The statuses are the six of the specification."""
    assert {status.value for status in AssetStatus} == {
        "draft",
        "processing",
        "partial",
        "active",
        "archived",
        "failed",
    }


def test_ids_are_hex_and_sort_by_creation() -> None:
    """Ten thousand ids of one process are 24 hex digits, different, and in order."""
    ids = [new_asset_id() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert {len(each) for each in ids} == {24} and int(ids[0], 16)


def test_id_begins_with_its_time_like_an_object_id() -> None:
    """The first four bytes are the time in seconds, so the tools of MongoDB show when an asset was created."""
    seconds = int(new_asset_id()[:8], 16)
    assert abs(seconds - datetime.now(UTC).timestamp()) < 5


def test_timestamps_are_utc_with_milliseconds() -> None:
    """An instant of any time zone becomes UTC with milliseconds."""
    instant = datetime(2026, 1, 31, 13, 0, 0, 123_999, timezone(timedelta(hours=1)))
    assert to_timestamp(instant) == "2026-01-31T12:00:00.123Z"
    assert to_timestamp(None) is None
    assert utc_now().microsecond % 1000 == 0
