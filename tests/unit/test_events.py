"""The payloads of asset_processed events, checked by their contract."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef, to_timestamp
from pipeline.assets.events import asset_processed
from pipeline.clock import utc_now
from tests.contract.contracts import check_event
from tests.factories import make_asset

BRAND = {"value": "Nike", "confidence": 0.9}
MODEL = {"value": "Air Max 90", "confidence": 0.8}
COLORWAY = {"value": "Infrared", "confidence": 0.7}


def finished(status: AssetStatus, **fields: Any) -> Asset:
    return dataclasses.replace(make_asset(), status=status, finished_at=utc_now(), **fields)


@pytest.mark.spec("T031")
def test_success_event_follows_the_contract() -> None:
    """The event of an active asset has the result of the AI and the processed image."""
    asset = finished(
        AssetStatus.ACTIVE,
        ai_metadata=AiMetadata(BRAND, MODEL, COLORWAY, utc_now()),
        processed=ImageRef("memory", "secret/path", "https://images.example/p.webp", "0" * 64),
    )
    event = asset_processed(asset, "https://images.example/p.webp")
    check_event(event)
    assert event == {
        "event": "asset_processed",
        "assetId": asset.id,
        "status": "active",
        "aiMetadata": {"brand": BRAND, "model": MODEL, "colorway": COLORWAY},
        "processedImageUrl": "https://images.example/p.webp",
        "timestamp": to_timestamp(asset.finished_at),
    }


def test_partial_event_names_what_is_missing() -> None:
    """Brand and model are always present, "" with confidence 0 if the AI could not name them; others may be absent."""
    event = asset_processed(finished(AssetStatus.PARTIAL, ai_metadata=AiMetadata(brand=BRAND)))
    check_event(event)
    assert event["aiMetadata"] == {"brand": BRAND, "model": {"value": "", "confidence": 0}}
    assert "processedImageUrl" not in event


@pytest.mark.spec("T032")
def test_failure_event_follows_the_contract() -> None:
    """The event of a failed asset has the reason and no result of the AI."""
    asset = finished(AssetStatus.FAILED, ai_metadata=AiMetadata(error="AI service unavailable after 3 attempts"))
    event = asset_processed(asset)
    check_event(event)
    assert event == {
        "event": "asset_processed",
        "assetId": asset.id,
        "status": "failed",
        "error": "AI service unavailable after 3 attempts",
        "timestamp": to_timestamp(asset.finished_at),
    }


def test_unfinished_asset_has_no_event() -> None:
    """An asset that is still processing has no event: building one raises an error."""
    with pytest.raises(ValueError, match="processing"):
        asset_processed(make_asset())
