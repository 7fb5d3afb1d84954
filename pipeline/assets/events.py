"""Builds asset_processed payloads, exactly as contracts/asset-processed-event.schema.json has them. Pure."""

from __future__ import annotations

from typing import Any

from pipeline.assets.asset import Asset, AssetStatus, to_timestamp

MISSING = {"value": "", "confidence": 0}


def asset_processed(asset: Asset, processed_url: str | None = None) -> dict[str, Any]:
    """Return the event for a finished asset; its timestamp is finishedAt, so a run always gives the same
    event, except for processed_url, the address of its processed image.
    """
    if not asset.is_finished:
        raise ValueError(f"asset {asset.id} is {asset.status.value}, not finished")
    common: dict[str, Any] = {"event": "asset_processed", "assetId": asset.id, "status": asset.status.value}
    meta = asset.corrected_metadata
    if asset.status is AssetStatus.FAILED:
        return common | {"error": meta.error or "Processing failed", "timestamp": to_timestamp(asset.finished_at)}
    result = {"brand": meta.brand or MISSING, "model": meta.model or MISSING}
    if meta.colorway:
        result["colorway"] = meta.colorway
    event = common | {"aiMetadata": result, "timestamp": to_timestamp(asset.finished_at)}
    if processed_url:
        event["processedImageUrl"] = processed_url
    return event
