"""The frames that the service sends: JSON objects with their name in `event`. Pure."""

from __future__ import annotations

from typing import Any

Frame = dict[str, Any]

# A frame of the client itself: the cursor may advance to its `since`.
CURSOR = "cursor"
MISSING = {"value": "", "confidence": 0}


def key_of(event: Frame) -> tuple[str, str]:
    """Return the identity of an asset_processed event."""
    return event["assetId"], event["timestamp"]


def event_of(asset: dict[str, Any]) -> Frame | None:
    """Return the event of this asset (schema Asset in the contract), None when it is not finished."""
    meta = asset["aiMetadata"]
    event = {"event": "asset_processed", "assetId": asset["id"], "status": asset["status"]}
    if asset["status"] == "failed":
        return event | {"error": meta["error"] or "Processing failed", "timestamp": asset["finishedAt"]}
    if asset["status"] not in ("active", "partial"):
        return None
    values = {"brand": meta["brand"] or MISSING, "model": meta["model"] or MISSING}
    if meta["colorway"]:
        values["colorway"] = meta["colorway"]
    event |= {"aiMetadata": values, "timestamp": asset["finishedAt"]}
    if url := (asset["images"]["processed"] or {}).get("url"):
        event["processedImageUrl"] = url
    return event
